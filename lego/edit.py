"""An adapter with some of its units scaled or taken out: exactly the update that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lego.adapter import Adapter, Factors
from lego.errors import AdapterError


@dataclass(frozen=True)
class Edit:
    """What is done to some units of an adapter.

    Attributes:
        factor: that multiplies their update; 0 takes them out.
        units: rows of A by module.
    """

    factor: float
    units: Mapping[str, Sequence[int]]


def edited(adapter: Adapter, edits: Sequence[Edit]) -> Adapter:
    """The adapter after the edits; a unit that two of them name gets both factors. Its tensors are still read when asked for.

    Args:
        adapter: is left as it is; its file, and so its hash, stays the one of what is made.
        edits: in any order; none gives the adapter itself.

    Raises:
        AdapterError: for a module or unit that it does not have, or when no unit is left.
    """
    if not edits:
        return adapter
    factors = {module: torch.ones(spec.rank) for module, spec in adapter.modules.items()}
    for edit in edits:
        for module, rows in edit.units.items():
            own = factors.get(module)
            if own is None or not all(0 <= row < len(own) for row in rows):
                raise AdapterError(f"has no units {list(rows)[:8]} in module {module}", adapter.name)
            own[list(set(rows))] *= edit.factor
    kept = {module: own.nonzero()[:, 0] for module, own in factors.items() if bool(own.any())}
    if not kept:
        raise AdapterError("has no unit left", adapter.name, "Leave at least one brick in.")

    def read(module: str) -> Factors:
        whole, rows = adapter[module], kept[module]
        own = factors[module][rows]
        return replace(whole, down=whole.down[rows], up=whole.up[:, rows] * own)

    specs = {module: replace(adapter.modules[module], rank=len(rows)) for module, rows in kept.items()}
    return replace(adapter, modules=specs, read=read, edits=(*adapter.edits, *edits))
