"""What gates choose for prompts, and what comes of it with and without masked LoRAs: texts as they grow, pictures step by step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from backends.bases import ImageBase
from backends.gated import choices
from backends.gates import GateEntry
from backends.image import Drawing, Sheet, draw
from backends.text import Sampling, generate
from components import fragments
from components.compare import comparison, drawing, gallery, pictures
from components.compare import tab as compare
from components.compare.running import Progress
from components.gate import gate_figures, gating
from components.library.shelf import shelf
from components.session.state import Column, Gating, Session, without
from components.work import loading

ANSWER = 32
"""Tokens of an answer: enough to see what a mask changes."""
BESIDE, DIFFERENCE = "beside the first", "as the difference"
WHOLE = "With all"
KEPT = 4
"""Drawings kept, so that another view of the same choices draws nothing anew."""
NOTHING: tuple[Any, ...] = (gr.skip(),) * 4
STOPPED = fragments.subtle("Stopped.")

_sheets: OrderedDict[tuple[Any, ...], Sheet] = OrderedDict()
_lock = threading.Lock()

Shown = tuple[str, tuple[Any, ...], Any]
"""What is told, the four plots, the answers."""


@dataclass(frozen=True)
class Asked:
    """What is to be shown, of which gates.

    Attributes:
        session, gating, found: whose LoRAs and gates.
        mask: LoRAs that the gates may not use.
        prompts: one, or two.
        view: `BESIDE` or `DIFFERENCE`.
        stop: ends it where it is.
    """

    session: Session
    gating: Gating
    found: GateEntry
    mask: tuple[str, ...]
    prompts: list[str]
    view: str
    stop: threading.Event


def columns(asked: Asked) -> list[Column]:
    """The gates with all their LoRAs, and without the masked ones beside them."""
    session, mine, mask = asked.session, asked.gating, asked.mask
    shown = [Column("all", WHOLE, mine.weighting(), session.slots(mine.experts))]
    if mask:
        kept = tuple(key for key in mine.experts if key not in mask)
        name = without(session, mask, shelf(session))
        shown.append(Column("masked", name.replace("without", "Without", 1), mine.weighting(mask), session.slots(kept)))
    return shown


def written(asked: Asked) -> Iterator[Shown]:
    """On a base that writes: what the gates chose for the prompts, then the answers as they grow, in one batch."""
    session, prompts = asked.session, asked.prompts
    base, chat = loading(session.base).base(), chats(session)
    yield fragments.progress("Asking the gates", None), NOTHING, gr.skip()
    chosen = choices(base, asked.found, prompts, asked.mask, chat).choices.numpy()
    shown, wanted = columns(asked), Sampling(max_new_tokens=ANSWER, chat=chat)
    yield "", plots(asked, shown, chosen), gr.skip()
    answers, far = comparison.begin(session.base, shown, prompts, compare.settings_of(wanted)), Progress(ANSWER)
    for grid in generate(base, [column.variant for column in shown], prompts, wanted):
        answers = answers.filled(grid)
        longest = max(max(row) for row in grid.tokens)
        line = far.line(f"token {longest} of at most {ANSWER}", longest)
        yield line, NOTHING, comparison.draw(answers, marks=True, running=True, against=WHOLE)
        if asked.stop.is_set():
            break
    stopped = asked.stop.is_set() and not grid.finished
    yield STOPPED if stopped else "", NOTHING, comparison.draw(answers, marks=True, against=WHOLE)


def drawn(asked: Asked, wanted: Drawing) -> Iterator[Shown]:
    """On a base that draws: pictures from the same noise step by step, then what the gates chose on the way."""
    base, shown, far = asked.session.base, columns(asked), Progress(wanted.steps)
    answers = gallery.begin(base, shown, asked.prompts, wanted.seeds, drawing.settings_of(wanted))
    for sheet in sheets(base, shown, asked.prompts, wanted):
        answers = drawing.filled(answers, sheet)
        line = "" if sheet.finished else far.line(f"step {sheet.step} of {sheet.steps}", sheet.step)
        yield line, NOTHING, pictures.draw(answers, running=not sheet.finished)
        if asked.stop.is_set() and not sheet.finished:
            yield STOPPED, NOTHING, pictures.draw(answers)
            return
    courses = [row[0] for row in sheet.courses[-1]]
    steps = np.stack([course.choices[:, :, 0].numpy() for course in courses if course], axis=2)
    yield "", plots(asked, shown, steps.mean(axis=0), steps), pictures.draw(answers)


def sheets(base: str, shown: Sequence[Column], prompts: list[str], wanted: Drawing) -> Iterator[Sheet]:
    """The pictures as they come; at once where the same were drawn lately."""
    key = (base, tuple(column.weighting for column in shown), tuple(prompts), wanted)
    with _lock:
        known = _sheets.get(key)
    if known is not None:
        yield known
        return
    loaded = loading(base).base()
    assert isinstance(loaded, ImageBase)
    for sheet in draw(loaded, [column.variant for column in shown], prompts, wanted):
        yield sheet
    with _lock:
        _sheets[key] = sheet
        while len(_sheets) > KEPT:
            _sheets.popitem(last=False)


def chats(session: Session) -> bool:
    """Whether prompts are put into the base's chat template: where it has one."""
    return loading(session.base).base().has_chat_template


def plots(
    asked: Asked, shown: Sequence[Column], chosen: np.ndarray, steps: np.ndarray | None = None
) -> tuple[Any, Any, Any, Any]:
    """The heat maps of each prompt, or of how they differ, and below them the same step by step.

    Args:
        asked: the prompts, and how they are shown.
        shown: the last one is what chose.
        chosen: (gates, prompts, LoRAs).
        steps: of a base that draws, (steps, gates, prompts, LoRAs).
    """
    rows = [gating.place_of(site.name) for site in asked.found.saved.sites]
    groups = gating.groups_of(asked.session, gating.columns_of(asked.found), shelf(asked.session))
    made: list[Any] = [None] * 4
    masked = f"<br>{escape(shown[-1].name)}" if len(shown) > 1 else ""
    if len(asked.prompts) > 1 and asked.view == DIFFERENCE:
        title = f"Other prompt less the first: how each gate's trust moves{masked}"
        made[0] = gate_figures.gate_changes(rows, groups, chosen[:, 1] - chosen[:, 0], title)
        if steps is not None:
            moved = steps[:, :, 1] - steps[:, :, 0]
            made[2] = gate_figures.gate_course_changes(rows, groups, moved, "The same step by step")
    else:
        for number, text in enumerate(asked.prompts):
            line = " ".join(text.split())
            title = escape(line if len(line) <= 48 else f"{line[:47]}…")
            made[number] = gate_figures.gate_map(rows, groups, chosen[:, number], title + masked)
            if steps is not None:
                made[2 + number] = gate_figures.gate_course(rows, groups, steps[:, :, number], f"{title}: step by step")
    return tuple(made)  # type: ignore[return-value]
