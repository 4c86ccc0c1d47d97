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
        latest: the token that the model reads next.
    """

    variant: int
    prompt: int
    ids: list[int]
    made: Detokeniser
    limit: int
    ended: bool = False
    latest: int = 0

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
    batch, ends = rows, end_tokens(base)
    ids, mask = pad_left([row.ids + row.made.ids for row in batch], base.device)
    step: Step | None = None
    for part in stages(base, batch, variants):
        own = batch[part]
        live.set_rows(*weights_of(base, live, own, variants))
        read = Step(base)
        logits = read(live, ids[part], mask[part], read_by_gates(mask[part], [len(row.made.ids) for row in own]))
        _take(own, logits, sampling, ends)
        step = read if step is None else step.joined(read)
        yield
        if stop.is_set():
            return
    assert step is not None
    if len(own) < len(batch):
        live.set_rows(*weights_of(base, live, batch, variants))
    while going := [i for i, row in enumerate(batch) if not row.ended]:
        if len(going) <= KEEP_ABOVE * len(batch):
            kept = torch.tensor(going, device=base.device)
            step.keep_rows(kept)
            live.keep_rows(kept)
            batch, mask = [batch[i] for i in going], mask[kept]
        ids = torch.tensor([[row.latest] for row in batch], device=base.device)
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
        _take(batch, step(live, ids, mask), sampling, ends)  # gates keep what they chose
        yield
        if stop.is_set():
            return


def stages(base: TextBase, rows: Sequence[Row], variants: Sequence[Variant]) -> list[slice]:
    """The rows as they read their prompts: on a CPU those of the first prompt before the others, whose words then are there soon.

    All at once where a GPU reads them in no time, where gates remember what they read, and where a cache cannot be joined.
    """
    first = sum(row.prompt == rows[0].prompt for row in rows)
    gated = any(variants[row.variant].weighting.gates for row in rows)
    if base.device.type != "cpu" or gated or first == len(rows) or not Step(base).joins:
        return [slice(0, len(rows))]
    return [slice(0, first), slice(first, len(rows))]


def weights_of(base: TextBase, live: Gated, rows: Sequence[Row], variants: Sequence[Variant]) -> tuple[Any, Any]:
    """What `Gated.set_rows` takes for some rows."""
    shown = [variants[row.variant] for row in rows]
    return live.pool.row_weights([variant.weighting for variant in shown]), routes_of(base, shown)


def _take(rows: Sequence[Row], logits: Float[Tensor, "rows vocab"], sampling: Sampling, ends: set[int]) -> None:
    """Choose a token for every row that goes on."""
    prompts, steps = [row.prompt for row in rows], [len(row.made.ids) for row in rows]
    for row, token in zip(rows, choose(logits, sampling, prompts, steps).tolist(), strict=True):
        row.latest = token
        if not row.ended:
            row.take(token, ends)


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

    @property
    def joins(self) -> bool:
        """Whether rows can join: not those of sliding windows and of states."""
        from backends.room import RoomyLayer

        return all(type(layer) is RoomyLayer for layer in self.cache.layers)

    def joined(self, other: Step) -> Step:
        """This, going on with another's rows as well, which have read as many tokens."""
        with torch.inference_mode():
            for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
                mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self._padded = None
        return self


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
