"""Pictures of many variants for many prompts, drawn side by side from one batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from backends.bases import ImageBase
from backends.drawing import Drawing
from backends.lent import lent
from backends.memory import halves, out_of_memory, pictures_at_once, release
from backends.painting import Painting, Row
from backends.schedulers import SCHEDULERS
from backends.streamed import streamed
from backends.variants import Variant, pool_of
from lego.errors import AdapterError
from mole.gated import Gated

__all__ = ["SCHEDULERS", "Drawing", "Sheet", "Variant", "draw"]


@dataclass(frozen=True)
class Sheet:
    """A comparison as far as it has come.

    Attributes:
        pictures: [variant][prompt][seed]; None where there is nothing to see yet.
        step, steps: of denoising, done and in all.
        finished: whether all pictures are.
        seconds: since the start.
        previews: whether some pictures are cheap ones of unfinished latents.
    """

    pictures: tuple[tuple[tuple[Image | None, ...], ...], ...]
    step: int
    steps: int
    finished: bool
    seconds: float
    previews: bool


def expected(
    variants: Sequence[Variant], prompts: Sequence[str], drawing: Drawing | None = None, **other: Any
) -> float:
    """Seconds that a comparison takes on a lent GPU, about."""
    wanted = drawing or Drawing()
    return 20 + 0.1 * wanted.steps * len(variants) * len(prompts) * len(wanted.seeds)


@lent(expected)
def draw(
    base: ImageBase,
    variants: Sequence[Variant],
    prompts: Sequence[str],
    drawing: Drawing | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Sheet]:
    """Every variant's pictures of every prompt, all in one batch where memory allows.

    A picture is what diffusers' pipeline draws with the same LoRAs, weights and seed: each row has a generator of its own, so equal
    seeds give equal noise whatever the variant, the prompt and the batch.

    Args:
        base: from `backends.bases.load_base`.
        variants: the columns; their adapters are looked up in the library.
        prompts: the rows.
        drawing: steps, guidance, seeds, scheduler, negative prompt and size.
        stop: when set, no further step is done; the last sheet keeps the previews.

    Yields:
        The sheet after every step; the last one is the result. Closing the generator stops the work.

    Raises:
        AdapterError: when there is nothing to draw, a setting is out of range, or an adapter does not fit the base.
        BaseError: when memory does not suffice for one picture.
    """
    drawing, stop = drawing or Drawing(), stop or threading.Event()
    if not variants or not prompts or not drawing.seeds:
        raise AdapterError("nothing to draw", None, "Give at least one variant, one prompt and one seed.")
    drawing.check(base)
    yield from streamed(Work(base, variants, prompts, drawing, stop), "draw")


class Stopped(Exception):
    """Stop was asked for."""


class Work:
    """All rows of a comparison, in as few batches as memory allows."""

    def __init__(
        self,
        base: ImageBase,
        variants: Sequence[Variant],
        prompts: Sequence[str],
        drawing: Drawing,
        stop: threading.Event,
    ) -> None:
        """Nothing is drawn yet."""
        self.base, self.drawing, self.stop, self.start = base, drawing, stop, time.perf_counter()
        self.shape = len(variants), len(prompts), len(drawing.seeds)
        self.rows = [Row(v, p, seed) for v in variants for p in prompts for seed in drawing.seeds]
        self.live = Gated(base.model, pool_of(base, variants))
        self.step, self.steps = 0, drawing.steps

    def __call__(self, tell: Callable[[Sheet], None]) -> None:
        """Draw, and tell the sheet after every step and at the end.

        Raises:
            BaseError: when not even a single row fits into memory.
        """
        size = pictures_at_once(self.base, self.drawing.size)
        waiting = deque(self.rows[start : start + size] for start in range(0, len(self.rows), size))
        while waiting and not self.stop.is_set():
            batch = waiting.popleft()
            try:
                with self.base.lock:
                    Painting(self.base, self.live, batch, self.drawing, self.teller(tell, len(waiting))).run()
            except Stopped:
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                fix = "Draw smaller pictures, or use a smaller base."
                waiting.extendleft(reversed(halves(batch, "picture", fix, self.base, error)))
            release(self.base.device)
        tell(self.sheet())

    def teller(self, tell: Callable[[Sheet], None], waiting: int) -> Callable[[int, int], None]:
        """Tells the sheet after each step of a batch, before others that wait."""
        before = self.step

        def after(step: int, steps: int) -> None:
            self.step, self.steps = before + step, before + steps * (1 + waiting)
            tell(self.sheet())
            if self.stop.is_set():
                raise Stopped

        return after

    def sheet(self) -> Sheet:
        """What the rows hold now."""
        variants, prompts, seeds = self.shape
        rows = iter(self.rows)
        pictures = tuple(
            tuple(tuple(next(rows).picture for _ in range(seeds)) for _ in range(prompts)) for _ in range(variants)
        )
        return Sheet(
            pictures=pictures,
            step=self.step,
            steps=self.steps,
            finished=all(row.finished for row in self.rows),
            seconds=time.perf_counter() - self.start,
            previews=any(row.picture is not None and not row.finished for row in self.rows),
        )
