"""Each cluster of the map muted in turn: which ones the output needs most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from backends import alignment
from backends.ablation import Ablation, ablate_image, ablate_text
from backends.alignment import Alignment
from backends.bases import ImageBase
from backends.drawing import Drawing
from components import fragments, glossary, kinds, stoppable
from components.compare import aligning, examples
from components.compare.tab import PROMPT_LENGTH, awaited
from components.events import PRIVATE
from components.map import maps
from components.messages import told
from components.session.state import Session
from components.stoppable import Stoppable
from components.work import loading
from lego import AdapterError
from lego.unitset import UnitSet
from mole.pool import Weighting

MOST = {kinds.TEXT: 600, kinds.IMAGE: 64}
"""Clusters that one run mutes."""

LISTED = 60
"""Clusters in the table, those that move the output most first."""

ABOUT = (
    "Mutes each cluster of the map in turn and ranks the clusters by how much the exact sum's output moves: of a text in [nats: nat] "
    "a token along its own answer (KL divergence), of a picture as the distance a contrastive model sees."
)


@dataclass(frozen=True)
class Cluster:
    """A cluster of the map: its name, its adapters' colours, and its units."""

    name: str
    slots: tuple[int, ...]
    units: UnitSet


@dataclass(frozen=True)
class AblateBox:
    """The components of the section that events need."""

    prompt: gr.Textbox
    run: Stoppable
    table: gr.HTML
    found: gr.State


def create() -> AblateBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Accordion("What does each cluster do?", open=False):
        gr.HTML(glossary.line(ABOUT))
        with gr.Row(elem_classes="by-bottom"):
            prompt = gr.Textbox(label="Prompt for the ablation", max_length=PROMPT_LENGTH, min_width=200)
            run_box = stoppable.create("Mute each cluster in turn", "Stop muting")
        run_box.progress.render()
        table = gr.HTML(label="What each cluster does")
    return AblateBox(prompt, run_box, table, gr.State(()))


def clusters(seen: maps.View) -> list[Cluster]:
    """Every cluster of the map, module after module."""
    units, found = seen.units, seen.clusters
    layer, labels, along = maps.layers(seen)
    several = len(units.modules) > 1
    group = units.module * (int(found.max()) + 1) + found
    made = []
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        place = f"{along} {labels[layer[rows[0]]]}, " if several else ""
        slots = tuple(seen.groups[a].slot or 0 for a in np.unique(units.adapter[rows]))
        made.append(Cluster(f"{place}cluster {found[rows[0]] + 1}", slots, maps.unit_set(seen, rows)))
    return made


@told
def run(session: Session, prompt: str, place: str, k: float) -> Iterator[tuple]:
    """Mute cluster after cluster; the ranking fills while it runs."""
    if not session.picks:
        raise AdapterError("no adapters are picked", None, "Pick some in the Library first.")
    muted = clusters(maps.view(session, place, int(k)))
    kind = kinds.of_base(session.base) or kinds.TEXT
    if len(muted) > MOST[kind]:
        fix = f"One run takes {MOST[kind]}: choose a single layer, or fewer clusters."
        raise AdapterError(f"{len(muted)} clusters are too many", None, fix)
    sets, coming = tuple(cluster.units for cluster in muted), loading(session.base)
    for _ in coming.watch():
        yield awaited(coming), gr.skip(), sets
    prompt = prompt.replace("\\n", "\n")[:PROMPT_LENGTH]
    for found in _measured(session, coming.base(), sets, prompt):
        yield _reached(found, kind), draw(muted, found, kind), sets
    done = f"{len(muted)} clusters muted in turn in {found.seconds:.1f} s."
    yield fragments.subtle(done), draw(muted, found, kind), sets


def _measured(session: Session, base: Any, sets: Sequence[UnitSet], prompt: str) -> Iterator[Ablation]:
    whole = Weighting(session.weights)
    if not isinstance(base, ImageBase):
        return ablate_text(base, whole, sets, prompt)
    judge = Alignment.load(aligning.usual(session.base) or alignment.BUILTIN)
    return ablate_image(base, whole, sets, prompt, judge, Drawing())


def _reached(found: Ablation, kind: str) -> str:
    what = "clusters" if kind == kinds.TEXT else "steps of drawing"
    left = ""
    if found.done:
        left = f", about {math.ceil(found.seconds / found.done * (found.total - found.done))} s left"
    return fragments.progress(f"{found.done} of {found.total or '…'} {what}{left}", found.done / max(1, found.total))


def draw(muted: Sequence[Cluster], found: Ablation, kind: str) -> str:
    """The clusters by how far the output moves without them; a row selects its cluster."""
    measured = [i for i, value in enumerate(found.moved) if not math.isnan(value)]
    order = sorted(measured, key=lambda i: -found.moved[i])
    most = max((found.moved[i] for i in order), default=0) or 1
    rows = [
        [
            f"{fragments.swatch(muted[i].slots)}&ensp;{fragments.pick('ablated', i, muted[i].name)}",
            str(len(muted[i].units)),
            f'<span class="by-track"><i style="width:{100 * found.moved[i] / most:.0f}%"></i></span>',
            f"{found.moved[i]:.2g}",
        ]
        for i in order[:LISTED]
    ]
    answer = f'<p class="by-text">The whole sum answers: <q>{escape(found.answer)}</q></p>' if found.answer else ""
    if not rows:
        return answer
    unit = "Nats a token" if kind == kinds.TEXT else "Distance"
    rest = fragments.subtle(f"The first {LISTED} of {len(order)}.") if len(order) > LISTED else ""
    head = ["Cluster", "Bricks", "Moves the output by", unit]
    return answer + fragments.table(head, rows, right=(1, 3), label="What each cluster does", tall=True) + rest


def suggest(session: Session) -> str:
    """A prompt that fits the picked adapters."""
    return examples.first(session).split("\n")[0]


def wire(
    box: AblateBox, session: gr.State, picked: gr.State, place: list[Any], where: Callable[[str, str], str]
) -> None:
    """Connect the section's events.

    Args:
        picked: changes with the picks, which the prompt follows.
        place: the controls of the map's kind, layer and clusters.
        where: what kind and layer name.
    """

    def start(session: Session, prompt: str, kind: str, layer: str, k: float) -> Iterator[tuple]:
        yield from run(session, prompt, where(kind, layer), k)

    picked.change(suggest, [session], [box.prompt], **PRIVATE)
    stoppable.wire(box.run, start, [session, box.prompt, *place], [box.table, box.found])
