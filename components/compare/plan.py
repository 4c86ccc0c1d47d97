"""A comparison before it runs: which columns, what is merged for them, which of them run together, and how they lie in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from components.compare.axes import NONE, Axis, offered
from components.compare.cells import Cell, Merging, cell_of
from components.compare.layout import PROMPT, SEED, VARIANT, Layout, Side
from components.library.shelf import shelf
from components.session.state import Column, Session
from lego import AdapterError


@dataclass(frozen=True)
class Run:
    """Columns that run as one batch, with the settings they share."""

    columns: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        names, cells: of each column.
        prompts, seeds: rows; the seeds of texts are a setting, so they have none.
        layout: of a grid of axes; None for variants side by side.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    layout: Layout | None = None

    @property
    def count(self) -> int:
        """How many texts or pictures."""
        return len(self.cells) * len(self.prompts) * max(1, len(self.seeds))

    @property
    def merges(self) -> list[Merging]:
        """What has to be merged, in the order of the columns, each once."""
        return list(dict.fromkeys(cell.merging for cell in self.cells if cell.merging))

    @property
    def groups(self) -> list[tuple[Merging | None, list[Run]]]:
        """The runs by what is merged for them: merges are outermost, so each is made once; what needs none comes first."""
        found: dict[Merging | None, dict[tuple[tuple[str, Any], ...], list[int]]] = {}
        for number, cell in enumerate(self.cells):
            found.setdefault(cell.merging, {}).setdefault(cell.settings, []).append(number)
        order = sorted(found, key=lambda merging: merging is not None)
        return [(merging, [Run(tuple(own), s) for s, own in found[merging].items()]) for merging in order]

    def columns(self, made: Mapping[Merging, str]) -> list[Column]:
        """The columns as the page shows them, with what is merged so far."""
        ids = [cell.id if self.layout is None else str(i) for i, cell in enumerate(self.cells)]
        told = zip(ids, self.names, self.cells, strict=True)
        return [Column(key, name, cell.resolved(made), cell.slots) for key, name, cell in told]

    @property
    def own(self) -> tuple[tuple[tuple[str, Any], ...], ...]:
        """What differs from the page's settings, of each column; empty where nothing does."""
        found = tuple(cell.settings for cell in self.cells)
        return found if any(found) else ()


def side_by_side(chosen: Sequence[Column], prompts: Sequence[str], seeds: Sequence[int] = ()) -> Plan:
    """Variants beside each other: the plain comparison."""
    cells = tuple(Cell(c.weighting, id=c.id, name=c.name, slots=c.slots) for c in chosen)
    return Plan(tuple(column.name for column in chosen), cells, tuple(prompts), tuple(seeds))


@dataclass(frozen=True)
class Wanted:
    """An axis and its values, as the page gives them."""

    axis: str
    values: str = ""


def of_axes(
    session: Session,
    wanted: tuple[Wanted, Wanted],
    subject: Column,
    chosen: Sequence[Column],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Plan:
    """One axis against another.

    Args:
        session: whose variants and picks are varied.
        wanted: what columns and rows show; rows may show nothing.
        subject: the variant that is varied, where no axis is the variant.
        chosen: the variants, where an axis is.
        prompts: every cell answers them all, unless an axis is the prompt.
        seeds: of pictures, in the same way.
        settings: of the page, which the axes change.

    Raises:
        AdapterError: naming the axis and what is wrong with it.
    """
    known = offered(session)
    sides = [(_axis(known, each.axis), each.values) for each in wanted if each.axis != NONE]
    if not sides:
        raise AdapterError("no axis is chosen", None, "Choose what the columns show.")
    if len({axis.name for axis, _ in sides}) < len(sides):
        raise AdapterError(f"columns and rows both show {sides[0][0].label}", None, "Choose another axis for one.")
    chosen_values = [_values(axis, text, chosen, prompts) for axis, text in sides]
    own = [_side(axis, values) for (axis, _), values in zip(sides, chosen_values, strict=True)]
    varied = [(axis, values) for (axis, _), values in zip(sides, chosen_values, strict=True) if _part(axis) == VARIANT]
    every = [
        list(zip((axis for axis, _ in varied), v, strict=True)) for v in product(*(values for _, values in varied))
    ]
    order = list(known)
    cells = [
        _cell(session, subject, sorted(pairs, key=lambda pair: order.index(pair[0].name)))  # what is merged, then how
        for pairs in every
    ]
    _check_difference(varied, [cell.decides(settings) for cell in cells])
    names = [", ".join(_told(*pair) for pair in pairs) for pairs in every] if varied else [subject.name]
    noise = next((tuple(v) for (a, _), v in zip(sides, chosen_values, strict=True) if _part(a) == SEED), tuple(seeds))
    return Plan(tuple(names), tuple(cells), tuple(prompts), noise, Layout(*own))


def _cell(session: Session, subject: Column, pairs: Sequence[tuple[Axis, Any]]) -> Cell:
    """The variant with one value of every axis."""
    variant = next((value for axis, value in pairs if axis.name == VARIANT), subject)
    cell = cell_of(variant, shelf(session))
    for axis, value in pairs:
        cell = axis.apply(cell, value) if axis.apply else cell
    return cell


def _axis(known: Mapping[str, Axis], name: str) -> Axis:
    if name not in known:
        raise AdapterError("this axis is not on offer any more", str(name)[:40], "Choose another.")
    return known[name]


def _part(axis: Axis) -> str:
    return axis.name if axis.name in (PROMPT, SEED) and axis.apply is None else VARIANT


def _values(axis: Axis, text: str, chosen: Sequence[Column], prompts: Sequence[str]) -> list[Any]:
    if axis.name in (PROMPT, VARIANT):
        return list(prompts if axis.name == PROMPT else chosen)
    try:
        return axis.values(text or "")
    except AdapterError as error:
        raise AdapterError(error.what, f"axis {axis.label}", error.fix) from error


def _told(axis: Axis, value: Any) -> str:
    return str(value.name) if axis.name == VARIANT else axis.of(value)


def _side(axis: Axis, values: Sequence[Any]) -> Side:
    told = tuple(str(value) if axis.name == PROMPT else _told(axis, value) for value in values)
    return Side(axis.label, told, _part(axis))


def _check_difference(varied: Sequence[tuple[Axis, Sequence[Any]]], decided: Sequence[tuple[Any, ...]]) -> None:
    """Refuse an axis along which all columns are the same.

    Raises:
        AdapterError: naming it.
    """
    stride = len(decided)
    for axis, values in varied:
        stride //= len(values)
        rings = [
            range(at, at + stride * len(values), stride)
            for at in range(len(decided))
            if at // stride % len(values) == 0
        ]
        if len(values) > 1 and all(len({decided[i] for i in ring}) == 1 for ring in rings):
            fix = (
                "The variant has nothing that it changes."
                if axis.name != SEED
                else "At temperature 0 there is no noise."
            )
            raise AdapterError(f"{axis.label} changes nothing here", f"axis {axis.label}", fix)
