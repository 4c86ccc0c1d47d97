"""A comparison of pictures as plain data: variants × prompts × seeds, where each picture lies, what it scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from components.compare.comparison import Own
from components.compare.layout import Layout
from components.session.state import LORA, Column
from mole.pool import Weighting

Table = tuple[tuple[tuple[str, ...], ...], ...]
"""One text for every picture, [variant][prompt][seed]."""


class Place(NamedTuple):
    """Which picture: the indices of its variant, prompt and seed."""

    variant: int
    prompt: int
    seed: int


@dataclass(frozen=True)
class Score:
    """What the contrastive model finds.

    Attributes:
        text: cosine of the picture with its prompt.
        sources: cosine with the picture that each LoRA alone draws from the same prompt and noise: (its variant, value).
    """

    text: float
    sources: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures of every variant for every prompt and seed.

    Attributes:
        base: id of the base.
        names, slots, weightings: of each variant.
        alone: which variants are one LoRA at weight 1: the sources that others are measured against.
        prompts: as they were given.
        seeds: of the noise, shared by all variants.
        settings: everything else that decides the pictures.
        shots: what the page shows of each: a small preview as a data address, or the finished picture's file; empty before.
        files: of the finished pictures; empty before they are.
        scores: of each picture, once they are measured.
        step, steps: how far the drawing is.
        finished: whether it came to its end.
        seconds: since the start.
        own: settings of each variant that differ from the others'; empty where none do.
        layout: how the variants lie in a grid of axes; None where they stand side by side.
    """

    base: str
    names: tuple[str, ...]
    slots: tuple[tuple[int, ...], ...]
    weightings: tuple[Weighting, ...]
    alone: tuple[bool, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]
    shots: Table
    files: Table = ()
    scores: tuple[tuple[tuple[Score, ...], ...], ...] = ()
    step: int = 0
    steps: int = 0
    finished: bool = False
    seconds: float = 0.0
    own: Own = ()
    layout: Layout | None = None

    def places(self) -> Iterator[Place]:
        """Every picture, prompt by prompt, seed by seed, the variants beside each other."""
        for p in range(len(self.prompts)):
            for s in range(len(self.seeds)):
                yield from (Place(v, p, s) for v in range(len(self.names)))

    def caption(self, at: Place) -> str:
        """Variant, prompt and seed of a picture."""
        return f"{self.names[at.variant]}: {self.prompts[at.prompt]}, seed {self.seeds[at.seed]}"

    def judged(self, scores: tuple[tuple[tuple[Score, ...], ...], ...]) -> Gallery:
        """The same with its scores."""
        return replace(self, scores=scores)


def begin(
    base: str,
    columns: Sequence[Column],
    prompts: Sequence[str],
    seeds: tuple[int, ...],
    settings: dict[str, Any],
    own: Own = (),
    layout: Layout | None = None,
) -> Gallery:
    """A comparison before its first step."""
    return Gallery(
        base=base,
        names=tuple(column.name for column in columns),
        slots=tuple(column.slots for column in columns),
        weightings=tuple(column.weighting for column in columns),
        alone=tuple(column.id.startswith(LORA) for column in columns),
        prompts=tuple(prompts),
        seeds=seeds,
        settings=tuple(settings.items()),
        shots=tuple(tuple(("",) * len(seeds) for _ in prompts) for _ in columns),
        own=own,
        layout=layout,
    )
