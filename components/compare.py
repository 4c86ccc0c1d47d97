"""The Compare tab: variants as columns, prompts as rows, texts or pictures streaming in, what differs from the base marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends.text import Sampling, generate
from components import comparison, drawing, examples, export, fragments, kinds, pictures, queueing
from components.comparison import Comparison
from components.drawing import DrawBox
from components.gallery import Gallery
from components.messages import told
from components.session import Column, Session, columns
from components.shelf import shelf
from components.work import Loading, loading
from lego import AdapterError

MOST_PROMPTS, PROMPT_LENGTH, MOST_TOKENS, MOST_ROWS = 16, 2000, 512, 96
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

    variants: gr.CheckboxGroup
    examples: gr.HTML
    prompts: gr.Textbox
    length: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    format: gr.Radio
    run: gr.Button
    stop: gr.Button
    marks: gr.Checkbox
    save_json: gr.DownloadButton
    save_html: gr.DownloadButton
    progress: gr.HTML
    grid: gr.HTML
    found: gr.State
    writing: gr.Column
    draw: DrawBox
    stamp: gr.Checkbox

    @property
    def settings(self) -> list[Any]:
        """What ``start`` reads beside the session, in its order."""
        texts = [self.length, self.temperature, self.seed, self.format, self.marks]
        return [self.variants, self.prompts, *texts, *self.draw.settings]

    @property
    def running(self) -> list[Any]:
        """What ``start`` fills."""
        return [self.progress, self.grid, self.found, self.run, self.stop]


def create() -> CompareTab:
    """Lay the tab out; nothing is wired yet."""
    variants = gr.CheckboxGroup([], label="Variants", info="One column each.")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            info, most = "One a line; \\n breaks a line inside a prompt.", MOST_PROMPTS * PROMPT_LENGTH
            prompts = gr.Textbox(label="Prompts", lines=4, max_lines=10, info=info, max_length=most)
            chips = gr.HTML(js_on_load=CHIPS_SCRIPT, label="Example prompts")
        with gr.Column(scale=2, min_width=300) as writing:
            with gr.Row():
                length = gr.Slider(
                    4, MOST_TOKENS, 32, step=4, label="Length", info="Most tokens per answer.", min_width=200
                )
                info = "0 takes the likeliest word."
                temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info=info, min_width=200)
            with gr.Row():
                info = "Shared by all columns."
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, info=info, min_width=200)
                info = "Raw continues the text."
                form = gr.Radio(["chat", "raw"], value="chat", label="Prompt format", info=info, min_width=200)
        draw = drawing.create()
    with gr.Row(elem_classes="by-actions"):
        run_button = gr.Button("Compare", variant="primary", scale=0, min_width=150)
        stop = gr.Button("Stop comparing", visible=False, scale=0, min_width=170)
        save_json = gr.DownloadButton("Export JSON", interactive=False, scale=0, min_width=150)
        save_html = gr.DownloadButton("Export HTML", interactive=False, scale=0, min_width=150)
        bare: dict[str, Any] = {"container": False, "min_width": 240, "elem_classes": "by-bare"}
        marks = gr.Checkbox(True, label="Mark differences to the base", **bare)
        stamp = gr.Checkbox(True, label="Recipe in the files", visible=False, **bare)
    progress, grid = gr.HTML(), gr.HTML(IDLE, label="Comparison")
    settings = variants, chips, prompts, length, temperature, seed, form
    actions = run_button, stop, marks, save_json, save_html
    return CompareTab(*settings, *actions, progress, grid, gr.State(None), writing, draw, stamp)


def turn(session: Session, suited: str | None) -> tuple[Any, ...]:
    """Show the settings of what the session's base makes, texts or pictures, and those that suit it."""
    draws = kinds.of_base(session.base) == kinds.IMAGE
    names = ("Sheet (PNG)", "Pictures (zip)") if draws else ("Export JSON", "Export HTML")
    files = (gr.DownloadButton(name) for name in names)
    writing, drawn = gr.Column(visible=not draws), gr.Column(visible=draws)
    marks, stamp = gr.Checkbox(visible=not draws), gr.Checkbox(visible=draws)
    return writing, drawn, marks, stamp, *files, *drawing.suit(session.base, suited)


def usual(found: list[Column]) -> list[str]:
    """The variants that are compared unless someone chooses: all but the average."""
    return [column.id for column in found if column.id != "average"]


def refresh(session: Session, chosen: list[str], known: list[tuple[str, str]] | None) -> tuple[Any, list[str]]:
    """Offer the session's variants: what was chosen stays, what is new is chosen too."""
    found = columns(kinds.own(session), shelf(session))
    before = set(known or [])
    value = [c.id for c in found if (c.id in chosen if c.id in before else c.id in usual(found))]
    return gr.CheckboxGroup([(column.name, column.id) for column in found], value=value), [
        column.id for column in found
    ]


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


def chosen_columns(session: Session, ids: list[str], rows: int) -> list[Column]:
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


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gr.Button(interactive=not busy), gr.Button(visible=busy)


def waiting() -> tuple[Any, ...]:
    """What is shown at once, however long others keep the model busy."""
    return fragments.progress("Waiting for the model", None), *_buttons(busy=True)


def awaited(coming: Loading) -> str:
    """How far the base is that a run waits for."""
    return fragments.progress(f"Waiting for the base model: {coming.text}", coming.fraction)


def _reached(found: Comparison, most: int) -> str:
    longest = max(count for row in found.tokens for count in row)
    return fragments.progress(f"token {longest} of at most {most}", longest / most)


@told
def start(session: Session, ids: list[str], text: str, *settings: Any) -> Iterator[tuple]:
    """Compare, once the base is there and it is known what it makes: texts or pictures."""
    prompts, coming, texts = read_prompts(text), loading(session.base), 5
    for _ in coming.watch():
        yield awaited(coming), gr.skip(), None, *_buttons(busy=True)
    if coming.base().info.kind != kinds.IMAGE:
        yield from run(session, ids, text, *settings[:texts])
        return
    *wanted, judge = settings[texts:]
    chosen, found = chosen_columns(session, ids, len(prompts)), None
    for line, found in drawing.run(session.base, chosen, prompts, drawing.read(*wanted), judge):
        yield line, pictures.draw(found, running=True), found, *_buttons(busy=True)
    yield line, pictures.draw(found), found, *_buttons(busy=False)


@told
def run(
    session: Session,
    ids: list[str],
    text: str,
    length: float,
    temperature: float,
    seed: float | None,
    form: str,
    marks: bool,
) -> Iterator[tuple]:
    """Let every chosen variant answer every prompt in one batch, and show the texts as they grow."""
    prompts = read_prompts(text)
    chosen = chosen_columns(session, ids, len(prompts))
    wanted = sampling(length, temperature, seed, form)
    coming = loading(session.base)
    for _ in coming.watch():
        yield awaited(coming), gr.skip(), None, *_buttons(busy=True)
    found = comparison.begin(session.base, chosen, prompts, settings_of(wanted))
    yield "", comparison.draw(found, marks, running=True), None, *_buttons(busy=True)
    for grid in generate(coming.base(), [column.variant for column in chosen], prompts, wanted):
        found = found.filled(grid)
        yield (
            _reached(found, wanted.max_new_tokens),
            comparison.draw(found, marks, running=True),
            found,
            *_buttons(busy=True),
        )
    done = f"{len(chosen)} variants × {len(prompts)} prompts in {found.seconds:.1f} s"
    yield fragments.subtle(done), comparison.draw(found, marks), found, *_buttons(busy=False)


Found = Comparison | Gallery | None


def ended(found: Found, marks: bool) -> tuple[Any, ...]:
    """After a stop or an error: keep what came, set the buttons back."""
    line = "" if found and found.finished else fragments.subtle("Stopped.")
    return line, redraw(found, marks), *_buttons(busy=False)


def redraw(found: Found, marks: bool) -> str:
    """The same texts with or without marks; or the same pictures."""
    if isinstance(found, Gallery):
        return pictures.draw(found)
    return comparison.draw(found, marks) if found else IDLE


@told
def exports(session: Session, found: Found, stamp: bool) -> tuple[Any, Any]:
    """Files of the comparison for the two export buttons."""
    if found is None or (isinstance(found, Gallery) and not found.finished):
        return gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)
    if isinstance(found, Gallery):
        files = export.gallery_files(found, session.picks if stamp else None)
    else:
        files = export.comparison_files(found)
    return tuple(gr.DownloadButton(value=str(file), interactive=True) for file in files)  # type: ignore[return-value]


@told
def example(session: Session, text: str, event: gr.EventData) -> str:
    """Put an example prompt into the box as a further line; the index comes from the page and is checked."""
    offered = examples.offered(session)
    if not isinstance(event.index, int) or not 0 <= event.index < len(offered):
        raise AdapterError("this example is not on offer any more", None, "Choose another.")
    line = offered[event.index].line
    lines = [old for old in text.splitlines() if old.strip()]
    return "\n".join(lines if line in lines else [*lines, line])


def wire(tab: CompareTab, session: gr.State, known: gr.State, asked: list[Any], settled: list[Any]) -> None:
    """Connect the tab's events; after each of ``asked`` a comparison starts as well, after ``settled`` the base is there."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    session.change(refresh, [session, tab.variants, known], [tab.variants, known], **private)
    session.change(examples.draw, [session], [tab.examples], **private)
    turned = [tab.writing, tab.draw.panel, tab.marks, tab.stamp, tab.save_json, tab.save_html, *tab.draw.own]
    for listen in (session.change, *(event.then for event in settled)):
        listen(turn, [session, tab.draw.suited], turned, **private)
    tab.examples.example(example, [session, tab.prompts], [tab.prompts], **private)
    model = {**private, "concurrency_limit": 1, "concurrency_id": "model"}
    files = [tab.save_json, tab.save_html]
    after = [tab.progress, tab.grid, tab.run, tab.stop]
    clicked = tab.run.click(waiting, None, [tab.progress, tab.run, tab.stop], **private)
    runs = [event.then(start, [session, *tab.settings], tab.running, **model) for event in (clicked, *asked)]
    for event in (clicked, *asked):
        queueing.follow(event.then, "model", tab.progress)
    given = [session, tab.found, tab.stamp]
    for running in runs:
        running.success(exports, given, files, **private)
        running.failure(ended, [tab.found, tab.marks], after, **private)
    stopped = tab.stop.click(ended, [tab.found, tab.marks], after, cancels=runs, **private)
    stopped.then(exports, given, files, **private)
    tab.stamp.input(exports, given, files, **private)
    tab.marks.input(redraw, [tab.found, tab.marks], [tab.grid], **private)
