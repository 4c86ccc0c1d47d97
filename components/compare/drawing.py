"""Drawing on the Compare tab: the settings of pictures, and pictures that come step by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from backends.bases import ImageBase
from backends.image import SCHEDULERS, Drawing, Sheet
from components.compare import aligning, export, gallery, pictures
from components.compare.gallery import Gallery
from components.work import loading, peek
from lego import AdapterError

MOST_PICTURES, MOST_SEEDS, MOST_STEPS, MOST_SIDE, MOST_GUIDANCE = 96, 16, 150, 2048, 20
OWN = "the pipeline's own"


@dataclass(frozen=True)
class DrawBox:
    """The components of the section that events need."""

    panel: gr.Column
    steps: gr.Slider
    guidance: gr.Slider
    seeds: gr.Textbox
    scheduler: gr.Dropdown
    negative: gr.Textbox
    size: gr.Textbox
    judge: gr.Dropdown
    suited: gr.Textbox

    @property
    def settings(self) -> list[Any]:
        """What ``read`` takes, in its order, and the model that judges."""
        return [
            self.steps,
            self.guidance,
            self.seeds,
            self.scheduler,
            self.negative,
            self.size,
            self.judge,
        ]

    @property
    def own(self) -> list[Any]:
        """What ``suit`` sets."""
        return [self.guidance, self.judge, self.suited]


def create() -> DrawBox:
    """Lay the section out; nothing is wired yet."""
    usual = Drawing()
    with gr.Column(visible=False, scale=2, min_width=300, elem_classes="plain") as panel:
        with gr.Row():
            info = "Of the noise, shared by all columns: 0, 1 or 0-3."
            seeds = gr.Textbox("0", label="Seeds", max_length=100, info=info, min_width=200)
            steps = gr.Slider(1, MOST_STEPS, usual.steps, step=1, label="Steps", info="More is finer.", min_width=200)
        with gr.Row():
            info = "How strictly prompts are followed."
            guidance = gr.Slider(1, MOST_GUIDANCE, 5, step=0.5, label="Guidance", info=info, min_width=200)
            known = [(OWN, ""), *((name, name) for name in SCHEDULERS)]
            scheduler = gr.Dropdown(known, value="", label="Scheduler", info="How noise is taken away.", min_width=200)
        with gr.Accordion("More about the drawing", open=False):
            negative = gr.Textbox("", label="Negative prompt", info="What pictures should not show.", max_length=2000)
            size = gr.Textbox("", label="Size", info="Such as 512 × 512; empty: the pipeline's own.", max_length=20)
            judge = gr.Dropdown(
                aligning.choices(),
                value=aligning.NONE,
                label="Alignment judged by",
                info="A contrastive model: also a CLIP's hub id or folder, such as openai/clip-vit-base-patch32.",
                allow_custom_value=True,
            )
    # On the page beside what it tells of, not a State: that would be read when an event runs, they when it was asked for.
    suited = gr.Textbox("", visible="hidden")
    return DrawBox(panel, steps, guidance, seeds, scheduler, negative, size, judge, suited)


def read(
    steps: float | None,
    guidance: float | None,
    seeds: str,
    scheduler: str | None,
    negative: str,
    size: str,
) -> Drawing:
    """Settings as the backend takes them.

    Raises:
        AdapterError: naming the one that is outside what is offered.
    """
    if scheduler and scheduler not in SCHEDULERS:
        raise AdapterError(f"there is no scheduler {scheduler[:40]!r}", None, f"There are {', '.join(SCHEDULERS)}.")
    return Drawing(
        steps=_whole("steps", steps, 1, MOST_STEPS),
        guidance=None if guidance is None else _inside("guidance", guidance, 0, MOST_GUIDANCE),
        seeds=read_seeds(seeds),
        scheduler=scheduler or "",
        negative=negative,
        size=read_size(size),
    )


def read_size(text: str) -> tuple[int, int] | None:
    """Width and height of a text such as ``512 × 512``; None for an empty one, which leaves it to the pipeline.

    Raises:
        AdapterError: when it is no such text, or a side is outside the limits.
    """
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×,* ]\s*(\d{1,5})\s*", text)
    if not found:
        raise AdapterError(f"{text[:40]!r} is no size", None, "Write width × height, such as 512 × 512, or nothing.")
    return _whole("width", int(found[1]), 8, MOST_SIDE), _whole("height", int(found[2]), 8, MOST_SIDE)


def shown(chosen: Drawing) -> tuple[Any, ...]:
    """The values of the section's components that stand for a drawing, in the order of ``read``."""
    seeds = ", ".join(map(str, chosen.seeds))
    size = f"{chosen.size[0]} × {chosen.size[1]}" if chosen.size else ""
    return chosen.steps, chosen.guidance, seeds, chosen.scheduler, chosen.negative, size


def suit(base: str, suited: str | None) -> tuple[Any, ...]:
    """Settings that suit a base, once it is loaded, unless they were made for it already: its guidance, and who judges."""
    if base == suited or not _loaded(base):
        return (gr.skip(),) * 3
    guidance = own_guidance(base)
    slider = gr.Slider(interactive=False) if guidance is None else gr.Slider(value=guidance, interactive=True)
    return slider, aligning.usual(base), base


def suiting(base: str, suited: str | None, given: tuple[Any, ...], judge: str) -> tuple[tuple[Any, ...], str]:
    """The settings as `suit` is about to set them, where a comparison starts before the page shows that.

    Args:
        base: is loaded.
        suited: the base that the given settings were last made for.
        given: as ``read`` takes them.
    """
    if base == suited:
        return given, judge
    steps, guidance, *rest = given
    return (steps, own_guidance(base) or guidance, *rest), aligning.usual(base)


def _loaded(base: str) -> bool:
    coming = peek(base)
    return coming is not None and coming.done and coming.error is None


def own_guidance(base: str) -> float | None:
    """The guidance that a loaded base works with where nothing else is said; None where it has none, or writes texts."""
    loaded = loading(base).base()
    return loaded.guidance if isinstance(loaded, ImageBase) else None


def _inside(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise AdapterError(f"{name} must be a number from {low} to {high}, not {str(value)[:40]!r}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _inside(name, value, low, high)
    if number != int(number):
        raise AdapterError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def read_seeds(text: str) -> tuple[int, ...]:
    """The seeds of a text such as ``0, 3`` or ``0-3``, each once.

    Raises:
        AdapterError: when it is no such text, or there are too many.
    """
    seeds: list[int] = []
    for part in filter(None, re.split(r"[\s,;]+", text)):
        found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise AdapterError(f"{part[:40]!r} is no seed", None, "Write whole numbers, such as 0, 1 or 0-3.")
        seeds += range(first, min(last, first + MOST_SEEDS) + 1)
    seeds = list(dict.fromkeys(seeds))
    if not 0 < len(seeds) <= MOST_SEEDS:
        raise AdapterError(
            "there are too many seeds" if seeds else "there is no seed", None, f"Give 1 to {MOST_SEEDS}."
        )
    return tuple(seeds)


def check_count(variants: int, prompts: int, seeds: int) -> None:
    """Refuse more pictures than one run takes.

    Raises:
        AdapterError: with the limit.
    """
    if variants * prompts * seeds > MOST_PICTURES:
        what = f"{variants} variants × {prompts} prompts × {seeds} seeds are too many"
        raise AdapterError(what, None, f"One run takes {MOST_PICTURES} pictures.")


def settings_of(chosen: Drawing) -> dict[str, Any]:
    """Settings as an export and a recipe hold them."""
    size = list(chosen.size) if chosen.size else None
    named = {"steps": chosen.steps, "guidance": chosen.guidance, "scheduler": chosen.scheduler}
    return {**named, "negative": chosen.negative, "size": size}


def filled(found: Gallery, sheet: Sheet, columns: Sequence[int] | None = None) -> Gallery:
    """The comparison with what has come so far, of all variants or of some: previews, or the finished pictures as files."""
    columns = range(len(found.names)) if columns is None else columns
    if sheet.finished:
        export.make_room()
        come = _each(sheet.pictures, lambda picture: str(export.picture_file(picture)))
    else:
        come = _each(sheet.pictures, pictures.preview)
    by_column = dict(zip(columns, come, strict=True))
    shots = tuple(by_column.get(v, old) for v, old in enumerate(found.shots))
    done = sheet.finished and len(by_column) == len(shots)
    facts = {"step": sheet.step, "steps": sheet.steps, "finished": done, "seconds": sheet.seconds}
    return replace(found, **facts, shots=shots, files=shots if done else ())


def _each(table: Sequence[Sequence[Sequence[Any]]], what: Any) -> gallery.Table:
    """The same table with something done to every picture that is there."""
    return tuple(tuple(tuple("" if cell is None else what(cell) for cell in row) for row in rows) for rows in table)
