"""LoRAs as data: read them, take them apart, cluster, merge, measure and write them."""

from __future__ import annotations

from pathlib import Path

import lego.methods  # noqa: F401 - before the function of the same name below, which then stands for it
from lego.adapter import Adapter, Factors, ModuleSpec, module_kind, module_layer
from lego.compare import compare
from lego.effective import effective_weights
from lego.errors import AdapterError
from lego.formats.opening import open_adapter
from lego.inspect import inspect
from lego.interference import interference
from lego.merge import merge
from lego.preflight import Preflight, preflight, preflight_header
from lego.recipe import Recipe
from lego.registry import Method, Parameter, method, methods
from lego.report import MergeReport
from lego.write import merge_into, write_adapter

__all__ = [
    "Adapter", "AdapterError", "Factors", "MergeReport", "Method", "ModuleSpec", "Parameter", "Preflight", "Recipe",
    "compare", "effective_weights", "inspect", "interference", "merge", "merge_into", "method", "methods", "module_kind",
    "module_layer", "preflight", "preflight_header", "read_adapter", "write_adapter",
]  # fmt: skip


def read_adapter(path: str | Path) -> Adapter:
    """Open an adapter without reading its tensors.

    Args:
        path: a PEFT folder, a folder with diffusers' ``pytorch_lora_weights.safetensors`` or another single safetensors file, or
            such a file itself (diffusers or kohya, told apart by its keys).

    Raises:
        AdapterError: when there is none, it is damaged, or it cannot be merged; with every reason.
    """
    return open_adapter(Path(path))
