"""The Gate tab: train gates over the picked LoRAs; see what every gate chooses for a prompt, and mask LoRAs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from backends import gates as store
from backends.image import Drawing
from components import charts, fragments, kinds, queueing
from components.compare import examples, export
from components.compare import tab as compare
from components.compare.drawing import MOST_STEPS, read
from components.events import ALONE, LAST, MODEL, PRIVATE, heard, newest
from components.followed import Followed
from components.following import Ticks
from components.gate import adding, choosing, gating, training
from components.gate.adding import AddBox
from components.gate.training import TrainBox
from components.library.shelf import gates_of, shelf
from components.messages import told
from components.session.state import Gating, Session, without
from components.work import forget, loading, stop_of
from lego import AdapterError

NOTHING = fragments.empty(
    "No trained gates yet", "Train some with the settings beside this, or add a folder or files below."
)
SEEDS = 2**31


@dataclass(frozen=True)
class GateTab:
    """The components of the tab that events need."""

    train: TrainBox
    shown: gr.Dropdown
    download: gr.DownloadButton
    about: gr.HTML
    looking: gr.Column
    prompt: gr.Textbox
    other: gr.Textbox
    look: gr.Button
    stop: gr.Button
    view: gr.Radio
    painting: gr.Row
    steps: gr.Slider
    seed: gr.Number
    progress: gr.HTML
    plots: list[charts.Chart]
    masks: gr.CheckboxGroup
    answers: gr.HTML
    keep: gr.Button
    add: AddBox
    visited: gr.State
    seen: gr.State
    gated: gr.State

    @property
    def asked(self) -> list[Any]:
        """What ``look`` reads beside the session, in its order."""
        prompts = [self.prompt, self.other, self.view]
        return [self.visited, self.seen, self.shown, *prompts, self.masks, self.steps, self.seed]

    @property
    def pictures(self) -> list[Any]:
        """What ``look`` fills."""
        return [self.progress, *self.plots, self.answers, self.seen, self.stop]


def create() -> GateTab:
    """Lay the tab out; nothing is wired yet."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            settings = training.create_settings()
        with gr.Column(scale=3, min_width=320):
            charts = training.create_charts()
            parts = _chosen()
            add = adding.create()
    box = TrainBox(*settings, *charts, gr.State(""), gr.State(None))
    return GateTab(box, *parts, add, gr.State(False), gr.State(None), gr.State(None))


def _chosen() -> tuple[Any, ...]:
    gr.HTML(fragments.heading("What the gates choose", "How far each gate trusts each LoRA, for prompts of your own."))
    with gr.Row(elem_classes="by-bottom"):
        shown = gr.Dropdown([], label="Trained gates", interactive=True, min_width=200, scale=3)
        download = gr.DownloadButton("Download gates (zip)", interactive=False, min_width=160, scale=2)
    about = gr.HTML(NOTHING, label="About the gates")
    with gr.Column(visible=False, elem_classes="plain") as looking:
        parts = _looking()
    return shown, download, about, looking, *parts


def _looking() -> tuple[Any, ...]:
    with gr.Row():
        limit: dict[str, Any] = {"lines": 2, "max_lines": 4, "max_length": compare.PROMPT_LENGTH, "min_width": 220}
        prompt = gr.Textbox("", label="Prompt for the gates", **limit)
        other = gr.Textbox("", label="Another prompt", placeholder="to see how choices change; may stay empty", **limit)
    with gr.Row(elem_classes="by-actions"):
        look = gr.Button("Show choices", scale=0, min_width=150)
        ways = [choosing.BESIDE, choosing.DIFFERENCE]
        view = gr.Radio(ways, value=choosing.BESIDE, label="Show the other prompt", min_width=250)
        stop = gr.Button("Stop looking", visible=False, scale=0, min_width=150)
    with gr.Row(visible=False) as painting:
        steps = gr.Slider(1, MOST_STEPS, Drawing().steps, step=1, label="Steps of the pictures", min_width=240)
        seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, maximum=SEEDS, min_width=120)
    progress = gr.HTML()
    with gr.Row(elem_classes="by-charts"):
        plots = [charts.create("Choices", elem_id="choices", min_width=260)]
        plots.append(charts.create("Choices for the other prompt", elem_id="other-choices", min_width=260))
    with gr.Row(elem_classes="by-charts"):
        plots.append(charts.create("Choices step by step", elem_id="course", min_width=360))
        plots.append(charts.create("The other prompt's step by step", elem_id="other-course", min_width=360))
    info = "Tick what the gates may not use: the others share its weight, and what comes without it appears at once."
    masks = Ticks([], label="Mask LoRAs", info=info)
    answers = gr.HTML(label="Answers of the gates")
    keep = gr.Button("Add this mask to Compare", visible=False, scale=0)
    return prompt, other, look, stop, view, painting, steps, seed, progress, plots, masks, answers, keep


def refresh(session: Session, shown: str | None, masked: list[str]) -> tuple[Any, ...]:
    """Offer the session's gates; say what the chosen ones are, and what can be masked."""
    session = kinds.own(session)
    keys = [found.key for found in reversed(session.gates)]
    if not keys:
        no_file = gr.DownloadButton(interactive=False)
        return gr.Dropdown([], value=None), NOTHING, gr.Column(visible=False), gr.skip(), no_file
    mine = gates_of(session, shown if shown in keys else keys[0])
    found, entries = store.entry(mine.key), shelf(session)
    groups = gating.groups_of(session, gating.columns_of(found), entries)
    names = [(group.name, key) for group, key in zip(groups, gating.columns_of(found), strict=True)]
    kept = [key for _, key in names if key in masked]
    return (
        gr.Dropdown([(each.name, each.key) for each in reversed(session.gates)], value=mine.key),
        gating.described(session, found, mine, entries),
        gr.Column(visible=True),
        gr.CheckboxGroup(names, value=kept),
        gr.DownloadButton(value=str(export.gates_zip(found, mine.name)), interactive=True),
    )


def enter(session: Session, prompt: str, other: str) -> tuple[bool, str, str]:
    """The tab is looked at: from now on it is kept up to date. Two prompts of different tasks stand ready."""
    if prompt.strip() or other.strip():
        return True, prompt, other
    lines = [line.replace("\\n", "\n") for line in examples.first(session).splitlines()]
    return True, *[*lines, "", ""][:2]


def gated(session: Session, visited: bool) -> tuple[Any, ...] | None:
    """What the gates' choices depend on: the rest of a session may change without looking again. None before the first look."""
    return (session.base, session.picks, kinds.own(session).gates) if visited else None


@told
def look(
    session: Session,
    visited: bool,
    seen: tuple | None,
    shown: str | None,
    prompt: str,
    other: str,
    view: str,
    masked: list[str],
    steps: int,
    seed: float | None,
    request: gr.Request,
) -> Iterator[tuple]:
    """Show what the gates choose for the prompts, and let them answer, with all LoRAs and without the masked ones."""
    session, silent = kinds.own(session), (*choosing.NOTHING, gr.skip())
    busy, idle = gr.Button(visible=True), gr.Button(visible=False)
    prompts = [text.strip() for text in (prompt, other) if text.strip()]
    asked = (session.base, session.picks, shown, tuple(prompts), view, tuple(sorted(masked)), steps, seed)
    if seen is not None and seen[0] == asked:
        yield seen[1], *silent, gr.skip(), gr.skip()  # over the place in the queue
        return
    if not visited or not session.gates:
        yield "", *silent, gr.skip(), gr.skip()  # a generator that yields nothing would empty what is shown
        return
    if not prompts:
        line = fragments.subtle("Write a prompt to see what the gates choose for it.")
        yield line, *silent, (asked, line), gr.skip()
        return
    compare.check_prompts(prompts)
    mine = gates_of(session, shown)
    found = store.entry(mine.key)
    if mine.base != session.base:
        need = f"These gates need the base {found.saved.base.id}: choose it in the Library to see what they choose."
        line = fragments.subtle(need)
        yield line, *silent, (asked, line), gr.skip()
        return
    mask = gating.checked_mask(found, masked)
    coming = loading(session.base)
    for _ in coming.watch():
        yield compare.awaited(coming), *silent, gr.skip(), gr.skip()
    ticket = _ticket(request)
    stop = stop_of(ticket)
    stop.clear()  # one that came after the end of what it was for
    given = choosing.Asked(session, mine, found, mask, prompts, view, stop)
    if coming.base().info.kind == kinds.IMAGE:
        states = choosing.drawn(given, read(steps, None, str(int(seed or 0)), "", "", ""))
    else:
        states = choosing.written(given)
    try:
        for line, plots, answers in states:
            yield line, *plots, answers, gr.skip(), busy
    finally:
        forget(ticket)
    # Shown once more: of two values that come at once the page may lose a plot.
    yield line, *plots, answers, (asked, line), idle


def _ticket(request: gr.Request) -> str:
    return f"look {request.session_hash}"


def stopping(request: gr.Request) -> None:
    """Let what the gates choose end where it is; it says so itself."""
    stop_of(_ticket(request)).set()


def failed() -> tuple[Any, ...]:
    """Set line and button back after an error."""
    return "", gr.Button(visible=False)


def turn(session: Session) -> Any:
    """How pictures are drawn, where the base draws."""
    return gr.Row(visible=kinds.of_base(session.base) == kinds.IMAGE)


def offer_mask(masked: list[str]) -> Any:
    """A mask that was chosen can be kept as a variant."""
    return gr.Button(visible=bool(masked))


@told
def keep(session: Session, shown: str | None, masked: list[str]) -> Session:
    """Let the gates without the masked LoRAs join the variants."""
    mine = gates_of(session, shown)
    mask = gating.checked_mask(store.entry(mine.key), masked)
    if not mask:
        raise AdapterError("nothing is masked", None, "Tick a LoRA first.")
    gr.Info(f"“{mine.name} {without(session, mask, shelf(session))}” joined the variants.")
    return session.mask(mine.key, mask)


def finish(session: Session, made: Gating | None) -> tuple[Session, Any]:
    """Let newly trained or added gates join the session, and show them."""
    if made is None:
        return session, gr.skip()
    session = session.gate(made)
    return session, gr.Dropdown([(each.name, each.key) for each in reversed(session.gates)], value=made.key)


def wire(tab: GateTab, session: Followed, selected: Any, settled: Followed) -> None:
    """Connect the tab's events; ``selected`` fires when the tab is opened, ``settled`` changes when the base is there."""
    asked = [session, *tab.asked]
    prompts = [tab.prompt, tab.other]
    entered = selected(enter, [session, *prompts], [tab.visited, *prompts], **PRIVATE)
    trained = training.wire(tab.train, session, entered, settled)
    entered.then(turn, [session], [tab.painting], **PRIVATE)
    for followed in (session, settled):
        followed.follow(turn, [session], [tab.painting])
    trained.success(finish, [session, tab.train.made], [session, tab.shown], **ALONE)
    offered = [tab.shown, tab.about, tab.looking, tab.masks, tab.download]
    session.follow(refresh, [session, tab.shown, tab.masks], offered)
    session.follow(gated, [session, tab.visited], [tab.gated])
    chosen = newest([tab.shown.input], refresh, [session, tab.shown, tab.masks], offered)
    # Asked for outright, the same is shown anew. Otherwise it is not: what waits behind a look that is stopped would begin again.
    outright = gr.on([tab.look.click, tab.prompt.submit, tab.other.submit], lambda: None, None, [tab.seen], **PRIVATE)
    changes = [tab.view.input, tab.masks.input, tab.steps.release, tab.seed.submit]
    looked: list[Callable[..., Any]] = [entered.then, tab.gated.change, chosen.then, partial(outright.then, **LAST)]
    for listen in (*looked, partial(heard(changes).then, **LAST)):
        listen(look, asked, tab.pictures, **MODEL).failure(failed, None, [tab.progress, tab.stop], **PRIVATE)
        queueing.follow(listen, "model", tab.progress)
    tab.stop.click(stopping, None, None, **PRIVATE)
    tab.masks.change(offer_mask, [tab.masks], [tab.keep], **PRIVATE)
    tab.keep.click(keep, [session, tab.shown, tab.masks], [session], **ALONE)
    for added in adding.wire(tab.add, session):
        added.success(finish, [session, tab.add.made], [session, tab.shown], **ALONE)
