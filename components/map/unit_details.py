"""The details of a unit: where it is, how much of its adapter's update it is, what is like it, what it reads and writes."""

from __future__ import annotations

from functools import lru_cache
from html import escape

import numpy as np

from backends import library
from backends.bases import TextBase
from backends.lens import Lens, Tokens, look
from components import fragments
from components.library.shelf import shelf
from components.map import maps
from components.session.state import Selection, Session, title_of
from components.work import peek
from lego import AdapterError
from lego.shares import contributions, energy
from lego.unitset import UnitId

NEAREST = 5


def checked(session: Session, value: object) -> UnitId:
    """A unit as the browser named it.

    Raises:
        AdapterError: when it is none of a picked adapter.
    """
    match value:
        case [str(key), str(module), int(index)] if session.pick(key):
            spec = library.get(key).modules.get(module)
            if spec is not None and 0 <= index < spec.rank:
                return key, module, index
    raise AdapterError("this brick is not among the picked adapters any more", None, "Select another.")


def nearest(seen: maps.View, row: int) -> list[tuple[int, float]]:
    """The units on the map whose rank-one updates are most alike a unit's, nearest first, with their cosine."""
    cosine = seen.mapped.alike(row).copy()
    cosine[row] = -np.inf
    order = np.argsort(-cosine, kind="stable")[:NEAREST]
    return [(int(i), float(cosine[i])) for i in order if cosine[i] > -np.inf]


@lru_cache(maxsize=64)
def _energy(key: str) -> float:
    return energy(library.get(key))


@lru_cache(maxsize=64)
def _contributions(key: str, module: str) -> np.ndarray:
    return contributions(library.get(key), module)


def shares(unit: UnitId) -> tuple[float, float]:
    """What a unit contributes to ‖ΔW‖² of its module, and to that of the whole adapter, as shares; 0 where that is 0."""
    key, module, index = unit
    own = _contributions(key, module)
    return tuple(float(own[index]) / whole if whole else 0.0 for whole in (own.sum(), _energy(key)))  # type: ignore[return-value]


def draw(session: Session, seen: maps.View, chosen: Selection) -> str:
    """The primary unit, and beside it the pinned one."""
    shown = [(name, unit) for name, unit in (("Brick", chosen.primary), ("Pinned", chosen.pinned)) if unit]
    if len(shown) == 2 and chosen.primary == chosen.pinned:
        shown = [("Pinned", chosen.pinned)]
    return f'<div class="by-details">{"".join(_card(session, seen, name, unit) for name, unit in shown)}</div>'


def _card(session: Session, seen: maps.View, name: str, unit: UnitId) -> str:
    (key, module, index), row = unit, maps.row_of(seen, unit)
    pick = session.pick(key)
    title = f"{fragments.swatch((pick.slot,) if pick else ())} {escape(title_of(session, shelf(session)[key]))}"
    of_module, of_adapter = shares(unit)
    facts = [("rank index", str(index)), ("share of the module", f"{of_module:.1%}")]
    facts.append(("share of the adapter", f"{of_adapter:.2%}"))
    if row is not None:
        facts[1:1] = [("norm", f"{seen.units.norm[row]:.3f}"), ("cluster", str(seen.clusters[row] + 1))]
    near = "" if row is None else _nearest(seen, row)
    away = fragments.subtle("Not on this map, which shows other modules.") if row is None else ""
    about = (
        "Shares: the inner product of the brick with the whole update over ‖ΔW‖², its own energy and half of each cross "
        "term. They add up to 100 %; a brick that others take back has a negative one."
    )
    return (
        f'<section class="by-detail" aria-label="{name} {index} of {escape(module)}"><h3>{name}: {title}</h3>'
        f"<p><code>{escape(module)}</code></p>{fragments.facts(facts)}{away}{near}{_tokens(session, unit)}"
        f'<p class="by-subtle">{about}</p></section>'
    )


def _nearest(seen: maps.View, row: int) -> str:
    rows = []
    for i, cosine in nearest(seen, row):
        key, module, index = unit = maps.unit_id(seen, i)
        group = seen.groups[seen.keys.index(key)]
        name = fragments.pick("unit", unit, f"{module}, rank index {index}")
        rows.append([f"{fragments.swatch((group.slot,))} {escape(group.name)}", name, f"{cosine:.3f}"])
    head = ["Nearest", "Module and rank index", "Cosine"]
    return fragments.table(head, rows, right=(2,), label="Nearest bricks")


def _tokens(session: Session, unit: UnitId) -> str:
    coming = peek(session.base)
    if coming is None or not coming.done or coming.error is not None:
        return ""
    base = coming.base()
    if not isinstance(base, TextBase):
        return ""
    found: Lens = look(base, library.get(unit[0]), unit[1], unit[2])
    sides = [("reads", found.reads), ("writes", found.writes)]
    lines = [line for verb, tokens in sides if tokens for line in _lines(verb, tokens)]
    unnamed = " nor ".join(verb for verb, tokens in sides if not tokens)
    why = (
        f"What it {unnamed} is inside its layer, not in the residual stream, so no tokens can be named."
        if unnamed
        else ""
    )
    named = f'<dl class="by-tokens">{"".join(lines)}</dl>' if lines else ""
    return named + (fragments.subtle(why) if why else "")


def _lines(verb: str, tokens: Tokens) -> list[str]:
    return [
        f"<dt>{verb} {sign}</dt><dd>{''.join(_token(text, value) for text, value in own)}</dd>"
        for sign, own in (("+", tokens.most), ("−", tokens.least))
    ]


def _token(text: str, cosine: float) -> str:
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return f'<code title="cosine {cosine:.3f}">{escape(shown if shown.strip() else "␣" * max(1, len(shown)))}</code>'
