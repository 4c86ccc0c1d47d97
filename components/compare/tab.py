"""The Compare tab as it is laid out, and what it takes: variants or axes, prompts, settings. What it does is in `comparing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends.text import Sampling
from components import fragments, kinds
from components.compare import axes_box, blind, drawing
from components.compare.axes_box import AxesBox
from components.compare.blind import BlindBox
from components.compare.drawing import DrawBox
from components.following import Choice, Ticks
from components.library.shelf import shelf
from components.session.state import LORA, MERGE, Column, Session, columns
from components.work import Loading
from lego import AdapterError
from mole.gate import BASE

MOST_PROMPTS, PROMPT_LENGTH, MOST_TOKENS, MOST_ROWS = 16, 2000, 512, 96
LENGTH = 32
"""Tokens of an answer at most, unless someone chooses."""
REPORT = "report-file"
VARIANTS, AXES = "variants", "axes"
MODES = [("Side by side", VARIANTS), ("Any two axes", AXES)]
NOTHING = ("nothing", "")
IDLE = fragments.empty(
    "Nothing compared yet", "Choose variants and prompts and press Compare: they answer side by side."
)

CHIPS_SCRIPT = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-index]');
  if (chip) trigger('example', {index: Number(chip.dataset.index)});
});
"""


@dataclass(frozen=True)
class CompareTab:
    """The components of the tab that events need."""

    mode: gr.Radio
    variants: gr.CheckboxGroup
    known: gr.JSON
    axes: AxesBox
    examples: gr.HTML
    prompts: gr.Textbox
    length: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    format: gr.Radio
    run: gr.Button
    stop: gr.Button
    against: gr.Dropdown
    save_json: gr.DownloadButton
    save_html: gr.DownloadButton
    expected: gr.HTML
    progress: gr.HTML
    grid: gr.HTML
    found: gr.State
    recipe: gr.State
    scores: gr.State
    writing: gr.Column
    draw: DrawBox
    stamp: gr.Checkbox
    hidden: gr.Checkbox
    blind: BlindBox
    make_report: gr.Button
    report: gr.DownloadButton
    reporting: gr.HTML

    @property
    def settings(self) -> list[Any]:
        """What ``start`` reads beside the session, in its order."""
        texts = [self.length, self.temperature, self.seed, self.format]
        chosen = [self.mode, self.variants, *self.axes.settings, self.prompts]
        return [*chosen, *texts, self.against, self.hidden, self.scores, *self.draw.settings]

    @property
    def kept(self) -> list[Any]:
        """What a recipe and undo bring back, beside the variants."""
        texts = [self.length, self.temperature, self.seed, self.format]
        return [self.prompts, self.mode, *self.axes.settings, *texts, *self.draw.settings[:-1]]

    @property
    def following(self) -> list[Any]:
        """What ``comparing.follow`` fills."""
        return [self.variants, self.known, self.examples, *self.axes.offered, *self.turned]

    @property
    def turned(self) -> list[Any]:
        """What ``turn`` fills."""
        return [self.writing, self.draw.panel, self.against, self.save_json, self.save_html, *self.draw.own]

    @property
    def running(self) -> list[Any]:
        """What ``start`` fills."""
        shown = [self.progress, self.grid, self.found, self.against, self.blind.ballot, self.blind.judged, self.recipe]
        return [*shown, self.run, self.stop]


def create() -> CompareTab:
    """Lay the tab out; nothing is wired yet."""
    mode = gr.Radio(MODES, value=VARIANTS, label="What to compare", container=False, elem_classes="by-bare")
    variants = Ticks([], label="Variants", info="One column each.")
    # On the page beside what it tells of, not a State: that would be read when an event runs, they when it was asked for.
    known = gr.JSON([], visible="hidden")
    axes = axes_box.create()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            info, most = "One a line; \\n breaks a line inside a prompt.", MOST_PROMPTS * PROMPT_LENGTH
            prompts = gr.Textbox(label="Prompts", lines=4, max_lines=10, info=info, max_length=most)
            chips = gr.HTML(js_on_load=CHIPS_SCRIPT, label="Example prompts")
        with gr.Column(scale=2, min_width=300) as writing:
            with gr.Row():
                length = gr.Slider(
                    4, MOST_TOKENS, LENGTH, step=4, label="Length", info="Most tokens per answer.", min_width=200
                )
                info = "0 takes the likeliest word."
                temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info=info, min_width=200)
            with gr.Row():
                info = "Shared by all columns."
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, info=info, min_width=200)
                info = "Raw continues the text."
                form = gr.Radio(["chat", "raw"], value="chat", label="Prompt format", info=info, min_width=200)
        draw = drawing.create()
    with gr.Row(elem_classes="by-actions by-launch"):
        run_button = gr.Button("Compare", variant="primary", scale=0, min_width=150)
        stop = gr.Button("Stop comparing", visible=False, scale=0, min_width=170)
        bare: dict[str, Any] = {"container": False, "scale": 0, "min_width": 190, "elem_classes": "by-bare"}
        hidden = gr.Checkbox(False, label="Judge blind", **bare)
        expected = gr.HTML(label="Expected time", elem_classes="by-expected")
    progress = gr.HTML(elem_classes="by-said", js_on_load=fragments.HALT)
    with gr.Row(elem_classes="by-marks"):
        against = Choice(
            [NOTHING, "Base"], value="Base", label="Mark differences to", filterable=False, scale=0, min_width=380
        )
    grid = gr.HTML(IDLE, label="Comparison")
    judging = blind.create()
    with gr.Row(elem_classes="by-actions"):
        save_json = gr.DownloadButton("Export JSON", interactive=False, scale=0, min_width=150)
        save_html = gr.DownloadButton("Export HTML", interactive=False, scale=0, min_width=150)
        stamp = gr.Checkbox(True, label="Recipe in the files", **bare)
        kept = (
            gr.Button("Make a report", scale=0, min_width=150),
            gr.DownloadButton("Report (HTML)", visible=False, scale=0, elem_id=REPORT),
            gr.HTML(render=False, label="Report", js_on_load=fragments.HALT),
        )
    kept[-1].render()
    settings = mode, variants, known, axes, chips, prompts, length, temperature, seed, form
    actions = run_button, stop, against, save_json, save_html
    states = gr.State(None), gr.State(None), gr.State(())
    return CompareTab(
        *settings, *actions, expected, progress, grid, *states, writing, draw, stamp, hidden, judging, *kept
    )


def turn(session: Session, suited: str | None) -> tuple[Any, ...]:
    """Show the settings of what the session's base makes, texts or pictures, and those that suit it."""
    draws = kinds.of_base(session.base) == kinds.IMAGE
    names = ("Sheet (PNG)", "Pictures (zip)") if draws else ("Export JSON", "Export HTML")
    files = (gr.DownloadButton(name) for name in names)
    writing, drawn = gr.Column(visible=not draws), gr.Column(visible=draws)
    return writing, drawn, gr.Dropdown(visible=not draws), *files, *drawing.suit(session.base, suited)


def usual(found: list[Column]) -> list[str]:
    """The variants that are compared unless someone chooses: all but the average."""
    return [column.id for column in found if column.id != "average"]


def refresh(session: Session, chosen: Sequence[str], known: Sequence[str]) -> tuple[Any, list[str]]:
    """Offer the session's variants: what was chosen stays, what is new is chosen too."""
    found = columns(kinds.own(session), shelf(session))
    return offer(found, chosen_of(found, chosen, known))


def chosen_of(found: list[Column], chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    """The ids of the variants that are compared.

    Args:
        found: every variant of a session.
        chosen: ids, among
        known: those that were on offer; others are new, and chosen if they are among the usual. Where other adapters are picked than
            then, what was made of those that are gone is not chosen any more.
    """
    new, picked = set(usual(found)) - set(known), {column.id: column for column in found if column.id.startswith(LORA)}
    same = picked.keys() == {each for each in known if each.startswith(LORA)}
    slots = {slot for column in picked.values() for slot in column.slots}

    def stays(column: Column) -> bool:
        if column.id.startswith(MERGE):
            return set(column.slots) <= slots
        return all(f"{LORA}{key}" in picked or key == BASE for key, _ in column.weighting.adapters)

    return [each.id for each in found if each.id in new or (each.id in chosen and (same or stays(each)))]


def offer(found: list[Column], chosen: Sequence[str]) -> tuple[Any, list[str]]:
    """The boxes of the variants with the chosen ones ticked, and which variants are known from now on."""
    known = [column.id for column in found]
    return gr.CheckboxGroup([(column.name, column.id) for column in found], value=list(chosen)), known


def read_prompts(text: str) -> list[str]:
    """The prompts of the box: one a line, ``\\n`` breaks a line inside one.

    Raises:
        AdapterError: when there is none, too many, or one too long.
    """
    prompts = [line.replace("\\n", "\n").strip() for line in text.splitlines() if line.strip()]
    check_prompts(prompts)
    return prompts


def check_prompts(prompts: list[str]) -> None:
    """Refuse no prompts, too many, or too long ones.

    Raises:
        AdapterError: with the limit.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise AdapterError("there is no prompt", None, "Write at least one.")
    if len(prompts) > MOST_PROMPTS:
        raise AdapterError(f"{len(prompts)} prompts are too many", None, f"Give at most {MOST_PROMPTS}.")
    if longest := max((len(prompt) for prompt in prompts if len(prompt) > PROMPT_LENGTH), default=0):
        raise AdapterError(f"a prompt has {longest} characters", None, f"Give at most {PROMPT_LENGTH}.")


def chosen_columns(session: Session, ids: Sequence[str], rows: int) -> list[Column]:
    """The session's variants with these ids, in the session's order.

    Raises:
        AdapterError: when none is chosen, or variants × rows is more than one run takes.
    """
    found = [column for column in columns(kinds.own(session), shelf(session)) if column.id in ids]
    if not found:
        raise AdapterError("no variants are chosen", None, "Tick at least one.")
    if len(found) * rows > MOST_ROWS:
        raise AdapterError(
            f"{len(found)} variants × {rows} prompts are too many", None, f"One run takes {MOST_ROWS} texts."
        )
    return found


def sampling(length: float, temperature: float, seed: float | None, form: str) -> Sampling:
    """Settings as the backend takes them, inside the page's limits."""
    tokens = max(1, min(MOST_TOKENS, int(length)))
    return Sampling(
        max_new_tokens=tokens, temperature=max(0.0, float(temperature)), seed=int(seed or 0), chat=form != "raw"
    )


def settings_of(chosen: Sampling) -> dict[str, Any]:
    """Settings as an export and a page show them."""
    form = "chat" if chosen.chat else "raw"
    return {"length": chosen.max_new_tokens, "temperature": chosen.temperature, "seed": chosen.seed, "format": form}


def awaited(coming: Loading, halt: bool = False) -> str:
    """How far the base is that a run waits for."""
    return fragments.progress(f"Waiting for the base model: {coming.line}", coming.fraction, halt)
