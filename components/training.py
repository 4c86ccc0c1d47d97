"""Training gates on the page: data and settings, what it will cost, live charts, and Stop, which keeps what was learned."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gradio as gr

from backends import device
from backends import gates as store
from backends.rows import tasks
from backends.training import Training
from backends.training_lent import LentTraining, begin
from components import controls, examples, figures, fragments, gating, kinds, making, queueing, uploads
from components.compare import awaited
from components.messages import told
from components.session import Gating, Session
from components.shelf import as_gating, shelf
from components.work import REDRAWN, forget, loading, stop_of
from lego import AdapterError
from mole.cli import clock
from mole.gate import GateConfig
from mole.recipe import GateRecipe
from mole.train import Progress, TrainConfig

GATES = ("granularity", "reads", "normalise", "base_expert")
"""`pooling: flatten` needs samples of one length, which texts do not have."""
TRAINING = ("steps", "batch", "alpha", "lr", "seed")
SELDOM = ("warmup", "weight_decay", "clip", "calibration")
"""`micro_batch` finds itself: where memory runs out, the batch comes in smaller parts."""
MOST_SHARE = 100
NOT_YET = (
    "Gates for a base that draws pictures cannot be trained on this page yet. Trained ones can be added beside this, "
    "masked, and compared."
)


@dataclass(frozen=True)
class TrainBox:
    """The components of the section that events need."""

    panel: gr.Column
    sources: gr.HTML
    tasks: gr.CheckboxGroup
    shares: list[gr.Number]
    file: gr.File
    file_share: gr.Number
    values: list[Any]
    name: gr.Textbox
    cost: gr.HTML
    run: gr.Button
    stop: gr.Button
    charts: gr.Column
    progress: gr.HTML
    pictures: gr.Row
    curves: gr.Plot
    choices: gr.Plot
    ticket: gr.State
    made: gr.State

    @property
    def settings(self) -> list[Any]:
        """What decides a training, in the order of ``read``."""
        return [self.tasks, self.file, self.file_share, *self.shares, *self.values]

    @property
    def running(self) -> list[Any]:
        """What ``run`` fills."""
        return [self.progress, self.pictures, self.curves, self.choices, self.made, self.run, self.stop]


def create_settings() -> tuple[Any, ...]:
    """The left column: what is mixed, data, settings."""
    sources = gr.HTML()
    with gr.Column(elem_classes="plain") as panel:
        gr.HTML(fragments.heading("What they learn from", "Questions with answers; held-out rows are never used."))
        names = gr.CheckboxGroup(sorted(tasks()), label="Training tasks")
        with gr.Row(elem_classes="by-shares"):
            shares = [
                gr.Number(
                    1,
                    label=f"Share of {name}",
                    minimum=0.01,
                    maximum=MOST_SHARE,
                    step=0.5,
                    visible=False,
                    min_width=110,
                )
                for name in sorted(tasks())
            ]
        with gr.Accordion("Rows of your own", open=False):
            about = 'One JSON object a line: {"prompt": "…", "answer": "…"}'
            file = gr.File(label="Rows (JSONL)", file_types=[".jsonl", ".json", ".txt"], height=120)
            gr.HTML(fragments.subtle(about))
            file_share = gr.Number(1, label="Share of your rows", minimum=0.01, maximum=MOST_SHARE, step=0.5)
        gr.HTML(fragments.heading("The gates"))
        fields = {**GateConfig.model_fields, **TrainConfig.model_fields}
        values = [controls.field_control(name, fields[name]) for name in GATES]
        with gr.Row():
            values += [controls.field_control(name, fields[name]) for name in TRAINING]
        with gr.Accordion("More about the training", open=False), gr.Row():
            values += [controls.field_control(name, fields[name]) for name in SELDOM]
        name = gr.Textbox(
            label="Name of the gates", placeholder="named after what they are", max_length=making.NAME_LIMIT
        )
        cost = gr.HTML(label="Expected time")
        with gr.Row():
            run_button = gr.Button("Train", variant="primary")
            stop = gr.Button("Stop training", visible=False)
    return panel, sources, names, shares, file, file_share, values, name, cost, run_button, stop


def create_charts() -> tuple[Any, ...]:
    """Above the trained gates: progress and the live pictures, while and after gates are trained."""
    with gr.Column(visible=False) as charts:
        progress = gr.HTML(label="Training progress")
        with gr.Row(visible=False) as pictures:
            plain: dict[str, Any] = {"show_label": False, "container": False, "min_width": 260}
            curves = gr.Plot(label="Training curves", elem_id="curves", **plain)
            choices = gr.Plot(label="Gates now", elem_id="gates-now", **plain)
    return charts, progress, pictures, curves, choices


def read(session: Session, values: tuple[Any, ...]) -> GateRecipe:
    """The recipe that the section's components stand for.

    Raises:
        AdapterError: naming the setting that is wrong.
    """
    count = len(tasks())
    names, file, file_share, *rest = values
    shares = dict(zip(sorted(tasks()), rest[:count], strict=True))
    data = gating.task_rows(names or [], shares)
    if file:
        data.append({"rows": str(uploads.receive_rows(file)), "share": file_share})
    given = dict(zip((*GATES, *TRAINING, *SELDOM), rest[count:], strict=True))
    training = {name: given[name] for name in (*TRAINING, *SELDOM)}
    keys = [pick.key for pick in session.picks]
    return gating.recipe_of(keys, data, {name: given[name] for name in GATES}, training)


def sources(session: Session) -> str:
    """What will be mixed: the picked LoRAs."""
    title = fragments.heading(
        "What is mixed", "The picked LoRAs stay as they are; only the gates learn how to weigh them."
    )
    groups = gating.groups_of(session, [pick.key for pick in session.picks], shelf(session))
    if not groups:
        return title + fragments.empty("Nothing is picked", "Pick at least two LoRAs in the Library.")
    return title + fragments.legend((group.name, (group.slot or 0,)) for group in groups)


def offer(session: Session) -> tuple[Any, ...]:
    """Say what will be mixed, and tick the tasks of the picked LoRAs; where it is pictures, that this is not here yet."""
    entries = shelf(session)
    fitting = [examples.task_of(entries[pick.key]) for pick in session.picks]
    chosen = [task for task in dict.fromkeys(fitting) if task]
    draws = kinds.of_base(session.base) == kinds.IMAGE
    shown = sources(session) + (fragments.note(NOT_YET) if draws else "")
    return gr.Column(visible=not draws), shown, gr.CheckboxGroup(value=chosen), *show_shares(chosen)


def show_shares(names: list[str]) -> list[Any]:
    """A number for every ticked task, once there are two."""
    return [gr.Number(visible=name in names and len(names) > 1) for name in sorted(tasks())]


def estimate(session: Session, *values: Any) -> Iterator[str]:
    """What the training would cost; what stands in its way is said here too, quietly."""
    if kinds.of_base(session.base) == kinds.IMAGE:
        return
    if device.lends():  # measuring would take a GPU each time
        return
    try:
        recipe, keys = read(session, values), tuple(pick.key for pick in session.picks)
        coming = loading(session.base)
        for _ in coming.watch():
            yield awaited(coming)
        yield fragments.subtle(gating.told_cost(gating.cost(session.base, keys, recipe), recipe))
    except AdapterError as error:
        yield fragments.note(str(error))


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gr.Button(interactive=not busy), gr.Button("Stop training", visible=busy, interactive=True)


def start() -> tuple[Any, ...]:
    """A ticket by which Stop finds this training, and a sign that it is coming."""
    coming = fragments.progress("Waiting for its turn", None)
    return uuid.uuid4().hex, gr.Column(visible=True), coming, *_buttons(busy=True)


@told
def run(session: Session, ticket: str, name: str, *values: Any) -> Iterator[tuple]:
    """Train gates, drawing every step; when it ends, however it ends, what was learned is kept."""
    busy = _buttons(busy=True)
    try:
        recipe, stop = read(session, values), stop_of(ticket)
        coming = loading(session.base)
        for _ in coming.watch():
            yield awaited(coming), gr.skip(), gr.skip(), gr.skip(), None, *busy
        yield fragments.progress("Reading the rows", None), gr.skip(), gr.skip(), gr.skip(), None, *busy
        training = begin(coming.base(), [pick.key for pick in session.picks], recipe)
        rows = [gating.place_of(site.name) for site in training.gates.sites]
        groups = gating.groups_of(session, training.gates.columns, shelf(session))
        history, last, drawn = gating.History(len(groups), len(training.keys)), None, 0.0
        yield fragments.progress("Looking at samples, then the first step", None), *(gr.skip(),) * 3, None, *busy
        for last in training.run(stop):
            if last.stopped is None:
                history.add(last)
            if monotonic() - drawn > REDRAWN or last.step == last.steps:
                drawn = monotonic()
                yield (
                    gating.line_of(last, history.began),
                    gr.Row(visible=True),
                    *_drawn(history, last, rows, groups),
                    None,
                    *busy,
                )
        yield *ended(training, last, recipe, session, name), *_buttons(busy=False)
    finally:
        forget(ticket)


def _drawn(history: gating.History, last: Progress, rows: list[str], groups: list[figures.Group]) -> tuple[Any, Any]:
    return history.chart(last.steps), figures.gate_map(rows, groups, last.shares.numpy(), "Choices in this step")


def ended(
    training: Training | LentTraining, last: Progress | None, recipe: GateRecipe, session: Session, name: str
) -> tuple[str, Any, Any, Any, Gating | None]:
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
    return warning + text, gr.skip(), gr.skip(), gr.skip(), as_gating(found, session.base, shown)


def stopping(ticket: str) -> tuple[str, Any]:
    """Let the training end after its current step."""
    stop_of(ticket).set()
    return fragments.progress("Stopping after this step", None), gr.Button("Stopping", interactive=False)


def failed() -> tuple[Any, ...]:
    """Set the buttons back after an error."""
    return "", *_buttons(busy=False)


def wire(box: TrainBox, session: gr.State, entered: Any) -> Any:
    """Connect the section's events; gives the event after which newly trained gates wait in ``made``."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    session.change(offer, [session], [box.panel, box.sources, box.tasks, *box.shares], **private)
    box.tasks.input(show_shares, [box.tasks], box.shares, **private)
    costly = {**private, "concurrency_limit": 2, "concurrency_id": "estimate"}
    asked = [session, *box.settings]
    entered.then(estimate, asked, [box.cost], **costly)
    changed = [component.input for component in (box.tasks, box.file_share, *box.shares, *box.values)]
    changed += [box.file.upload, box.file.clear]
    gr.on(changed, estimate, asked, [box.cost], trigger_mode="always_last", **costly)
    clicked = box.run.click(start, None, [box.ticket, box.charts, box.progress, box.run, box.stop], **private)
    one = {**private, "concurrency_limit": 1, "concurrency_id": "training"}
    running = clicked.then(run, [session, box.ticket, box.name, *box.settings], box.running, **one)
    queueing.follow(clicked.then, "training", box.progress)
    running.failure(failed, None, [box.progress, box.run, box.stop], **private)
    box.stop.click(stopping, [box.ticket], [box.progress, box.stop], **private)
    return running
