"""Write an adapter as a folder that its library loads as it is: complete or not at all, one module after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lego.adapter import Adapter, Factors, ModuleSpec, finite
from lego.card import CARD, card_of
from lego.errors import AdapterError
from lego.folder import new_folder
from lego.formats import FORMATS
from lego.merge import Merging, Progress
from lego.recipe import DType, Output, Recipe, Tuned
from lego.report import MergeReport
from lego.tensorwriter import TensorWriter
from lego.threads import one_thread
from lego.weights import Weight

RECIPE, REPORT = "recipe.yaml", "report.json"
RECIPE_KEY = "brickyard_recipe"
"""Of the recipe in a safetensors header."""


def merge_into(
    path: str | Path,
    adapters: Sequence[Adapter],
    *,
    method: str = "lego",
    weights: Sequence[Weight] | None = None,
    seed: int = 0,
    name: str | None = None,
    device: torch.device | str = "cpu",
    format: str | None = None,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
    tuned_on: Tuned | None = None,
    **parameters: Any,
) -> MergeReport:
    """Merge adapters from files to files: one group of modules at a time is in memory, whatever the number of layers.

    Args:
        path: the folder to make; it must not exist.
        adapters, method, weights, seed, name, device, progress, **parameters: as `lego.merge`.
        format: a key of `lego.formats.FORMATS`; the first adapter's unless given.
        dtype: of the weights on disk.
        tuned_on: what the strength was chosen on, for the recipe.

    Raises:
        AdapterError: as `lego.merge` and `write_adapter`.
    """
    target = Path(path)
    merging = Merging(adapters, method, weights, seed, name or target.name, device, parameters)
    output = Output(format=format or adapters[0].format, dtype=dtype_name(dtype))
    with one_thread(), ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter alone
        hashing = [beside.submit(lambda adapter: adapter.sha256, adapter) for adapter in merging.adapters]
        with writing(target, merging.adapter(merging.largest()), output) as writer:
            for module, rounded in merging.run(progress, writer.round):
                writer.add(module, rounded)
            for future in hashing:
                future.result()
            report = merging.report()
            report.export_error = writer.rounding
            recipe = merging.recipe(output).model_copy(update={"tuned_on": tuned_on})
            writer.finish(merging.adapter(writer.specs), recipe, report)
    return report


def write_adapter(
    adapter: Adapter, path: str | Path, dtype: torch.dtype = torch.float16, format: str | None = None
) -> Path:
    """Write an adapter, its scales folded in (alpha = rank), with its card and its recipe.

    Everything is written beside the target under a temporary name and renamed: a reader sees nothing or the whole folder. A merged
    adapter's report learns the error that rounding to ``dtype`` made.

    Args:
        adapter: from `merge` or `read_adapter`.
        path: the folder to make; it must not exist.
        dtype: of the weights on disk.
        format: a key of `lego.formats.FORMATS`; the adapter's own unless given.

    Raises:
        AdapterError: when the folder exists or cannot be written, a value does not fit into ``dtype``, or the format cannot hold it.
    """
    target, recipe = Path(path), adapter.recipe
    output = Output(format=format or adapter.format, dtype=dtype_name(dtype))
    if recipe is not None:
        recipe = adapter.recipe = recipe.model_copy(update={"output": output})
    with writing(target, adapter, output) as writer:
        for module in adapter.modules:
            writer.add(module, writer.round(module, adapter[module]))
        if adapter.report is not None:
            adapter.report.export_error = writer.rounding
        writer.finish(adapter, recipe, adapter.report)
    return target


def dtype_name(dtype: torch.dtype) -> DType:
    """As a recipe says it.

    Raises:
        AdapterError: for a type that no adapter is stored in.
    """
    names: dict[torch.dtype, DType] = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
    if dtype not in names:
        raise AdapterError(f"weights are not written as {dtype}", None, f"Types: {', '.join(names.values())}.")
    return names[dtype]


@contextmanager
def writing(target: Path, announced: Adapter, output: Output) -> Iterator[Writer]:
    """A `Writer` into a folder beside the target, which becomes the target when all went well.

    Args:
        target: the folder to make.
        announced: with the modules that will come; their ranks may come out lower.
        output: format and type on disk.
    """
    if output.format not in FORMATS:
        raise AdapterError(f"there is no format {output.format!r}", None, f"Formats: {', '.join(FORMATS)}.")
    with new_folder(target) as scratch, Writer(scratch, target.name, announced, output) as writer:
        yield writer


class Rounded(NamedTuple):
    """A module as it goes to disk: its tensors by key, ‖B̃Ã − BA‖_F² and ‖BA‖_F² of the rounding, its spec."""

    tensors: dict[str, torch.Tensor]
    error: float
    target: float
    spec: ModuleSpec


def rounding_error(down: torch.Tensor, up: torch.Tensor, exact: Factors) -> tuple[float, float]:
    """‖B̃Ã − BA‖_F² as that of B̃ [Ã − A] + [B̃ − B] A, where nothing cancels, and ‖BA‖_F²."""
    left, right = torch.cat([up, up - exact.up], 1), torch.cat([down - exact.down, exact.down])
    error = float(((left.T @ left) * (right @ right.T)).sum())
    return error, float(((exact.up.T @ exact.up) * (exact.down @ exact.down.T)).sum())


class Writer:
    """Puts modules into the weights file as they come, and everything else at the end.

    Attributes:
        specs: of the modules written so far.
    """

    def __init__(self, folder: Path, name: str, announced: Adapter, output: Output) -> None:
        self.folder, self.name, self.output = folder, name, output
        self.format = FORMATS[str(output.format)](announced)
        self.dtype: torch.dtype = getattr(torch, output.dtype)
        self.file = TensorWriter(folder / self.format.weights.format(name=name))
        self.specs: dict[str, ModuleSpec] = {}
        self.error = self.target = 0.0

    def round(self, module: str, factors: Factors) -> Rounded:
        """A module as it will be on disk, and what that does to it; changes nothing, so that several can be rounded side by side.

        Raises:
            AdapterError: when a value is not finite or does not fit into the type.
        """
        factors = factors.folded()
        rounded, back = {}, []
        for key, tensor in self.format.tensors(module, factors).items():
            rounded[key] = tensor.to(self.dtype)
            back.append(rounded[key].float())
            # A sum that is finite has only finite terms: cheaper than looking at each.
            if not math.isfinite(float(back[-1].sum())) and not bool(torch.isfinite(back[-1]).all()):
                reached = float(finite(tensor, f"{self.name}, {key}").abs().max())
                raise AdapterError(
                    f"{key} reaches {reached:.3g}, too large for {self.dtype}", self.name, "Write float32."
                )
        error = rounding_error(back[0].view_as(factors.down), back[1].view_as(factors.up), factors)
        kernel, embedding = factors.kernel, factors.embedding
        sizes = (factors.rank, factors.down.shape[1], factors.up.shape[0])
        return Rounded(rounded, *error, ModuleSpec(*sizes, 1.0, "F32", factors.bias is not None, kernel, embedding))

    def add(self, module: str, rounded: Rounded) -> None:
        """Write one module."""
        for key, tensor in rounded.tensors.items():
            self.file.add(key, tensor)
        self.specs[module] = rounded.spec
        self.error += rounded.error
        self.target += rounded.target

    @property
    def rounding(self) -> float:
        """Relative error that the type on disk makes in the whole update."""
        return (max(self.error, 0) / self.target) ** 0.5 if self.target > 0 else 0.0

    def finish(self, adapter: Adapter, recipe: Recipe | None, report: MergeReport | None) -> None:
        """Make the weights file and those beside it: config, recipe, report, card.

        Args:
            adapter: with its modules as they were written.
            recipe, report: of a merge.
        """
        order = [key for module, spec in adapter.modules.items() for key in self.format.entries(module, spec)]
        metadata = self.format.metadata(adapter)
        self.file.finish(metadata if recipe is None else {**metadata, RECIPE_KEY: recipe.to_yaml()}, order)
        files = {**self.format.companions(adapter), CARD: card_of(adapter, report, self.name, str(self.output.format))}
        if recipe is not None:
            files[RECIPE] = recipe.to_yaml()
        if report is not None:
            files[REPORT] = report.model_dump_json(indent=1)
        for file, text in files.items():
            (self.folder / file).write_text(text, encoding="utf-8")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
