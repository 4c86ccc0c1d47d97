"""Where a module sits in its model, for people: UNet blocks in the order in which they run, and short names for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from lego.adapter import natural_order

UNET = (
    "time_embedding",
    "add_embedding",
    "conv_in",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_norm_out",
    "conv_out",
)
"""Parts of a UNet in running order; the encoders of texts come last, being the smallest part of most LoRAs."""
TRANSFORMER = ("transformer_blocks", "single_transformer_blocks")
NAMES = {
    "conv_in": "input",
    "time_embedding": "time",
    "add_embedding": "time",
    "down_blocks": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "conv_norm_out": "output",
    "conv_out": "output",
    "transformer_blocks": "block",
    "single_transformer_blocks": "single",
}
# A block's own parts: resnets.1 and attentions.1 run one after the other and are one place.
PART = re.compile(r"(?:resnets|attentions|motion_modules|transformer_blocks)\.(\d+)\.")
SAMPLER = re.compile(r"(down|up)samplers\.0\.")
LAYER = re.compile(r"(?:^|\.)(?:layers|block)\.(\d+)\.")
LAST = 999
"""The number of a block's sampler, which comes after all its other parts."""


class Place(NamedTuple):
    """Where a module sits.

    Attributes:
        order: sorts places in running order.
        label: for people: ``down 0.1``, ``mid``, ``text 3``.
        kind: what the module is there: ``attn1.to_q``.
    """

    order: tuple[int, ...]
    label: str
    kind: str


def of_pipeline(module: str) -> bool:
    """Whether a module's name is one of a pipeline's parts, not of a language model."""
    return module.split(".", 1)[0].rstrip("_23") in ("unet", "transformer", "text_encoder", "prior", "connectors")


def place_of(module: str) -> Place:
    """Where a module of a pipeline sits: ``unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` → ``down 0.1``."""
    model, _, rest = module.partition(".")
    if model.startswith("text_encoder"):
        which = int(model.removeprefix("text_encoder").strip("_") or 1)
        found = LAYER.search(rest)
        number = int(found.group(1)) if found else -1
        label = f"text {number}" if which == 1 else f"text {which}.{number}"
        return Place((2, which, number), label if found else f"text {which}", rest[found.end() :] if found else rest)
    stem, _, rest = rest.partition(".")
    known = UNET if stem in UNET else TRANSFORMER
    first = known.index(stem) if stem in known else len(known)
    numbers, rest = _leading(rest)
    inside: tuple[int, ...] = ()
    while found := PART.match(rest):
        inside, rest = (*inside, int(found.group(1))), rest[found.end() :]
    # An attention's first transformer block, mostly its only one, stands where its attention does.
    numbers += inside[:1] if inside[1:] == (0,) else inside
    label = " ".join(filter(None, (NAMES.get(stem, stem), ".".join(map(str, numbers)))))
    if found := SAMPLER.match(rest):
        arrow = "↓" if found.group(1) == "down" else "↑"
        numbers, label, rest = (*numbers, LAST), f"{label} {arrow}", rest[found.end() :]
    return Place((0 if known is UNET else 1, first, *numbers), label, rest or stem)


def _leading(rest: str) -> tuple[tuple[int, ...], str]:
    number, _, after = rest.partition(".")
    return ((int(number),), after) if number.isdigit() else ((), rest)


def site_label(site: str) -> str:
    """The place of a gate of a pipeline: of a block (``down 0.1 resnet``), or of a part of one (``down 0.1 attn1``)."""
    found, parts = place_of(f"{site}."), site.split(".")
    inside = found.kind.strip(".")
    if inside in parts[1:2]:  # it gates the whole block
        inside = next((word for word in ("resnet", "attention") if f"{word}s" in parts), "")
    return f"{found.label} {inside}".strip() or site


def running_order(module: str) -> tuple:
    """Sort key: a pipeline's modules in the order in which they run, others as `lego.adapter.natural_order` sorts them."""
    return (place_of(module).order if of_pipeline(module) else (), natural_order(module))


def places(modules: Iterable[str]) -> list[str]:
    """The places of some modules of a pipeline, in running order."""
    return [label for _, label in sorted({(place_of(m).order, place_of(m).label) for m in modules})]
