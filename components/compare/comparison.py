"""A comparison as plain data: variants × prompts, its texts, and how it is drawn and exported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from backends.text import Grid
from components import fragments
from components.compare.layout import PROMPT, VARIANT, Layout
from components.session.state import Column
from mole.pool import Weighting

Own = tuple[tuple[tuple[str, Any], ...], ...]
"""Settings of each column that differ from the others': (name, value); empty where none do."""


@dataclass(frozen=True)
class Scored:
    """How one variant does on the held-out rows of one task: share of exact answers with its 95 % interval, nats per answer token."""

    task: str
    name: str
    slots: tuple[int, ...]
    weighting: Weighting
    exact: float
    low: float
    high: float
    nll: float


@dataclass(frozen=True)
class Comparison:
    """Texts of every variant for every prompt, row by row as the columns stand.

    Attributes:
        base: id of the base model.
        names, slots: of each variant: its name and the colours it is made of.
        weightings: of each variant.
        prompts: as they were given.
        settings: everything else that decides the texts.
        texts, tokens, ended: [variant][prompt]; the last tells which texts are complete.
        finished: whether generation came to its end.
        seconds: since the start.
        own: settings of each column that differ from the others'; empty where none do.
        layout: how the columns lie in a grid of axes; None where they stand side by side.
    """

    base: str
    names: tuple[str, ...]
    slots: tuple[tuple[int, ...], ...]
    weightings: tuple[Weighting, ...]
    prompts: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]
    texts: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    ended: tuple[tuple[bool, ...], ...] = ()
    finished: bool = False
    seconds: float = 0.0
    own: Own = ()
    layout: Layout | None = None

    def filled(self, grid: Grid) -> Comparison:
        """The same with the texts that have come so far."""
        return self.placed(range(len(self.names)), grid, grid.finished, grid.seconds)

    def placed(self, columns: Sequence[int], grid: Grid, finished: bool, seconds: float) -> Comparison:
        """The same with what has come so far of some columns."""

        def put(old: tuple, new: tuple) -> tuple:
            come = dict(zip(columns, new, strict=True))
            return tuple(come.get(i, line) for i, line in enumerate(old))

        texts, tokens = put(self.texts, grid.texts), put(self.tokens, grid.tokens)
        come = {"texts": texts, "tokens": tokens, "ended": put(self.ended, grid.ended)}
        return replace(self, **come, finished=finished, seconds=seconds)

    def data(self) -> dict[str, Any]:
        """The comparison as JSON takes it."""
        columns = [
            {"name": name, **_weighed(weighting), **dict(own), "texts": list(texts)}
            for name, weighting, own, texts in zip(
                self.names, self.weightings, self.own or ((),) * len(self.names), self.texts, strict=True
            )
        ]
        facts = {"base": self.base, **dict(self.settings), "prompts": list(self.prompts), "variants": columns}
        return {"brickyard": "comparison", **facts, "finished": self.finished, "seconds": round(self.seconds, 3)}


def _weighed(weighting: Weighting) -> dict[str, Any]:
    """What a variant weighs: its adapters, the units it mutes or scales, the gates that weigh instead, with what is masked."""
    adapters = [{"key": key, "weight": weight} for key, weight in weighting.adapters]
    gated = {"gates": weighting.gates, "masked": list(weighting.masked)} if weighting.gates else {}
    edits = [{"factor": factor, "units": list(units)} for units, factor in weighting.factors]
    return {"adapters": adapters, **({"edits": edits} if edits else {}), **gated}


def begin(
    base: str,
    columns: Sequence[Column],
    prompts: Sequence[str],
    settings: dict[str, Any],
    own: Own = (),
    layout: Layout | None = None,
) -> Comparison:
    """A comparison before its first token."""
    return Comparison(
        base=base,
        names=tuple(column.name for column in columns),
        slots=tuple(column.slots for column in columns),
        weightings=tuple(column.weighting for column in columns),
        prompts=tuple(prompts),
        settings=tuple(settings.items()),
        texts=tuple(("",) * len(prompts) for _ in columns),
        tokens=tuple((0,) * len(prompts) for _ in columns),
        ended=tuple((False,) * len(prompts) for _ in columns),
        own=own,
        layout=layout,
    )


def draw(
    found: Comparison, marks: bool, running: bool = False, against: str = "Base", scores: Sequence[Scored] = ()
) -> str:
    """All columns as HTML.

    Args:
        found: the texts so far.
        marks: whether to show what differs from the texts of one column.
        running: whether more is to come.
        against: that column's name.
        scores: on tasks; each column shows those of what it weighs.
    """
    base = found.names.index(against) if marks and against in found.names else None
    prompts = range(len(found.prompts))
    if found.layout is None:
        return _columns(
            [_column(found, i, prompts, base, running, scores) for i in range(len(found.names))], len(prompts)
        )
    return "".join(_line(found, found.layout, j, base, running, scores) for j in range(found.layout.height))


def _columns(columns: Iterable[str], prompts: int) -> str:
    return f'<div class="by-columns by-level" style="--rows: {prompts + 2}">{"".join(columns)}</div>'


def _line(found: Comparison, layout: Layout, j: int, base: int | None, running: bool, scores: Sequence[Scored]) -> str:
    """One row of a grid of axes under its heading."""
    columns: list[str] = []
    prompts: Sequence[int] = ()
    for i, told in enumerate(layout.x.values):
        at = layout.place(i, j)
        prompts = [at[PROMPT]] if PROMPT in at else range(len(found.prompts))
        columns.append(_column(found, at[VARIANT], prompts, base, running, scores, told))
    heading = f'<h3 class="by-axis">{escape(layout.y.values[j])}</h3>' if layout.y else ""
    return f"{heading}{_columns(columns, len(prompts))}"


def _column(
    found: Comparison,
    i: int,
    prompts: Sequence[int],
    base: int | None,
    running: bool,
    scores: Sequence[Scored],
    told: str | None = None,
) -> str:
    total = sum(found.tokens[i][j] for j in prompts)
    label = escape(found.names[i] if told is None else told)
    swatch = fragments.swatch(found.slots[i])
    count = f"<small class='by-num'>{total} token{'' if total == 1 else 's'}</small>"
    known = ", ".join(
        f"{s.task} {s.exact:.0%} ({s.low:.0%}–{s.high:.0%})" for s in scores if s.weighting == found.weightings[i]
    )
    scored = f'<p class="by-subtle by-scored">{escape(known)}</p>' if known else ""
    head = f"<div><header><b>{swatch}&ensp;{label}</b>{count}</header>{scored}</div>"
    cells = "".join(_cell(found, i, j, base, running) for j in prompts)
    line = f'<i class="by-edge" style="background:{fragments.edge(found.slots[i])}"></i>'
    return f'<section class="by-column" aria-label="{escape(found.names[i])}">{line}{head}{cells}</section>'


def _cell(found: Comparison, i: int, j: int, base: int | None, running: bool) -> str:
    text = found.texts[i][j]
    body = escape(text)
    running = running and not found.ended[i][j]
    if base is not None and base != i and found.ended[i][j] and found.ended[base][j]:
        body = fragments.mark_differences(text, found.texts[base][j])
    if not text:
        body = "" if running else '<span class="by-none">nothing</span>'
    cursor = '<span class="by-cursor"></span>' if running else ""
    prompt = f'<p class="by-prompt" title="{escape(found.prompts[j])}">{escape(found.prompts[j])}</p>'
    return f'<div class="by-cell">{prompt}<p class="by-text">{body}{cursor}</p></div>'


def to_json(found: Comparison, recipe: dict[str, Any] | None = None) -> str:
    """The whole comparison as a JSON document, with the recipe of its session where one is given."""
    return json.dumps(found.data() | ({"recipe": recipe} if recipe else {}), ensure_ascii=False, indent=2)


PLAIN = """
:root { --body-text-color: #292524; --body-text-color-subdued: #6f6862; --border-color-primary: #e5e1dc;
  --background-fill-primary: #fff; --primary-500: #b5532f; }
@media (prefers-color-scheme: dark) { :root { --body-text-color: #ece8e3; --body-text-color-subdued: #a8a099;
  --border-color-primary: #38332f; --background-fill-primary: #1f1c1a; } body { background: #171513; } }
body { font-family: system-ui, sans-serif; margin: 32px; color: var(--body-text-color); }
h1 { font-size: 20px; margin: 0 0 4px; } h1 + p { margin-bottom: 18px; }
"""


def to_html(found: Comparison, style: str, embedded: str = "") -> str:
    """The comparison as a page of its own that needs nothing else; ``embedded`` is an element that holds its recipe."""
    facts = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in found.settings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Brickyard comparison</title><style>{PLAIN}{style}</style></head><body><h1>Brickyard comparison</h1>"
        f'<p class="by-subtle">{escape(found.base)}, {facts}</p>{draw(found, marks=True)}{embedded}</body></html>'
    )
