"""What a brick does to a picture: the same prompt and noise with the brick and without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from backends.image import Drawing
from components import kinds, stoppable
from components.compare import aligning, examples, pictures, plan, running
from components.events import PRIVATE
from components.messages import told
from components.session.state import Column, Selection, Session
from components.stoppable import Stoppable
from components.work import loading
from lego import AdapterError
from lego.unitset import UnitSet
from mole.pool import Weighting


@dataclass(frozen=True)
class PictureBox:
    """The components of the section that events need."""

    panel: gr.Column
    prompt: gr.Textbox
    run: Stoppable
    shown: gr.HTML


def create() -> PictureBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Column(visible=False, elem_classes="plain") as panel:
        with gr.Row(elem_classes="by-bottom"):
            prompt = gr.Textbox(label="Picture of", max_length=400, min_width=200)
            run_box = stoppable.create("Draw with and without the brick", "Stop drawing")
        run_box.progress.render()
        shown = gr.HTML(label="Pictures with and without the brick")
    return PictureBox(panel, prompt, run_box, shown)


def offered(session: Session, chosen: Selection) -> bool:
    """Whether there is a brick, and a base that draws."""
    return chosen.primary is not None and kinds.of_base(session.base) == kinds.IMAGE


def suggest(session: Session) -> str:
    """A prompt that fits the picked adapters; nothing where the base writes texts."""
    return examples.first(session).split("\n")[0] if kinds.of_base(session.base) == kinds.IMAGE else ""


@told
def run(session: Session, chosen: Selection, prompt: str) -> Iterator[tuple[str, str]]:
    """Draw the exact sum with the primary unit and without it, in one batch."""
    if not chosen.primary or not session.pick(chosen.primary[0]):
        raise AdapterError("no brick is selected", None, "Click one on the map first.")
    if not prompt.strip():
        raise AdapterError("there is no prompt", None, "Write what to draw.")
    for _ in loading(session.base).watch():
        yield "Waiting for the base model", ""
    without = Weighting(session.weights, UnitSet.of([chosen.primary]))
    slots = tuple(pick.slot for pick in session.picks)
    both = [
        Column("with", "With the brick", Weighting(session.weights), slots),
        Column("without", "Without it", without),
    ]
    wanted = Drawing()
    drawn = running.pictures(
        session.base, plan.side_by_side(both, [prompt.strip()], wanted.seeds), wanted, aligning.NONE
    )
    for line, found in drawn:
        yield line, pictures.draw(found, running=not found.finished)


def cleared() -> tuple[str, str]:
    """Nothing is drawn; the buttons change once what is being drawn has ended."""
    return "", ""


def wire(box: PictureBox, session: gr.State, chosen: gr.State, picked: gr.State) -> None:
    """Connect the section's events; other bricks' pictures leave with the selection, the prompt follows the picks."""
    picked.change(suggest, [session], [box.prompt], **PRIVATE)
    drawing = stoppable.wire(box.run, run, [session, chosen, box.prompt], [box.shown])
    chosen.change(cleared, None, [box.run.progress, box.shown], cancels=[drawing], **PRIVATE)
