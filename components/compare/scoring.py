"""Task scores: every chosen variant on held-out rows, as a table of variants × tasks that fills while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from backends.text import Scores, score, tasks
from components import fragments, glossary, kinds, stoppable
from components.compare import examples
from components.compare.comparison import Comparison, Scored
from components.compare.tab import awaited, chosen_columns
from components.followed import Followed
from components.library.shelf import shelf
from components.messages import told
from components.session.state import Column, Session
from components.stoppable import Stoppable
from components.work import loading
from lego import AdapterError
from mole.pool import Weighting

MOST_SCORED = 200


@dataclass(frozen=True)
class ScoreBox:
    """The components of the score section."""

    panel: gr.Column
    tasks: gr.CheckboxGroup
    rows: gr.Slider
    run: Stoppable
    table: gr.HTML


def create() -> ScoreBox:
    """Lay the section out; nothing is wired yet."""
    about = (
        "The variants chosen above on held-out rows: share of exact answers, and how unlikely each finds the right one."
    )
    with gr.Column(elem_classes="plain") as panel:
        gr.HTML(fragments.heading("Task scores", about))
        with gr.Row(equal_height=True):
            names = gr.CheckboxGroup(sorted(tasks()), label="Tasks", min_width=260, scale=3)
            rows = gr.Slider(10, MOST_SCORED, value=40, step=10, label="Rows per task", min_width=160, scale=2)
        with gr.Row():
            run_box = stoppable.create("Score", "Stop scoring")
        run_box.progress.render()
        shown = gr.HTML(label="Scores")
    return ScoreBox(panel, names, rows, run_box, shown)


def choose(session: Session) -> tuple[Any, Any]:
    """Tick the tasks of the picked adapters; pictures have none."""
    entries = shelf(session)
    fitting = [examples.task_of(entries[pick.key]) for pick in session.picks]
    texts = gr.Column(visible=kinds.of_base(session.base) != kinds.IMAGE)
    return gr.CheckboxGroup(value=[task for task in dict.fromkeys(fitting) if task]), texts


@told
def run(session: Session, ids: list[str], shown: Any, names: list[str], rows: float) -> Iterator[tuple]:
    """Score the chosen variants, or the columns of the grid of axes that is shown, task after task; the table fills meanwhile."""
    chosen = distinct(shown) if isinstance(shown, Comparison) and shown.layout else chosen_columns(session, ids, rows=1)
    wanted = [name for name in names if name in tasks()]
    if not wanted:
        raise AdapterError("no task is chosen", None, "Tick at least one.")
    count = max(1, min(MOST_SCORED, int(rows)))
    coming = loading(session.base)
    for _ in coming.watch():
        yield awaited(coming), gr.skip(), gr.skip()
    done: dict[str, Scores] = {}
    for i, name in enumerate(wanted):
        for state in score(coming.base(), [column.variant for column in chosen], examples.held_out(name)[:count]):
            done[name] = state
            share = (i + state.done / max(1, state.total)) / len(wanted)
            line = fragments.progress(f"{name}: {state.done} of {state.total}", share)
            yield line, table(scored(chosen, done)), gr.skip()
    legend = (
        f"At most {count} held-out rows a task. Below each share: its 95 % interval, and [nats: nat] per answer token."
    )
    found = scored(chosen, done)
    yield glossary.line(legend), table(found), found


def distinct(shown: Comparison) -> list[Column]:
    """The columns of a comparison that weigh something else than those before them; temperature and seed are not scored."""
    found: dict[Weighting, Column] = {}
    for i, (name, weighting) in enumerate(zip(shown.names, shown.weightings, strict=True)):
        found.setdefault(weighting, Column(str(i), name, weighting, shown.slots[i]))
    return list(found.values())


def scored(chosen: list[Column], done: dict[str, Scores]) -> tuple[Scored, ...]:
    """What is known so far, task by task."""
    return tuple(
        Scored(task, column.name, column.slots, column.weighting, found.exact[i], *found.interval(i), found.nll[i])
        for task, found in done.items()
        for i, column in enumerate(chosen)
    )


def table(found: tuple[Scored, ...]) -> str:
    """Variants × tasks: exact answers in percent, with the negative log-likelihood below."""
    tasks_ = list(dict.fromkeys(score.task for score in found))
    best = {task: max(score.exact for score in found if score.task == task) for task in tasks_}
    rows: dict[Weighting, list[str]] = {}
    for each in found:
        rows.setdefault(each.weighting, [f"{fragments.swatch(each.slots)}&ensp;{escape(each.name)}"])
        rows[each.weighting].append(_cell(each, best[each.task]))
    return fragments.table(
        ["Variant", *tasks_], list(rows.values()), right=range(1, len(tasks_) + 1), label="Task scores"
    )


def _cell(score: Scored, best: float) -> str:
    share = f"<b>{score.exact:.0%}</b>" if score.exact == best and best > 0 else f"{score.exact:.0%}"
    small = f"{score.low:.0%}–{score.high:.0%} · {score.nll:.2f} nats"
    return f'{share}<br><small class="by-subtle by-num">{small}</small>'


def wire(box: ScoreBox, session: Followed, variants: gr.CheckboxGroup, shown: gr.State, scores: gr.State) -> None:
    """Connect the section's events; ``shown`` is the comparison, ``scores`` is filled."""
    session.follow(choose, [session], [box.tasks, box.panel])
    stoppable.wire(box.run, run, [session, variants, shown, box.tasks, box.rows], [box.table, scores])
