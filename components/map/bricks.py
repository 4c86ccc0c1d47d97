"""What is done with selected bricks: muted, played alone, scaled, kept under a name, saved as an adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import torch

from backends import library
from components import kinds
from components.events import ALONE, PRIVATE, newest
from components.followed import Followed
from components.library.shelf import shelf
from components.merge import making
from components.merge import tab as merge
from components.messages import told
from components.session.state import Edited, Made, Named, Selection, Session, title_of
from lego import AdapterError
from lego.edit import Edit
from lego.unitset import UnitSet, indices

Asking = Callable[[Callable[..., Session]], Callable[..., tuple[Any, ...]]]
MUTE, SOLO, SCALE = "mute", "solo", "scale"
MOST_FACTOR = 100
NAME_LENGTH = 60


@dataclass(frozen=True)
class BrickBox:
    """The components of the section that events need."""

    panel: gr.Column
    mute: gr.Button
    solo: gr.Button
    factor: gr.Number
    scale: gr.Button
    name: gr.Textbox
    keep: gr.Button
    kept: gr.Dropdown
    edited: gr.Dropdown
    save: gr.Button
    made: gr.State


def create() -> BrickBox:
    """Lay the section out; nothing is wired yet."""
    plain = {"scale": 0, "min_width": 150}
    with gr.Column(visible=False, elem_classes="plain by-within-reach") as panel, gr.Row(elem_classes="by-bottom"):
        mute = gr.Button("Mute the selected bricks", scale=0, min_width=220)
        solo = gr.Button("Play only them", **plain)
        factor = gr.Number(
            0.5, label="Factor", minimum=-MOST_FACTOR, maximum=MOST_FACTOR, step=0.1, scale=0, min_width=100
        )
        scale = gr.Button("Scale them", **plain)
        name = gr.Textbox(label="Name of the selection", placeholder="any name", max_length=NAME_LENGTH, min_width=180)
        keep = gr.Button("Keep the selection", scale=0, min_width=180)
    with gr.Row(elem_classes="by-bottom"):
        edited = gr.Dropdown([], label="Edited variants", visible=False, scale=0, min_width=280)
        save = gr.Button("Save as an adapter", visible=False, scale=0, min_width=180)
        kept = gr.Dropdown([], value=None, label="Kept selections", visible=False, scale=0, min_width=240)
    return BrickBox(panel, mute, solo, factor, scale, name, keep, kept, edited, save, gr.State(None))


@told
def mute(session: Session, chosen: Selection) -> Session:
    """Make the exact sum without the selected units a variant of its own."""
    return edit(session, chosen, MUTE)


@told
def solo(session: Session, chosen: Selection) -> Session:
    """Make the selected units alone a variant of its own."""
    return edit(session, chosen, SOLO)


@told
def scale(session: Session, chosen: Selection, factor: float | None) -> Session:
    """Make the exact sum with the selected units scaled a variant of its own."""
    return edit(session, chosen, SCALE, factor)


def edit(session: Session, chosen: Selection, how: str, factor: float | None = None) -> Session:
    """Let the exact sum with the selected units edited join the variants.

    Raises:
        AdapterError: when none of a picked adapter is selected, or the factor is no number within the limits.
    """
    units = chosen.units & _every(session)
    if not units:
        raise AdapterError("no bricks are selected", None, "Draw a lasso around some on the map first.")
    made = edited_variant(session, units, how, factor)
    gr.Info(f"“{made.name}” joined the variants of Compare.")
    return session.edit(made)


def edited_variant(session: Session, units: UnitSet, how: str, factor: float | None = None) -> Edited:
    """The exact sum of the picks with some of its units edited, under a name that no other edit has.

    Raises:
        AdapterError: when the factor is no number within the limits.
    """
    count, bricks = len(units), "brick" if len(units) == 1 else "bricks"
    told = next((f"“{named.name}”" for named in session.named if named.units == units), f"{count:,} {bricks}")
    whole = "Sum" if len(session.picks) > 1 else title_of(session, shelf(session)[session.picks[0].key])
    if how == MUTE:
        made = Edited(f"{whole} without {told}", session.weights, units)
    elif how == SOLO:
        made = Edited(f"{whole}, only {told}", session.weights, _every(session) - units)
    else:
        times = checked_factor(factor)
        made = Edited(f"{whole} with {told} × {times:g}", session.weights, scaled=((units, times),))
    taken = {old.name for old in session.edited if old.weighting != made.weighting}
    names = (made.name, *(f"{made.name} ({n})" for n in range(2, len(taken) + 3)))
    return replace(made, name=next(name for name in names if name not in taken))


def checked_factor(factor: object) -> float:
    """A factor as a person gave it.

    Raises:
        AdapterError: when it is no number within the limits.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
        raise AdapterError("the factor is not a number", None, "Write one, such as 0.5 or 2.")
    if abs(factor) > MOST_FACTOR:
        raise AdapterError(f"a factor of {factor:g} is too large", None, f"Give at most {MOST_FACTOR}.")
    return float(factor)


def _every(session: Session) -> UnitSet:
    return UnitSet.every({pick.key: library.get(pick.key) for pick in session.picks})


@told
def keep(session: Session, chosen: Selection, name: str) -> tuple[Session, str]:
    """Keep the selection under a name."""
    name = name.strip()[:NAME_LENGTH]
    if not chosen.units:
        raise AdapterError("no bricks are selected", None, "Select some first.")
    if not name:
        raise AdapterError("the selection has no name", None, "Write one beside the button.")
    return session.keep(Named(name, chosen.units)), ""


@told
def recall(session: Session, name: str | None) -> Selection:
    """Select again what was kept under a name."""
    found = next((named.units for named in session.named if named.name == name), None)
    if found is None:
        raise AdapterError("there is no such selection any more", None, "Select again.")
    return Selection(found).among([pick.key for pick in session.picks])


@told
def save(session: Session, name: str | None) -> Made:
    """Write an edited variant as an adapter: muted units are left out, scaled ones are scaled."""
    found = next((edited for edited in session.edited if edited.name == name), None)
    if found is None:
        raise AdapterError("no edited variant is chosen", None, "Mute or scale some bricks first.")
    return Made(written(found).key, found.name, session.slots(found.adapters))


def join(session: Session, made: Made) -> tuple[Session, Any]:
    """Let the saved adapter take the edited variant's place, as a merge does, and show its report on the Merge tab."""
    gr.Info(f"“{made.name}” is an adapter now: its report and its download are on the Merge tab.")
    rest = tuple(edited for edited in session.edited if edited.name != made.name)
    return merge.join(replace(session, edited=rest), made)


def written(found: Edited) -> library.Entry:
    """An edited variant as an adapter of the library, with its recipe; in fp32, so that nothing is rounded away.

    Raises:
        AdapterError: when nothing is left of it.
    """
    left = [(key, weight) for key, weight in found.weights if weight and _left(key, found.muted)]
    if not left:
        raise AdapterError("nothing is left of this variant", found.name, "Leave at least one brick in.")
    edits = {key: edits_of(found, key) for key, _ in left}
    return making.make(left, "concat", {}, 0, found.name, edits=edits, dtype=torch.float32)


def _left(key: str, muted: UnitSet) -> bool:
    return bool(UnitSet.every({key: library.get(key)}) - muted)


def edits_of(found: Edited, key: str) -> list[Edit]:
    """What a variant does to one adapter's units."""
    return [
        Edit(factor, units)
        for chosen, factor in found.weighting.factors
        if (units := {module: indices(bits) for owner, module, bits in chosen.parts if owner == key})
    ]


def refresh(session: Session) -> tuple[Any, Any, Any]:
    """Offer the kept selections and the edited variants."""
    kept = [named.name for named in session.named]
    edited: Sequence[str] = [found.name for found in kinds.own(session).edited]
    return (
        gr.Dropdown(kept, value=None, visible=bool(kept)),
        gr.Dropdown(edited, value=edited[-1] if edited else None, visible=bool(edited)),
        gr.Button(visible=bool(edited)),
    )


def wire(
    box: BrickBox, session: Followed, chosen: gr.State, reported: gr.Dropdown, asked: list[Any], asking: Asking
) -> tuple[list[Any], Any]:
    """Connect the section's events.

    Args:
        reported: the merge whose report is shown.
        asked, asking: what an edit fills that is tried, last how often that was asked for; and what makes an edit fill it.

    Returns:
        The edits, and the event after which a kept selection is back.
    """
    # What is tried first: the rest of the page follows the session in the meantime.
    given, changed = [asked[-1], session, chosen], [*asked, session]
    edits = [
        box.mute.click(asking(mute), given, changed, **ALONE),
        box.solo.click(asking(solo), given, changed, **ALONE),
        box.scale.click(asking(scale), [*given, box.factor], changed, **ALONE),
    ]
    box.keep.click(keep, [session, chosen, box.name], [session, box.name], **ALONE)
    recalled = newest([box.kept.input], recall, [session, box.kept], [chosen], **ALONE)
    merging = {**PRIVATE, "concurrency_limit": 2, "concurrency_id": "merge"}
    saved = box.save.click(save, [session, box.edited], [box.made], **merging)
    saved.success(join, [session, box.made], [session, reported], **ALONE)
    session.follow(refresh, [session], [box.kept, box.edited, box.save])
    return edits, recalled
