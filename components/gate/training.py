"""Training gates on the page: data and settings, what it will cost, live charts, and Stop, which keeps what was learned."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import gradio as gr

from backends import device
from backends import gates as store
from backends.training import Training
from backends.training_lent import LentTraining, begin
from components import charts, controls, figures, fragments, queueing
from components.compare.tab import awaited
from components.events import PRIVATE, newest
from components.followed import Followed
from components.gate import gate_figures, gating, training_data
from components.gate.training_data import DataBox
from components.library.shelf import as_gating, shelf
from components.merge import making
from components.messages import told
from components.session.state import Gating, Session
from components.work import REDRAWN, forget, loading, stop_of
from lego import AdapterError
from mole.cli import clock
from mole.gate import GateConfig
from mole.recipe import GateRecipe
from mole.train import Progress, TrainConfig

GATES = ("granularity", "reads", "pooling", "normalise", "base_expert")
POOLING = GATES.index("pooling")
"""``flatten`` needs samples of one length, which pictures are and texts are not: it is shown where a base draws."""
TRAINING = ("steps", "batch", "alpha", "lr", "seed")
SELDOM = ("warmup", "weight_decay", "clip", "calibration")
"""`micro_batch` finds itself: where memory runs out, the batch comes in smaller parts."""


@dataclass(frozen=True)
class TrainBox:
    """The components of the section that events need."""

    sources: gr.HTML
    data: DataBox
    values: list[Any]
    name: gr.Textbox
    cost: gr.HTML
    run: gr.Button
    stop: gr.Button
    progress: gr.HTML
    curves: charts.Chart
    choices: charts.Chart
    ticket: gr.State
    made: gr.State

    @property
    def settings(self) -> list[Any]:
        """What decides a training, in the order of ``read``."""
        return [*self.data.settings, *self.values]

    @property
    def turned(self) -> list[Any]:
        """What ``turn`` shows or hides."""
        return [self.data.writing, self.data.drawing, self.values[POOLING]]

    @property
    def running(self) -> list[Any]:
        """What ``run`` fills."""
        return [self.progress, self.curves, self.choices, self.made, self.run, self.stop]


def create_settings() -> tuple[Any, ...]:
    """The left column: what is mixed, data, settings."""
    sources = gr.HTML()
    data = training_data.create()
    gr.HTML(fragments.heading("The gates"))
    fields = {**GateConfig.model_fields, **TrainConfig.model_fields}
    values = [controls.field_control(name, fields[name]) for name in GATES]
    values[POOLING].visible = False
    with gr.Row():
        values += [controls.field_control(name, fields[name]) for name in TRAINING]
    with gr.Accordion("More about the training", open=False), gr.Row():
        values += [controls.field_control(name, fields[name]) for name in SELDOM]
    name = gr.Textbox(label="Name of the gates", placeholder="named after what they are", max_length=making.NAME_LIMIT)
    cost = gr.HTML(label="Expected time")
    with gr.Row():
        run_button = gr.Button("Train", variant="primary")
        stop = gr.Button("Stop training", visible=False)
    return sources, data, values, name, cost, run_button, stop


def create_charts() -> tuple[Any, ...]:
    """Above the trained gates: progress and the live pictures, while and after gates are trained."""
    # The style sheet hides them while they are empty: what comes for a plot while `visible` shows it would be lost.
    with gr.Column(elem_classes="plain by-training"):
        progress = gr.HTML(label="Training progress")
        with gr.Row(elem_classes="by-charts"):
            curves = charts.create("Training curves", elem_id="curves", min_width=260)
            choices = charts.create("Gates now", elem_id="gates-now", min_width=260)
    return progress, curves, choices


def read(session: Session, values: tuple[Any, ...]) -> GateRecipe:
    """The recipe that the section's components stand for.

    Raises:
        AdapterError: naming the setting that is wrong.
    """
    count = len(GATES) + len(TRAINING) + len(SELDOM)
    data, guidance = training_data.read(session, values[:-count])
    given = dict(zip((*GATES, *TRAINING, *SELDOM), values[-count:], strict=True))
    training = {name: given[name] for name in (*TRAINING, *SELDOM)}
    gates = {name: given[name] for name in GATES if name != "pooling" or training_data.draws(session)}
    return gating.recipe_of([pick.key for pick in session.picks], data, gates, training, guidance)


def sources(session: Session) -> str:
    """What will be mixed: the picked LoRAs."""
    title = fragments.heading(
        "What is mixed", "The picked LoRAs stay as they are; only the gates learn how to weigh them."
    )
    groups = gating.groups_of(session, [pick.key for pick in session.picks], shelf(session))
    if not groups:
        return title + fragments.empty("Nothing is picked", "Pick at least two LoRAs in the Library.")
    return title + fragments.legend((group.name, (group.slot or 0,)) for group in groups)


def turn(session: Session) -> tuple[Any, ...]:
    """Show what a base learns from that writes, or one that draws."""
    draws = training_data.draws(session)
    return gr.Column(visible=not draws), gr.Column(visible=draws), gr.Radio(visible=draws)


def estimate(session: Session, *values: Any) -> Iterator[str]:
    """What the training would cost; what stands in its way is said here too, quietly."""
    if device.lends():  # measuring would take a GPU each time
        return
    try:
        coming = loading(session.base)
        for _ in coming.watch():
            yield awaited(coming)
        recipe, keys = read(session, values), tuple(pick.key for pick in session.picks)
        yield fragments.subtle(gating.told_cost(gating.cost(session.base, keys, recipe), recipe))
    except AdapterError as error:
        yield fragments.note(str(error))


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gr.Button(interactive=not busy), gr.Button("Stop training", visible=busy, interactive=True)


def start() -> tuple[Any, ...]:
    """A ticket by which Stop finds this training, and a sign that it is coming."""
    coming = fragments.progress("Waiting for its turn", None)
    return uuid.uuid4().hex, coming, *_buttons(busy=True)


@told
def run(session: Session, ticket: str, name: str, *values: Any) -> Iterator[tuple]:
    """Train gates, drawing every step; when it ends, however it ends, what was learned is kept."""
    busy = _buttons(busy=True)
    try:
        stop, coming = stop_of(ticket), loading(session.base)
        for _ in coming.watch():
            yield awaited(coming), gr.skip(), gr.skip(), None, *busy
        yield fragments.progress("Reading the samples", None), gr.skip(), gr.skip(), None, *busy
        recipe = read(session, values)
        training = begin(coming.base(), [pick.key for pick in session.picks], recipe)
        rows = [gating.place_of(site.name) for site in training.gates.sites]
        groups = gating.groups_of(session, training.gates.columns, shelf(session))
        history, last, drawn = gating.History(len(groups), len(training.keys)), None, 0.0
        yield fragments.progress("Looking at samples, then the first step", None), gr.skip(), gr.skip(), None, *busy
        for last in training.run(stop):
            if last.stopped is None:
                history.add(last)
            if monotonic() - drawn > REDRAWN or last.step == last.steps:
                drawn = monotonic()
                yield gating.line_of(last, history.began), *_drawn(history, last, rows, groups), None, *busy
        line, made = ended(training, last, recipe, session, name)
        # Drawn once more: of two values that come at once the page may show the first one's text and the second one's chart.
        yield line, *_drawn(history, last, rows, groups), made, *_buttons(busy=False)
    finally:
        forget(ticket)


def _drawn(history: gating.History, last: Progress, rows: list[str], groups: list[figures.Group]) -> tuple[Any, Any]:
    return history.chart(last.steps), gate_figures.gate_map(rows, groups, last.shares.numpy(), "Choices in this step")


def ended(
    training: Training | LentTraining, last: Progress | None, recipe: GateRecipe, session: Session, name: str
) -> tuple[str, Gating]:
    """What is said and kept when a training ends: done, stopped, or no longer finite.

    Raises:
        AdapterError: when it ended before anything was learned.
    """
    if last is None or last.step == 0:
        raise AdapterError(
            last.stopped if last and last.stopped else "stopped before the first step: nothing was learned"
        )
    shown = name.strip()[: making.NAME_LIMIT] or f"MoLE {recipe.gates.granularity}, {last.step} steps"
    found: store.GateEntry = training.add(making.slug(shown) or "gates")
    done = f"{last.step} of {last.steps} steps" if last.step < last.steps else f"{last.steps} steps"
    text = fragments.subtle(f"{done} in {clock(last.seconds)}. Kept as “{shown}”, here and among Compare's variants.")
    warning = fragments.note(f"Training ended early: {last.stopped}.") if last.stopped else ""
    return warning + text, as_gating(found, session.base, shown)


def stopping(ticket: str) -> Any:
    """Let the training end after its current step. The line is the training's alone: what it says last may come first."""
    stop_of(ticket).set()
    return gr.Button("Stopping after this step", interactive=False)


def failed() -> tuple[Any, ...]:
    """Set the buttons back after an error."""
    return "", *_buttons(busy=False)


def wire(box: TrainBox, session: Followed, entered: Any, settled: Followed) -> Any:
    """Connect the section's events; gives the event after which newly trained gates wait in ``made``.

    Args:
        box, session: of the tab and the page.
        entered: fires when the tab is opened.
        settled: changes when the base is there.
    """
    session.follow(sources, [session], [box.sources])
    ticked = [*box.data.tasks.both, *box.data.sets.both, box.data.offered]
    session.follow(partial(training_data.offer, box=box.data), [session, box.data.offered], ticked)
    for followed in (session, settled):
        followed.follow(turn, [session], box.turned)
    for mix in (box.data.tasks, box.data.sets):
        newest([mix.chosen.input], partial(training_data.shares_of, mix.names), [mix.chosen], mix.shares)
    newest([box.data.way.input], training_data.show_guidance, [box.data.way], [box.data.guiding])
    costly = {**PRIVATE, "concurrency_limit": 2, "concurrency_id": "estimate"}
    asked = [session, *box.settings]
    entered.then(turn, [session], box.turned, **PRIVATE)
    entered.then(estimate, asked, [box.cost], **costly)
    changed = [*box.data.changes, *(component.input for component in box.values)]
    newest(changed, estimate, asked, [box.cost], **costly)
    clicked = box.run.click(start, None, [box.ticket, box.progress, box.run, box.stop], **PRIVATE)
    one = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "training"}
    running = clicked.then(run, [session, box.ticket, box.name, *box.settings], box.running, **one)
    queueing.follow(clicked.then, "training", box.progress)
    running.failure(failed, None, [box.progress, box.run, box.stop], **PRIVATE)
    box.stop.click(stopping, [box.ticket], [box.stop], **PRIVATE)
    return running
