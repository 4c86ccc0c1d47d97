"""Example prompts that fit the picked adapters: held-out rows of their tasks; for pictures, what their cards propose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import gradio as gr

from backends.library import Entry
from backends.text import tasks
from components import fragments, kinds
from components.library.shelf import shelf
from components.session.state import LORA, Pick, Session

PICTURES = ("a fox", "a red apple", "a rocket", "a house")
"""What any base that draws can draw."""
PROPOSED, DRAWN = 3, 2
"""Proposals of one adapter, and how many prompts are drawn at first sight."""
ROWS = slice(1, 3)
"""Which held-out rows of a task are offered. The first verb is 'ban', on whose past even people disagree."""


@dataclass(frozen=True)
class Example:
    """One prompt on offer: the line for the prompt box, and the colour of the adapter it fits, None where it fits any."""

    line: str
    slot: int | None


def task_of(entry: Entry) -> str | None:
    """The name of the task file that belongs to an adapter, from its card; None where it names none."""
    card = entry.card.get("brickyard") or {}
    name = str(card.get("task_file") or card.get("task") or entry.name).removesuffix(".jsonl")
    return name.rsplit("/", 1)[-1] if name.rsplit("/", 1)[-1] in tasks() else None


def held_out(task: str) -> list[dict]:
    """The rows of a task that no adapter was trained on."""
    return [row for row in tasks()[task] if row.get("split", "held_out") == "held_out"]


def offered(session: Session) -> list[Example]:
    """A few prompts for every picked adapter that has a task, or whose card proposes some."""
    if kinds.of_base(session.base) == kinds.IMAGE:
        return pictured(session)
    entries, found = shelf(session), []
    for pick in session.picks:
        task = task_of(entries[pick.key])
        rows = held_out(task)[ROWS] if task else []
        found += [Example(row["prompt"].replace("\n", "\\n"), pick.slot) for row in rows]
    return found


def pictured(session: Session) -> list[Example]:
    """What to draw: the ``prompts`` of the picked adapters' cards, then plain things."""
    entries, found = shelf(session), []
    for pick in session.picks:
        facts = entries[pick.key].card.get("brickyard")
        lines = facts.get("prompts") if isinstance(facts, dict) else None
        proposed = [str(line).replace("\n", " ")[:200] for line in lines] if isinstance(lines, list) else []
        found += [Example(line, pick.slot) for line in list(dict.fromkeys(proposed))[:PROPOSED]]
    return found + [Example(line, None) for line in PICTURES if line not in [each.line for each in found]]


def first(session: Session) -> str:
    """One prompt for each picked adapter: what stands in the box when the page opens."""
    best: dict[int | None, str] = {}
    for found in offered(session):
        best.setdefault(found.slot, found.line)
    most = DRAWN if kinds.of_base(session.base) == kinds.IMAGE else None
    return "\n".join(list(best.values())[:most])


def kept(session: Session, known: Sequence[str], prompts: str) -> str | dict:
    """The prompts without the examples of adapters that are dropped, those of the others' in their place where nothing is left.

    Args:
        session: now.
        known: the ids of the variants that there were before.
        prompts: what stands in the box.
    """
    own = {each.removeprefix(LORA) for each in known if each.startswith(LORA)}
    dropped = (own & set(shelf(session))) - {pick.key for pick in session.picks}
    theirs = offered(replace(session, picks=tuple(Pick(key, 1.0, 0) for key in dropped)))
    gone = {each.line for each in theirs if each.slot is not None}
    lines = prompts.splitlines()
    left = [line for line in lines if line not in gone]
    return gr.skip() if left == lines else "\n".join(left) or first(session)


def draw(session: Session) -> str:
    """The examples as chips in their adapter's colour."""
    chips = "".join(
        f'<button type="button" data-index="{i}" title="{escape(found.line)}">'
        f"{fragments.swatch(() if found.slot is None else (found.slot,))}"
        f'<span class="t">{escape(found.line.replace(chr(92) + "n", " "))}</span></button>'
        for i, found in enumerate(offered(session))
    )
    return f'<div class="by-chips"><span class="by-subtle">Add an example:</span>{chips}</div>' if chips else ""
