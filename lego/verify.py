"""Run the recipe of a merged adapter again and compare what comes out, byte for byte or module by module."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from lego.adapter import Adapter, Factors
from lego.errors import AdapterError
from lego.fidelity import compare, ratio
from lego.formats import peft
from lego.formats.header import read_header
from lego.merge import VERSION, Progress
from lego.recipe import Recipe, read_text
from lego.report import MergeReport
from lego.run import merge_opened
from lego.sources import Fetch, difference, open_source
from lego.write import RECIPE, RECIPE_KEY, REPORT

SHOWN = 10  # modules in the text
# What decides the scale of each module, which is measured: ranks may differ within a tolerance.
MEASURED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
ROUNDING = {"float16": 2e-4, "bfloat16": 2e-3, "float32": 1e-7}  # relative error that rounding to the type makes, about


@dataclass(frozen=True)
class Verdict:
    """What came of a verification.

    Attributes:
        equal: whether the same file comes out, or one within the tolerance asked for.
        sha256: of the weights file that is there.
        again: of the one that the recipe makes now; None when it could not be run.
        differences: what is not as the recipe says, a line each.
        errors: relative error ‖ΔW' − ΔW‖ / ‖ΔW‖ (or of the bias, where that is worse) of every module of the new file that is not
            exactly equal, worst first; infinite for a module that only one of them has, or has in another shape.
    """

    equal: bool
    sha256: str
    again: str | None
    differences: tuple[str, ...]
    errors: tuple[tuple[str, float], ...] = ()

    def text(self) -> str:
        """The verdict for a terminal."""
        lines = [f"{'equal' if self.equal else 'different'}: sha256 {self.sha256}"]
        lines += [f"  {difference}" for difference in self.differences]
        lines += [f"  {error:.3g}  {module}" for module, error in self.errors[:SHOWN]]
        if len(self.errors) > SHOWN:
            lines.append(f"  … and {len(self.errors) - SHOWN} more modules")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain data that JSON can hold; an infinite error is null."""
        errors = [{"module": m, "relative_error": e if isfinite(e) else None} for m, e in self.errors]
        return {**asdict(self), "errors": errors}


def verify(
    out: Path,
    *,
    fetch: Fetch | None = None,
    device: str = "cpu",
    tolerance: float = 0.0,
    progress: Progress | None = None,
) -> Verdict:
    """Run a merged adapter's recipe again, in a temporary folder, and compare.

    Args:
        out: the folder of the merge.
        fetch: opens sources from the hub.
        device: where it is computed.
        tolerance: relative error of a module up to which files that are not the same count as equal.
        progress: as in `merge`.

    Raises:
        AdapterError: when there is no recipe, or a source is missing: nothing is known then.
    """
    from lego import read_adapter

    if not 0 <= tolerance < inf:
        raise AdapterError(f"a tolerance is a finite number from 0 on, not {tolerance}")
    if not (out / RECIPE).is_file():
        raise AdapterError(f"has no {RECIPE}", out, "Give the folder of a merge.")
    recipe, there = Recipe.read(out / RECIPE), read_adapter(out)
    sources = [open_source(source, out, fetch) for source in recipe.sources]
    found = recipe_differences(out, there)
    for source, adapter in zip(recipe.sources, sources, strict=True):
        if changed := difference(adapter, source):
            return Verdict(False, there.sha256, None, (*found, f"source {source}: {changed}"))
    with tempfile.TemporaryDirectory(prefix="brickyard-verify-") as scratch:
        again = Path(scratch) / out.resolve().name
        merge_opened(recipe, sources, again, device=device, name=merged_name(out), progress=progress)
        new = read_adapter(again)
        found += config_differences(out, again)
        if new.fingerprint == there.fingerprint:
            return Verdict(not found, there.sha256, new.sha256, tuple(found))
        errors = module_errors(there, new)
    worst = errors[0][1] if errors else 0.0
    # Another version writes another header: only the tensors count where a tolerance is given.
    equal = worst <= tolerance and tolerance > 0 and not found
    found.append(in_words(errors, recipe))
    return Verdict(equal, there.sha256, new.sha256, tuple(found), tuple(errors))


def recipe_differences(out: Path, there: Adapter) -> list[str]:
    """Whether the recipe in the weights file's header is the one beside it."""
    assert there.weights_file is not None
    inside = read_header(there.weights_file).metadata.get(RECIPE_KEY)
    if inside is None:
        return [f"{there.weights_file.name} holds no recipe in its header"]
    if inside != read_text(out / RECIPE):
        return [f"the recipe in the header of {there.weights_file.name} is not the one in {RECIPE}"]
    return []


def config_differences(out: Path, again: Path) -> list[str]:
    """Whether a PEFT folder's config says what the recipe makes; single files have theirs in their header."""
    if not (again / peft.CONFIG).is_file() or not (out / peft.CONFIG).is_file():
        return []
    old, made = peft.read_config(out / peft.CONFIG), peft.read_config(again / peft.CONFIG)
    fields = [name for name in {**old, **made} if name not in MEASURED and old.get(name) != made.get(name)]
    return [f"{peft.CONFIG} has other values than the recipe makes: {', '.join(fields)}"] if fields else []


def merged_name(out: Path) -> str:
    """The merge's name as its report gives it: the folder may have been renamed since."""
    return read_report(out / REPORT).name if (out / REPORT).exists() else out.resolve().name


def read_report(path: Path) -> MergeReport:
    """The report of a merge.

    Raises:
        AdapterError: when the file is none.
    """
    try:
        return MergeReport.model_validate_json(read_text(path))
    except ValidationError as error:
        raise AdapterError("is not the report of a merge", path, "Remove it or restore it.") from error


def module_errors(there: Adapter, new: Adapter) -> list[tuple[str, float]]:
    """Relative error of every module that is not exactly equal, worst first."""
    found = [(module, inf) for module in there.modules.keys() ^ new.modules.keys()]
    for module in there.modules.keys() & new.modules.keys():
        specs = there.modules[module], new.modules[module]
        if specs[0].form != specs[1].form or specs[0].bias != specs[1].bias:
            found.append((module, inf))
        elif not same(old := there[module], other := new[module]):
            found.append((module, relative_error(old, other)))
    return sorted(found, key=lambda item: (-item[1], item[0]))


def same(old: Factors, new: Factors) -> bool:
    """Whether all values are equal."""
    biases = () if old.bias is None or new.bias is None else ((old.bias, new.bias),)
    pairs = ((old.down, new.down), (old.up, new.up), *biases)
    return old.scale == new.scale and all(torch.equal(one, other) for one, other in pairs)


def relative_error(old: Factors, new: Factors) -> float:
    """Of the new update against the old one, or of its bias where that is worse."""
    ups = new.scale * new.up, old.scale * old.up
    error = float(compare(new.down[None], ups[0][None], old.down[None], ups[1][None]).relative_error)
    if old.bias is None or new.bias is None:
        return error
    was, now = old.scale * old.bias.double(), new.scale * new.bias.double()
    return max(error, float(ratio((now - was).norm(), was.norm())))


def in_words(errors: list[tuple[str, float]], recipe: Recipe) -> str:
    """How far apart two merges of one recipe are."""
    if not errors:
        made = f" (made by version {recipe.brickyard}, this is {VERSION})" if recipe.brickyard != VERSION else ""
        return f"the tensors are equal, the file around them is not{made}"
    usual = ROUNDING[recipe.output.dtype]
    near = "no more than" if errors[0][1] <= 2 * usual else "more than"
    return (
        f"{len(errors)} modules differ, by a relative error of at most {errors[0][1]:.3g}: {near} rounding to "
        f"{recipe.output.dtype} (about {usual:g}) explains, as with another version of torch"
    )
