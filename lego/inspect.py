"""What an adapter is, as plain data."""

from __future__ import annotations

from typing import Any

from lego.adapter import Adapter


def inspect(adapter: Adapter) -> dict[str, Any]:
    """Facts about an adapter from its headers, its config and its card; JSON can hold them. Only the hash reads the file."""
    return {
        "name": adapter.name,
        "path": str(adapter.path) if adapter.path else None,
        "format": adapter.format,
        "base_model": adapter.base_model,
        "ranks": list(adapter.ranks),
        "kinds": list(adapter.kinds),
        "layers": list(adapter.layers),
        "parameters": adapter.parameters,
        "dtypes": sorted({spec.dtype for spec in adapter.modules.values()}),
        "sha256": adapter.sha256,
        "card": dict(adapter.card),
        "modules": [
            {
                "module": module,
                "rank": spec.rank,
                "d_in": spec.d_in,
                "d_out": spec.d_out,
                "scale": spec.scale,
                "kernel": list(spec.kernel),
                "embedding": spec.embedding,
                "bias": spec.bias,
            }
            for module, spec in adapter.modules.items()
        ],
    }
