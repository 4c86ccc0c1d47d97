"""What parts of a variant do: each set of its units muted in turn, and how far the output moves.

Of texts it is the divergence from the whole variant, token by token along the whole variant's own answer, so that one changed word
does not make everything after it differ. Of pictures it is the distance that a contrastive model sees between two drawings of the
same noise.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backends.alignment import Alignment
from backends.bases import ImageBase, TextBase
from backends.decode import decode, forward, read_by_gates
from backends.drawing import Drawing
from backends.errors import BaseError
from backends.image import draw
from backends.lent import Keys, lent, of_variants
from backends.memory import out_of_memory, rows_at_once
from backends.sampling import Sampling
from backends.score import TOKENS_AT_ONCE
from backends.text import rows_of
from backends.variants import Variant, pool_of, routes_of
from lego.errors import AdapterError
from lego.unitset import UnitSet
from mole.gated import Gated
from mole.pool import Weighting


@dataclass(frozen=True)
class Ablation:
    """How far the output moves without each set of units, as far as it is known.

    Attributes:
        moved: of each set, NaN while it is not measured: nats per token, or 1 − cosine of two pictures.
        done, total: sets, or steps of drawing.
        answer: the whole variant's text; empty for pictures.
        seconds: since the start.
    """

    moved: tuple[float, ...]
    done: int
    total: int
    answer: str
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether all sets are measured."""
        return not any(map(math.isnan, self.moved))


def without(whole: Weighting, units: UnitSet) -> Weighting:
    """A variant without some units, besides those that it mutes already."""
    return replace(whole, muted=UnitSet.of(whole.muted) | units)


def check(sets: Sequence[UnitSet], prompt: str) -> None:
    """Refuse nothing to mute, and an empty prompt.

    Raises:
        AdapterError: naming it.
    """
    if not sets:
        raise AdapterError("there is nothing to mute", None, "Give at least one set of units.")
    if not prompt.strip():
        raise AdapterError("there is no prompt", None, "Write one.")


def of_whole(whole: Weighting, **others: Any) -> Keys:
    """The keys of the adapters and gates of the variant."""
    return of_variants([Variant("", whole)])


def expected(sets: Sequence[UnitSet], **others: Any) -> float:
    """Seconds that an ablation takes on a lent GPU, about."""
    return 20 + 0.05 * len(sets)


@lent(expected, of_whole)
def ablate_text(
    base: TextBase,
    whole: Weighting,
    sets: Sequence[UnitSet],
    prompt: str,
    sampling: Sampling | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Ablation]:
    """KL(whole ‖ whole without the set) of the next token, the mean over the tokens of the whole variant's own answer.

    Args:
        base: the model.
        whole: the variant that parts are taken out of.
        sets: what is muted, one after the other.
        prompt: what is answered.
        sampling: how; greedy with 24 tokens unless given.
        stop: when set, no further batch is run.

    Yields:
        The result so far: once the answer is there, and after every batch.

    Raises:
        AdapterError: when there is nothing to mute or to answer, or a set names units that are not there.
        BaseError: when the prompt is too long or memory does not suffice.
    """
    check(sets, prompt)
    start, stop = time.perf_counter(), stop or threading.Event()
    sampling = sampling or Sampling(max_new_tokens=24)
    variant = Variant("whole", whole)
    live = Gated(base.model, pool_of(base, [variant]))
    (row,) = rows_of(base, 1, [prompt], sampling)
    for _ in decode(base, live, [row], [variant], sampling, stop):
        pass
    found = Ablation((math.nan,) * len(sets), 0, len(sets), row.made.text, time.perf_counter() - start)
    yield found
    answer = max(1, len(row.made.ids))
    size = batch_size(base, len(row.ids) + answer, answer)
    for first in range(0, len(sets), size):
        if stop.is_set():
            return
        part = [without(whole, units) for units in sets[first : first + size]]
        moved = divergences(base, live, row.ids, row.made.ids, [whole, *part])
        done = first + len(part)
        after = found.moved[:first] + tuple(moved) + found.moved[done:]
        found = replace(found, moved=after, done=done, seconds=time.perf_counter() - start)
        yield found


def batch_size(base: TextBase, tokens: int, positions: int) -> int:
    """Sets in one batch beside the whole variant; at least one."""
    most = min(rows_at_once(base, tokens, positions), TOKENS_AT_ONCE.get(base.device.type, 8192) // tokens)
    return max(1, most - 1)


def divergences(
    base: TextBase, live: Gated, prompt: Sequence[int], answer: Sequence[int], weightings: Sequence[Weighting]
) -> list[float]:
    """KL(first ‖ other) of every further weighting, in nats per token of the answer, all in one pass.

    Raises:
        BaseError: when the pass does not fit into memory.
    """
    rows = [Variant("", weighting) for weighting in weightings]
    live.set_rows(live.pool.row_weights(weightings), routes_of(base, rows))
    ids = torch.tensor([*prompt, *answer][: len(prompt) + max(1, len(answer)) - 1], device=base.device)
    ids = ids.expand(len(rows), -1)
    kept = max(1, len(answer))
    mask = torch.ones_like(ids)
    read = read_by_gates(mask, [kept - 1] * len(rows)) if live.routes else None
    try:
        out = forward(base, live, read, input_ids=ids, use_cache=False, logits_to_keep=kept)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise BaseError("the batch does not fit into memory", base.info.id, "Use a shorter prompt.") from error
    return kl(out["logits"][:, -kept:])


def kl(logits: Float[Tensor, "rows positions vocab"]) -> list[float]:
    """KL(first row ‖ other row), the mean over positions, in nats."""
    log = logits.float().log_softmax(-1)
    first = log[:1]
    found = (first.exp() * (first - log[1:])).sum(-1).mean(-1)
    return found.clamp_min(0).tolist()


def ablate_image(
    base: ImageBase,
    whole: Weighting,
    sets: Sequence[UnitSet],
    prompt: str,
    judge: Alignment,
    drawing: Drawing | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Ablation]:
    """1 − cosine of the picture without each set with the whole variant's, of the same noise; the mean over the seeds.

    Args:
        base, whole, sets, prompt, stop: as in `ablate_text`.
        judge: the contrastive model.
        drawing: steps, guidance, seeds.

    Yields:
        How far the drawing is, and at the end the result.

    Raises:
        AdapterError: as `ablate_text` and `backends.image.draw`.
        BaseError: when memory does not suffice for one picture.
    """
    check(sets, prompt)
    start = time.perf_counter()
    variants = [Variant("", whole), *(Variant("", without(whole, units)) for units in sets)]
    found = Ablation((math.nan,) * len(sets), 0, 0, "", 0.0)
    sheet = None
    for sheet in draw(base, variants, [prompt], drawing, stop):
        yield replace(found, done=sheet.step, total=sheet.steps, seconds=time.perf_counter() - start)
    if sheet is None or not sheet.finished:
        return
    pictures = [picture.convert("RGB") for (own,) in sheet.pictures for picture in own if picture is not None]
    vectors = judge.images(pictures).view(len(variants), -1, judge.model.config.projection_dim)
    moved = 1 - (vectors[1:] * vectors[:1]).sum(-1).mean(-1)
    yield replace(
        found,
        moved=tuple(moved.clamp_min(0).tolist()),
        done=sheet.steps,
        total=sheet.steps,
        seconds=time.perf_counter() - start,
    )
