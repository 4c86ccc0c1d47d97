"""A sweep: a recipe in which fields hold lists or ranges, as points that are recipes.

    parameters: {k: 4..16 | 4, strength: [0.5, 1]}     4, 8, 12, 16 (from..to | step, both ends included) and two strengths: 8 points

A parameter, the seed, the method and a source's weight (or its number for one pattern) may vary; a sweep is the product of all.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from lego.errors import AdapterError
from lego.recipe import Recipe, load, read_text
from lego.registry import method

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*(?:\|\s*({NUMBER})\s*)?")
MOST = 10_000  # points
LONGEST = 100  # characters of a point's name
LARGEST = 1e100  # number of a range; beyond it, or between 0 and one over it, digits would be lost


@dataclass(frozen=True)
class Axis:
    """A field that varies: its label, its place in the document, its values."""

    label: str
    place: tuple[str | int, ...]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.label} ({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class Point:
    """One merge of a sweep: the name of its folder, what varies, its recipe."""

    name: str
    values: Mapping[str, Any] = field(hash=False)
    recipe: Recipe = field(hash=False, repr=False)


@dataclass(frozen=True)
class Sweep:
    """All points, and the folder that relative paths are relative to."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    folder: Path

    def __str__(self) -> str:
        points = "1 point" if len(self.points) == 1 else f"{len(self.points)} points"
        return " × ".join(map(str, self.axes)) + f": {points}" if self.axes else points


def read_sweep(path: Path) -> Sweep:
    """The sweep in a recipe's file; a recipe without lists and ranges is a sweep of one point.

    Raises:
        AdapterError: when the file is no recipe, a range is none, there are too many points, one of them is not valid, or two of
            them are the same merge.
    """
    document = load(read_text(path), path)
    axes = tuple(find_axes(document, path))
    if (count := math.prod(len(axis.values) for axis in axes)) > MOST:
        raise AdapterError(f"has {count:,} points, more than the {MOST:,} allowed", path, "Take larger steps.")
    points = [point_of(document, axes, values, path) for values in itertools.product(*(axis.values for axis in axes))]
    made: dict[str, str] = {}
    for point in points:
        if (other := made.setdefault(repr(essence(point.recipe)), point.name)) != point.name:
            raise AdapterError(f"{other} and {point.name} are the same merge", path, "Leave out one of the values.")
    return Sweep(axes, tuple(points), path.parent)


def essence(recipe: Recipe) -> tuple[Any, ...]:
    """What decides the tensors of a merge."""
    sources = [(source.sha256, source.weight) for source in recipe.sources]
    parameters = method(recipe.method).validate(recipe.parameters)
    return recipe.method, parameters, recipe.seed, sources, recipe.output.dtype


def point_of(document: Any, axes: Sequence[Axis], values: Sequence[Any], where: Path) -> Point:
    """One point, its recipe and its parameters checked."""
    document = copy.deepcopy(document)
    for axis, value in zip(axes, values, strict=True):
        target = document
        for step in axis.place[:-1]:
            target = target[step]
        target[axis.place[-1]] = value
    recipe = Recipe.check(document, where, where.parent)
    method(recipe.method).validate(recipe.parameters)
    varied = dict(zip((axis.label for axis in axes), values, strict=True))
    name = point_name(varied)
    if all(source.weight == 0 for source in recipe.sources):
        raise AdapterError(f"all weights are 0 at {name}", where, "Leave 0 out of the weights of one source.")
    # What a strength was chosen on holds for the recipe as it was.
    return Point(name, varied, recipe.model_copy(update={"tuned_on": None}) if axes else recipe)


def point_name(varied: Mapping[str, Any]) -> str:
    """A folder's name from what varies: ``k=4,seed=0``; cut and made unique by a hash where it would be too long or lose signs."""
    plain = ",".join(f"{label}={value}" for label, value in varied.items()) or "point"
    name = re.sub(r"[^\w.,=%+-]", "-", plain)
    if name == plain and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def find_axes(document: Any, where: object) -> Iterator[Axis]:
    """The fields that vary, in the document's order of kinds: method, parameters, seed, weights.

    Raises:
        AdapterError: for an empty list or a range that is none.
    """
    if not isinstance(document, dict):
        return  # no recipe, as its check will say
    fields: list[tuple[str, tuple[str | int, ...], Any]] = [("method", ("method",), document.get("method"))]
    if isinstance(parameters := document.get("parameters"), dict):
        fields += [(str(name), ("parameters", name), value) for name, value in parameters.items()]
    fields.append(("seed", ("seed",), document.get("seed")))
    listed = document.get("sources")
    sources: list[Any] = listed if isinstance(listed, list) else []
    for number, source in enumerate(sources):
        if isinstance(source, dict):
            fields += weight_fields(number, source, sources)
    for label, place, value in fields:
        if (values := values_of(value, label, where)) is not None:
            yield Axis(label, place, values)


def weight_fields(
    number: int, source: Mapping[str, Any], sources: Sequence[Any]
) -> Iterator[tuple[str, tuple[str | int, ...], Any]]:
    """What may vary in a source: label, place and value."""
    names = [source_name(other) for other in sources]
    label = f"weight of {names[number]}"
    if names.count(names[number]) > 1:
        label += f" {number + 1}"
    weight = source.get("weight")
    if isinstance(weight, dict):
        for pattern, value in weight.items():
            yield f"{label} {pattern}", ("sources", number, "weight", pattern), value
    else:
        yield label, ("sources", number, "weight"), weight


def source_name(source: Any) -> str:
    """A source's short name for labels."""
    given = source if isinstance(source, dict) else {"path": source}
    return str(given.get("name") or PurePosixPath(str(given.get("path") or given.get("hub"))).name)


def values_of(value: Any, label: str, where: object) -> tuple[Any, ...] | None:
    """The values of a list or a range; None for a plain value.

    Raises:
        AdapterError: for an empty list, values that repeat, or a range that never ends.
    """
    if isinstance(value, list):
        if not value:
            raise AdapterError(f"{label} is an empty list", where, "Give at least one value.")
        if len({str(item) for item in value}) < len(value):
            raise AdapterError(f"{label} has the same value twice", where)
        return tuple(value)
    if not isinstance(value, str) or not (found := RANGE.fullmatch(value)):
        return None
    first, last, step = (Decimal(text or "1") for text in found.groups())
    if not all(number == 0 or 1 / LARGEST < number.copy_abs() < LARGEST for number in (first, last, step)):
        raise AdapterError(f"{label}: the range {value!r} has numbers too large or too small", where)
    if step == 0 or (last - first) * step < 0:
        raise AdapterError(f"{label}: the range {value!r} does not reach its end", where, "Write from..to | step.")
    if (count := int((last - first) / step) + 1) > MOST:
        raise AdapterError(f"{label}: the range {value!r} has {count:,} values, more than {MOST:,}", where)
    # Decimals, so that 0..1 | 0.1 ends with 1 and holds 0.3, not 0.30000000000000004.
    return tuple(plain(first + i * step) for i in range(count))


def plain(value: Decimal) -> int | float:
    """An int where it is one."""
    return int(value) if value == value.to_integral_value() else float(value)
