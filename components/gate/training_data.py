"""What gates learn from, as chosen on the page: tasks and rows for texts; for pictures these with captions, or captions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends import alignment, captions
from backends.rows import tasks
from components import controls, fragments, kinds
from components.compare import aligning, examples
from components.gate import gating, uploaded_pictures
from components.library import uploads
from components.library.shelf import checked_base, shelf
from components.session.state import Session
from lego import AdapterError
from mole.recipe import Guidance

MOST_SHARE, MOST_CAPTIONS = 100, 1000
DENOISING, GUIDED = "taking noise off pictures", "drawing captions, judged by CLIP"
SETTINGS = {"steps": "Drawing steps", "local": "Directional term", "source": "Caption it starts from"}
"""Fields of `Guidance` beside its model, with their labels."""


@dataclass(frozen=True)
class Mix:
    """A choice of what ships, with a share for each.

    Attributes:
        names: what there is to choose.
        chosen: the ticked ones.
        shares: of each, in the order of ``names``; seen once two are ticked.
    """

    names: tuple[str, ...]
    chosen: gr.CheckboxGroup
    shares: list[gr.Number]

    @property
    def both(self) -> list[Any]:
        """What ``tick`` fills."""
        return [self.chosen, *self.shares]


@dataclass(frozen=True)
class DataBox:
    """The components of the section that events need."""

    writing: gr.Column
    tasks: Mix
    rows: gr.File
    rows_share: gr.Number
    drawing: gr.Column
    sets: Mix
    files: gr.File
    files_share: gr.Number
    way: gr.Radio
    guiding: gr.Column
    captions: gr.Textbox
    judge: gr.Dropdown
    guidance: list[Any]
    offered: gr.State

    @property
    def settings(self) -> list[Any]:
        """What ``read`` takes, in its order."""
        texts = [*self.tasks.both, self.rows, self.rows_share]
        return [
            *texts,
            *self.sets.both,
            self.files,
            self.files_share,
            self.way,
            self.captions,
            self.judge,
            *self.guidance,
        ]

    @property
    def changes(self) -> list[Any]:
        """The events after which other samples are chosen; what is typed counts once it is done."""
        typed = (self.captions, self.guidance[-1])
        found = [each.input for each in self.settings if each not in (self.rows, self.files, *typed)]
        found += [each.submit for each in typed] + [each.blur for each in typed]
        return [*found, *(event for file in (self.rows, self.files) for event in (file.upload, file.clear))]


def create() -> DataBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Column(elem_classes="plain") as writing:
        gr.HTML(fragments.heading("What they learn from", "Questions with answers; held-out rows are never used."))
        rows_of = _mix("Training tasks", sorted(tasks()))
        with gr.Accordion("Rows of your own", open=False):
            rows = gr.File(label="Rows (JSONL)", file_types=[".jsonl", ".json", ".txt"], height=120)
            gr.HTML(fragments.subtle('One JSON object a line: {"prompt": "…", "answer": "…"}'))
            rows_share = _share("Share of your rows")
    with gr.Column(elem_classes="plain", visible=False) as drawing:
        gr.HTML(fragments.heading("What they learn from", "Pictures with captions; held-out ones are never used."))
        sets = _mix("Sets of pictures", captions.sets())
        with gr.Accordion("Pictures of your own", open=False):
            accepted = [*uploaded_pictures.SUFFIXES, ".jsonl", ".zip"]
            files = gr.File(label="Pictures with captions", file_count="multiple", file_types=accepted, height=120)
            about = f"A zip, or pictures with a metadata.jsonl: one line for each, {uploaded_pictures.LINE}"
            gr.HTML(fragments.subtle(about))
            files_share = _share("Share of your pictures")
        way = gr.Radio([DENOISING, GUIDED], value=DENOISING, label="They learn by")
        with gr.Column(elem_classes="plain", visible=False) as guiding:
            judged = _guiding()
    return DataBox(
        writing, rows_of, rows, rows_share, drawing, sets, files, files_share, way, guiding, *judged, gr.State(None)
    )


def _guiding() -> tuple[Any, ...]:
    about = "One a line; beside those of the sets that are ticked."
    typed = gr.Textbox("", label="Captions of your own", lines=3, max_lines=8, info=about, max_length=100_000)
    judge = gr.Dropdown(
        [choice for choice in aligning.choices() if choice[1] != aligning.NONE],
        value=alignment.BUILTIN,
        label="Judged by",
        info="A contrastive model: also a CLIP's hub id or folder, such as openai/clip-vit-base-patch32.",
        allow_custom_value=True,
    )
    with gr.Row():
        fields = [controls.field_control(name, Guidance.model_fields[name], label) for name, label in SETTINGS.items()]
    return typed, judge, fields


def _mix(label: str, names: Sequence[str]) -> Mix:
    chosen = gr.CheckboxGroup(list(names), label=label, visible=bool(names))
    with gr.Row(elem_classes="by-shares"):
        shares = [_share(f"Share of {name}", visible=False, min_width=110) for name in names]
    return Mix(tuple(names), chosen, shares)


def _share(label: str, **more: Any) -> gr.Number:
    return gr.Number(1, label=label, minimum=0.01, maximum=MOST_SHARE, step=0.5, **more)


def tick(names: Sequence[str], chosen: list[str]) -> list[Any]:
    """Tick some of what ships."""
    return [gr.CheckboxGroup(value=chosen), *shares_of(names, chosen)]


def shares_of(names: Sequence[str], chosen: list[str]) -> list[Any]:
    """A number for every ticked one, once there are two."""
    return [gr.Number(visible=name in chosen and len(chosen) > 1) for name in names]


def offer(session: Session, offered: tuple[str, ...] | None, box: DataBox) -> list[Any]:
    """Tick what belongs to newly picked LoRAs: their tasks, or the sets of pictures that are called like them.

    Args:
        session: whose picks.
        offered: the picks for which this was done; then what was ticked since stays.
        box: with the names.
    """
    picked = tuple(pick.key for pick in session.picks)
    if picked == offered:
        return [gr.skip() for _ in (*box.tasks.both, *box.sets.both, box.offered)]
    entries = [shelf(session)[pick.key] for pick in session.picks]
    found = [task for task in dict.fromkeys(map(examples.task_of, entries)) if task]
    sets = [name for name in box.sets.names if name in [entry.name for entry in entries]]
    return [*tick(box.tasks.names, found), *tick(box.sets.names, sets), picked]


def draws(session: Session) -> bool:
    """Whether the session's base draws, as far as it is known."""
    return kinds.of_base(session.base) == kinds.IMAGE


def read(session: Session, values: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A recipe's data and guidance from the section's components, those for texts or those for pictures.

    Raises:
        AdapterError: naming what is wrong.
    """
    shipped, count = len(tasks()), len(captions.sets())
    chosen, *shares, rows, rows_share = values[: shipped + 3]
    if not draws(session):
        data = gating.task_rows(chosen or [], dict(zip(sorted(tasks()), shares, strict=True)))
        return data + ([{"rows": str(uploads.receive_rows(rows)), "share": rows_share}] if rows else []), None
    chosen, *rest = values[shipped + 3 :]
    shares, (files, share, way, typed, judge, *guidance) = rest[:count], rest[count:]
    data = gating.set_rows(chosen or [], dict(zip(captions.sets(), shares, strict=True)))
    guided = way == GUIDED
    if files:
        place = uploaded_pictures.receive_pictures(files, pictures=not guided)
        data.append({"rows": str(place), "share": share})
    if guided and (lines := [line.strip() for line in typed.splitlines() if line.strip()]):
        if len(lines) > MOST_CAPTIONS:
            raise AdapterError(f"{len(lines)} captions are too many", None, f"Give at most {MOST_CAPTIONS}.")
        data.append({"rows": str(uploaded_pictures.receive_captions(lines)), "share": 1.0})
    return data, guidance_of(dict(zip(SETTINGS, guidance, strict=True)), judge) if guided else None


def guidance_of(settings: Mapping[str, Any], judge: object) -> dict[str, Any]:
    """The settings of a guidance with its model, which comes from a visitor.

    Raises:
        AdapterError: when the model is a folder where visitors are not on this machine.
    """
    return {**settings, "model": None if judge in (None, "", alignment.BUILTIN) else checked_base(judge)}


def show_guidance(way: str) -> Any:
    """The settings of guidance, where captions alone are learned from."""
    return gr.Column(visible=way == GUIDED)
