"""What a comparison can vary. An axis is data: its label, the values it takes, what a value does to a cell, what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import Any

import lego
from components import kinds
from components.compare import drawing
from components.compare.cells import Cell, Merging
from components.library.shelf import shelf
from components.session.state import Session, title_of
from lego import AdapterError

MOST_VALUES, HOTTEST, HEAVIEST = 32, 2.0, 10.0
NUMBER = r"[-+]?\d{1,12}(?:\.\d{1,6})?"
RANGE = re.compile(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*(?:\|\s*({NUMBER})\s*)?")
NONE = ""


class Cost(IntEnum):
    """What one more value of an axis takes."""

    ROW = 0
    """A row more in the same batch."""
    RUN = 1
    """A run of its own."""
    MERGE = 2
    """A merge, then a run."""


@dataclass(frozen=True)
class Axis:
    """One thing that can differ from cell to cell.

    Attributes:
        name: its id.
        label: for people.
        values: reads what was typed; raises AdapterError.
        apply: the cell with a value; None for prompts and for seeds of pictures, which every cell has in its own place.
        cost: of one more value.
        example: values to begin with.
        told: a value for people.
    """

    name: str
    label: str
    values: Callable[[str], list[Any]]
    apply: Callable[[Cell, Any], Cell] | None = None
    cost: Cost = Cost.ROW
    example: str = ""
    told: Callable[[Any], str] = str

    def of(self, value: Any) -> str:
        """A value with its axis, such as ``k 4``."""
        return f"{self.label} {self.told(value)}"


def offered(session: Session) -> dict[str, Axis]:
    """The axes that make sense for the session's base and picks, by name. Variants and prompts are chosen on the page, not typed."""
    draws = kinds.of_base(session.base) == kinds.IMAGE
    entries = shelf(session)
    found = [
        Axis("variant", "Variant", _chosen),
        Axis("prompt", "Prompt", _chosen),
        _seed(draws),
        Axis("method", "Method", _methods, partial(_method, session), Cost.MERGE, "lego, ties, svd", _title),
        Axis("k", "k", partial(typed, one=_rank), partial(_k, session), Cost.MERGE, "r, 2r, 3r"),
        Axis("weight", "Weight of all", _weights, _factor, example="0..1 | 0.25", told=_number),
    ]
    for pick in session.picks:
        label = f"Weight of {title_of(session, entries[pick.key])}"
        weigh = partial(_weigh, pick.key)
        found.append(Axis(f"weight:{pick.key}", label, _weights, weigh, example="0..1 | 0.25", told=_number))
    if draws:
        steps = partial(numbers, name="steps", low=1, high=drawing.MOST_STEPS, whole=True)
        found.append(Axis("steps", "Steps", steps, partial(_set, "steps"), Cost.RUN, "5..20 | 5", _number))
        strict = partial(numbers, name="guidance", low=0, high=drawing.MOST_GUIDANCE)
        found.append(Axis("guidance", "Guidance", strict, partial(_set, "guidance"), Cost.RUN, "1..9 | 2", _number))
    else:
        warm = partial(numbers, name="the temperature", low=0, high=HOTTEST)
        heat = partial(_set, "temperature")
        found.append(Axis("temperature", "Temperature", warm, heat, Cost.RUN, "0..1 | 0.5", _number))
    return {axis.name: axis for axis in found}


def typed(text: str, one: Callable[[str], Any]) -> list[Any]:
    """The values of a text such as ``1, 2, 4`` or ``4..16 | 4`` (from, to and step; both ends belong to it), each once.

    Args:
        text: as typed.
        one: reads a single value; raises AdapterError.

    Raises:
        AdapterError: when there is none, or too many, or a range goes nowhere.
    """
    found: list[Any] = []
    for part in filter(None, map(str.strip, re.split(r"[,;\n]", text))):
        if ".." not in part and "|" not in part:
            found.append(one(part))
            continue
        match = RANGE.fullmatch(part)
        if not match:
            raise AdapterError(f"{part[:40]!r} is no range", None, "Write from..to | step, such as 4..16 | 4.")
        first, last, step = Decimal(match[1]), Decimal(match[2]), Decimal(match[3] or "1")
        if step <= 0 or last < first:
            what = "goes down" if last < first else "has a step that does not go up"
            raise AdapterError(f"the range {part!r} {what}", None, "Write the smaller end first, and a step above 0.")
        count = int((last - first) / step) + 1
        found += [one(f"{(first + i * step).normalize():f}") for i in range(min(count, MOST_VALUES + 1))]
    found = list(dict.fromkeys(found))
    if not 0 < len(found) <= MOST_VALUES:
        what = "has too many values" if found else "has no values"
        raise AdapterError(f"the axis {what}", None, f"Give 1 to {MOST_VALUES}, such as 1, 2, 4 or 4..16 | 4.")
    return found


def numbers(text: str, *, name: str, low: float, high: float, whole: bool = False) -> list[float]:
    """Numbers inside limits.

    Raises:
        AdapterError: naming the one that is none, or outside.
    """

    def one(part: str) -> float:
        if not re.fullmatch(NUMBER, part):
            raise AdapterError(
                f"{part[:40]!r} is no number", None, f"For {name} give numbers from {low:g} to {high:g}."
            )
        value = float(part)
        if not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise AdapterError(f"{name} cannot be {part}", None, f"Give {kind} from {low:g} to {high:g}.")
        return int(value) if whole else value

    return typed(text, one)


_weights = partial(numbers, name="the weight", low=-HEAVIEST, high=HEAVIEST)


def _number(value: float) -> str:
    return f"{value:g}"


def _title(name: str) -> str:
    return lego.method(name).title


def _chosen(text: str) -> list[Any]:
    raise AdapterError("variants and prompts are chosen, not typed")


def _seed(draws: bool) -> Axis:
    if draws:
        return Axis("seed", "Seed", lambda text: list(drawing.read_seeds(_plain(text))), example="0..3")
    seeds = partial(numbers, name="the seed", low=0, high=2**31, whole=True)
    return Axis("seed", "Seed", seeds, partial(_set, "seed"), Cost.RUN, "0..3")


def _plain(text: str) -> str:
    return ", ".join(map(str, numbers(text, name="the seed", low=0, high=2**31, whole=True)))


def _methods(text: str) -> list[str]:
    def one(part: str) -> str:
        found = lego.methods()
        by_title = {method.title.lower(): name for name, method in found.items()}
        return lego.method(part if part in found else by_title.get(part.lower(), part)).name

    return typed(text, one)


def _rank(text: str) -> int | str:
    try:
        return lego.registry.check_rank(text)
    except ValueError as error:
        raise AdapterError(f"k cannot be {text[:40]!r}: {error}") from error


def _method(session: Session, cell: Cell, name: str) -> Cell:
    source = cell.source(session)
    return cell.merged(source if source.method == name else Merging.of(source.weights, name, {}, source.seed))


def _k(session: Session, cell: Cell, value: int | str) -> Cell:
    source = cell.source(session)
    method = lego.method(source.method)
    rank = next((each.name for each in method.parameters if each.type == "rank"), None)
    if rank is None:
        able = ", ".join(n for n, m in lego.methods().items() if any(p.type == "rank" for p in m.parameters))
        raise AdapterError(f"{method.title} has no k", None, f"These methods have one: {able}.")
    return cell.merged(source.varied(**{rank: value}))


def _factor(cell: Cell, value: float) -> Cell:
    return replace(cell, factor=cell.factor * value)


def _weigh(key: str, cell: Cell, value: float) -> Cell:
    return cell.weighed(key, value)


def _set(name: str, cell: Cell, value: Any) -> Cell:
    return replace(cell, settings=tuple({**dict(cell.settings), name: value}.items()))
