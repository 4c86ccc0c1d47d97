"""Running rows of different variants and prompts as one batch, token by token."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backends.bases import TextBase
from backends.detokenise import Detokeniser
from backends.errors import BaseError
from backends.memory import halves, out_of_memory, release, rows_at_once
from backends.sampling import Sampling, choose
from backends.variants import Variant, routes_of
from mole.gated import Gated

KEEP_ABOVE = 0.8
"""Ended rows leave the batch when at most this share of it goes on: leaving costs a copy of the cache."""


@dataclass(eq=False)
class Row:
    """One text being made.

    Attributes:
        variant, prompt: where it belongs in the grid.
        ids: the prompt's tokens.
        made: the tokens since, and their text.
        limit: at most so many tokens.
        ended: by the end token or the limit.
    """

    variant: int
    prompt: int
    ids: list[int]
    made: Detokeniser
    limit: int
    ended: bool = False

    def take(self, token: int, ends: set[int]) -> None:
        """One more token."""
        if token in ends:
            self.ended = True
        else:
            self.made.add(token)
            self.ended = len(self.made.ids) >= self.limit
        if self.ended:
            self.made.finish()


def decode(
    base: TextBase,
    live: Gated,
    rows: Sequence[Row],
    variants: Sequence[Variant],
    sampling: Sampling,
    stop: threading.Event,
) -> Iterator[None]:
    """Run all rows to their end, in as few batches as memory allows; yields after every step.

    Args:
        base: the model.
        live: the pool beside it.
        rows: in the order they should run; they are filled in place.
        variants: which the rows name by number.
        sampling: how tokens are chosen.
        stop: looked at before every step.

    Raises:
        BaseError: when not even a single row fits into memory.
    """
    waiting = deque(split(base, rows))
    while waiting and not stop.is_set():
        batch = waiting.popleft()
        try:
            yield from _run(base, live, batch, variants, sampling, stop)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            fix = "Use shorter prompts, fewer tokens or a smaller base."
            alive = [row for row in batch if not row.ended]
            waiting.extendleft(reversed(halves(alive, "text", fix, base, error)))
        release(base.device)


def split(base: TextBase, rows: Sequence[Row]) -> list[list[Row]]:
    """Batches that fit into memory; rows stay in order."""
    longest = max(len(row.ids) + row.limit for row in rows)
    size = rows_at_once(base, longest)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _run(
    base: TextBase,
    live: Gated,
    rows: list[Row],
    variants: Sequence[Variant],
    sampling: Sampling,
    stop: threading.Event,
) -> Iterator[None]:
    batch = rows
    shown = [variants[row.variant] for row in batch]
    live.set_rows(live.pool.row_weights([variant.weighting for variant in shown]), routes_of(base, shown))
    ends = end_tokens(base)
    ids, mask = pad_left([row.ids + row.made.ids for row in batch], base.device)
    prompt: Tensor | None = read_by_gates(mask, [len(row.made.ids) for row in batch])
    step = Step(base)
    while not stop.is_set():
        logits = step(live, ids, mask, prompt)
        prompt = None  # gates keep what they chose
        prompts, steps = [row.prompt for row in batch], [len(row.made.ids) for row in batch]
        chosen = choose(logits, sampling, prompts, steps).tolist()
        for row, token in zip(batch, chosen, strict=True):
            if not row.ended:
                row.take(token, ends)
        yield
        going = [i for i, row in enumerate(batch) if not row.ended]
        if not going:
            return
        if len(going) <= KEEP_ABOVE * len(batch):
            kept = torch.tensor(going, device=base.device)
            step.keep_rows(kept)
            live.keep_rows(kept)
            batch, mask = [batch[i] for i in going], mask[kept]
            chosen = [chosen[i] for i in going]
        ids = torch.tensor(chosen, device=base.device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)


class Step:
    """Forward passes of one batch, each over the tokens that are new."""

    def __init__(self, base: TextBase) -> None:
        """Nothing has been seen yet."""
        self.base = base
        self.cache: Any = new_cache(base)
        self._padded: bool | None = None

    def __call__(
        self, live: Gated, ids: Tensor, mask: Tensor, prompt: Bool[Tensor, "rows new"] | None = None
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the last position, in fp32.

        Args:
            live: in effect during this pass only, under the base's lock, so that others can take turns.
            ids: the new tokens (rows, new).
            mask: 1 for every token so far, 0 for padding (rows, all).
            prompt: which of the new tokens gates read; None where they have read already.

        Raises:
            BaseError: when the model keeps no cache of keys and values.
        """
        if self._padded is None:
            self._padded = not bool(mask.all())
        arguments = {
            "input_ids": ids,
            "attention_mask": mask if self._padded else None,  # attention is faster without one
            "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :],
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        out = forward(self.base, live, prompt, **arguments)
        self.cache = out.get("past_key_values")
        if self.cache is None:
            raise BaseError("keeps no cache of keys and values", self.base.info.id, "Choose an attention-based model.")
        return out.logits[:, -1].float()

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        with torch.inference_mode():
            self.cache.batch_select_indices(rows)


def forward(base: TextBase, live: Gated, prompt: Bool[Tensor, "rows new"] | None, **arguments: Any) -> Any:
    """One forward pass with those of the arguments that the model knows; nobody else can use the model meanwhile.

    Args:
        base: the model.
        live: the pool beside it, in effect during this pass.
        prompt: which of the tokens gates read; None in a pass that no gate reads.
        arguments: of the model.
    """
    known = {name: value for name, value in arguments.items() if name in base.accepts}
    live.prompt = prompt
    with base.lock, torch.inference_mode(), base.packed or nullcontext(), live:
        return base.model(**known)


def new_cache(base: TextBase) -> Any:
    """An empty cache of keys and values for the model."""
    from backends.room import roomy_cache

    return roomy_cache(base.model.config)


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask (rows, longest); the shorter ones begin with masked zeros."""
    width = max(map(len, sequences))
    ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def read_by_gates(mask: Int[Tensor, "rows tokens"], answered: Sequence[int]) -> Bool[Tensor, "rows tokens"]:
    """Which tokens gates read: the prompts', neither padding nor the answers at the rows' ends."""
    from_end = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)
    return mask.bool() & (from_end >= torch.tensor(list(answered), device=mask.device)[:, None])


def end_tokens(base: TextBase) -> set[int]:
    """The tokens that end a text, as the model's generation config says, else its tokenizer."""
    found = getattr(base.model.generation_config, "eos_token_id", None)
    if found is None:
        found = base.tokenizer.eos_token_id
    return set(found if isinstance(found, list | tuple) else [] if found is None else [found])
