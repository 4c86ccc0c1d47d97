"""LoRAs as data: read them, take them apart, cluster, merge, measure and write them."""

from __future__ import annotations

from pathlib import Path

import lego.methods  # noqa: F401 - before the function of the same name below, which then stands for it
from lego.adapter import Adapter, Factors, ModuleSpec, module_kind, module_layer
from lego.errors import AdapterError
from lego.formats import peft
from lego.inspect import inspect
from lego.merge import merge
from lego.recipe import Recipe
from lego.registry import Method, Parameter, method, methods
from lego.report import MergeReport
from lego.write import write_adapter

__all__ = [
    "Adapter", "AdapterError", "Factors", "MergeReport", "Method", "ModuleSpec", "Parameter", "Recipe", "inspect",
    "merge", "method", "methods", "module_kind", "module_layer", "read_adapter", "write_adapter",
]  # fmt: skip


def read_adapter(path: str | Path) -> Adapter:
    """Open an adapter without reading its tensors.

    Args:
        path: a folder in PEFT's layout.

    Raises:
        AdapterError: when there is none, it is damaged, or it cannot be merged; with the reason.
    """
    folder = Path(path)
    if not folder.exists():
        raise AdapterError("does not exist", folder)
    if not folder.is_dir():
        raise AdapterError("is a file", folder, f"Give the folder that holds {peft.CONFIG} and {peft.WEIGHTS}.")
    return peft.read(folder)
