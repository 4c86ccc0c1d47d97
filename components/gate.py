"""The Gate tab: train gates over the picked LoRAs; see what every gate chooses for a prompt, and mask LoRAs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from backends import gates as store
from backends.gated import choices
from backends.gates import GateEntry
from backends.text import Sampling, generate
from components import adding, compare, comparison, examples, export, figures, fragments, gating, kinds, training
from components.adding import AddBox
from components.messages import told
from components.session import Column, Gating, Session, without
from components.shelf import gates_of, shelf
from components.training import TrainBox
from components.work import loading
from lego import AdapterError

ANSWER = 32
"""Tokens of an answer: enough to see what a mask changes."""
NOTHING = fragments.empty(
    "No trained gates yet", "Train some with the settings beside this, or add a folder or files below."
)
NONE_DRAW = fragments.empty("No trained gates for this base", "Add a folder or files of gates below.")
IN_PICTURES = "What gates choose while pictures are drawn is not shown here yet; their pictures are, in Compare."
BESIDE, DIFFERENCE = "beside the first", "as the difference"


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
    view: gr.Radio
    progress: gr.HTML
    first: gr.Plot
    second: gr.Plot
    masks: gr.CheckboxGroup
    answers: gr.HTML
    keep: gr.Button
    add: AddBox
    visited: gr.State
    seen: gr.State

    @property
    def asked(self) -> list[Any]:
        """What ``look`` reads beside the session, in its order."""
        return [self.visited, self.seen, self.shown, self.prompt, self.other, self.view, self.masks]

    @property
    def pictures(self) -> list[Any]:
        """What ``look`` fills."""
        return [self.progress, self.first, self.second, self.answers, self.seen]


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
    return GateTab(box, *parts, add, gr.State(False), gr.State(None))


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
        view = gr.Radio([BESIDE, DIFFERENCE], value=BESIDE, label="Show the other prompt", min_width=250)
    progress = gr.HTML()
    with gr.Row():
        plain: dict[str, Any] = {"show_label": False, "container": False, "min_width": 260, "visible": False}
        first = gr.Plot(label="Choices", elem_id="choices", **plain)
        second = gr.Plot(label="Choices for the other prompt", elem_id="other-choices", **plain)
    info = "Tick what the gates may not use: the others share its weight, and the answer without it appears at once."
    masks = gr.CheckboxGroup([], label="Mask LoRAs", info=info)
    answers = gr.HTML(label="Answers of the gates")
    keep = gr.Button("Add this mask to Compare", visible=False, scale=0)
    return prompt, other, look, view, progress, first, second, masks, answers, keep


def refresh(session: Session, shown: str | None, masked: list[str]) -> tuple[Any, ...]:
    """Offer the session's gates; say what the chosen ones are, and what can be masked."""
    session = kinds.own(session)
    keys = [found.key for found in reversed(session.gates)]
    if not keys:
        no_file = gr.DownloadButton(interactive=False)
        empty = NONE_DRAW if kinds.of_base(session.base) == kinds.IMAGE else NOTHING
        return gr.Dropdown([], value=None), empty, gr.Column(visible=False), gr.skip(), no_file
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
) -> Iterator[tuple]:
    """Show what the gates choose for the prompts, then let them answer, with all LoRAs and without the masked ones."""
    session = kinds.own(session)
    prompts = [text.strip() for text in (prompt, other) if text.strip()]
    asked = (session.base, session.picks, shown, tuple(prompts), view, tuple(sorted(masked)))
    if not visited or not session.gates or seen == asked:
        return
    if not prompts:
        yield fragments.subtle("Write a prompt to see what the gates choose for it."), *(gr.skip(),) * 3, asked
        return
    compare.check_prompts(prompts)
    mine = gates_of(session, shown)
    found = store.entry(mine.key)
    mask = gating.checked_mask(found, masked)
    coming = loading(session.base)
    for _ in coming.watch():
        yield compare.awaited(coming), *(gr.skip(),) * 4
    if coming.base().info.kind == kinds.IMAGE:
        yield fragments.subtle(IN_PICTURES), *(gr.skip(),) * 3, asked
        return
    yield fragments.progress("Asking the gates", None), *(gr.skip(),) * 4
    drawn = pictures(
        session, found, prompts, view, choices(coming.base(), found, prompts, mask, chats(session)).choices.numpy()
    )
    yield "", *drawn, gr.skip(), gr.skip()
    for answers in answered(session, mine, mask, prompts):
        yield "", gr.skip(), gr.skip(), answers, gr.skip()
    yield "", gr.skip(), gr.skip(), gr.skip(), asked


def chats(session: Session) -> bool:
    """Whether prompts are put into the base's chat template: where it has one."""
    return loading(session.base).base().has_chat_template


def pictures(
    session: Session, found: GateEntry, prompts: Sequence[str], view: str, chosen: np.ndarray
) -> tuple[Any, Any]:
    """The heat maps: of each prompt, or of how they differ; ``chosen`` is [gates, prompts, LoRAs]."""
    rows = [gating.place_of(site.name) for site in found.saved.sites]
    groups = gating.groups_of(session, gating.columns_of(found), shelf(session))
    if len(prompts) > 1 and view == DIFFERENCE:
        change = chosen[:, 1] - chosen[:, 0]
        title = "Other prompt less the first: how each gate's trust moves"
        return gr.Plot(figures.gate_changes(rows, groups, change, title), visible=True), gr.Plot(visible=False)
    titles = [escape(" ".join(text.split())[:48]) for text in prompts]
    maps = [figures.gate_map(rows, groups, chosen[:, i], title) for i, title in enumerate(titles)]
    return gr.Plot(maps[0], visible=True), gr.Plot(maps[1], visible=True) if len(maps) > 1 else gr.Plot(visible=False)


def answered(session: Session, mine: Gating, mask: tuple[str, ...], prompts: list[str]) -> Iterator[str]:
    """Answers as they grow, in one batch: with all LoRAs, and without the masked ones beside them."""
    shown = [Column("all", "With all", mine.weighting(), session.slots(mine.experts))]
    if mask:
        kept = tuple(key for key in mine.experts if key not in mask)
        name = without(session, mask, shelf(session))
        shown.append(Column("masked", name.replace("without", "Without", 1), mine.weighting(mask), session.slots(kept)))
    wanted = Sampling(max_new_tokens=ANSWER, chat=chats(session))
    found = comparison.begin(session.base, shown, prompts, compare.settings_of(wanted))
    base = loading(session.base).base()
    for grid in generate(base, [column.variant for column in shown], prompts, wanted):
        found = found.filled(grid)
        yield comparison.draw(found, marks=True, running=True, against="With all")
    yield comparison.draw(found, marks=True, against="With all")


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


def wire(tab: GateTab, session: gr.State, selected: Any) -> None:
    """Connect the tab's events; ``selected`` fires when the tab is opened."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    quick = {**private, "concurrency_limit": 1, "concurrency_id": "session"}
    model = {**private, "concurrency_limit": 1, "concurrency_id": "model"}
    asked = [session, *tab.asked]
    prompts = [tab.prompt, tab.other]
    entered = selected(enter, [session, *prompts], [tab.visited, *prompts], **private)
    entered.then(look, asked, tab.pictures, **model)
    trained = training.wire(tab.train, session, entered)
    trained.success(finish, [session, tab.train.made], [session, tab.shown], **quick)
    offered = [tab.shown, tab.about, tab.looking, tab.masks, tab.download]
    changed = session.change(refresh, [session, tab.shown, tab.masks], offered, **private)
    changed.then(look, asked, tab.pictures, **model)
    chosen = tab.shown.input(refresh, [session, tab.shown, tab.masks], offered, **private)
    chosen.then(look, asked, tab.pictures, **model)
    showing = [tab.look.click, tab.prompt.submit, tab.other.submit, tab.view.input, tab.masks.input]
    gr.on(showing, look, asked, tab.pictures, trigger_mode="always_last", **model)
    tab.masks.change(offer_mask, [tab.masks], [tab.keep], **private)
    tab.keep.click(keep, [session, tab.shown, tab.masks], [session], **quick)
    for added in adding.wire(tab.add, session):
        added.success(finish, [session, tab.add.made], [session, tab.shown], **quick)
