"""Task scores: how often a variant's greedy answer is exactly right, and how likely it finds the right answer."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backends.bases import TextBase
from backends.decode import end_tokens, forward, new_cache, pad_left, read_by_gates
from backends.errors import BaseError
from backends.lent import lent
from backends.memory import halves, out_of_memory, release, rows_at_once
from backends.variants import Variant, context_length, encode, pool_of, routes_of
from lego.errors import AdapterError
from mole.gated import Gated

TOKENS_AT_ONCE = {"cpu": 512}
"""Tokens of a batch beyond the shared prefix: enough to keep the CPU busy, few enough that progress shows and Stop works."""


@dataclass(frozen=True)
class Scores:
    """Scores as far as they have come. A variant that has no row yet has NaN.

    Attributes:
        names: of the variants.
        exact: share of rows answered exactly, by variant.
        nll: negative log-likelihood per answer token in nats, the end token included, by variant.
        hits: of every variant and row, in the order given: exactly right or not, None while it is not scored.
        done, total: row scores, over all variants.
        finished: whether all are done.
        seconds: since the start.
    """

    names: tuple[str, ...]
    exact: tuple[float, ...]
    nll: tuple[float, ...]
    hits: tuple[tuple[bool | None, ...], ...]
    done: int
    total: int
    finished: bool
    seconds: float

    def interval(self, variant: int) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of a variant's exact share."""
        found = [hit for hit in self.hits[variant] if hit is not None]
        n, z = len(found), 1.959964
        if not n:
            return 0.0, 1.0
        share, spread = sum(found) / n, z * z / n
        middle = (share + spread / 2) / (1 + spread)
        half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Example:
    """One row as tokens: the prompt, then the answer with its end token."""

    number: int
    prompt: list[int]
    answer: list[int]


@dataclass(eq=False)
class Scored:
    """One variant on its way through the rows."""

    variant: Variant
    live: Gated
    prefix: Any = None
    nll: float = 0.0
    tokens: int = 0
    hits: dict[int, bool] = field(default_factory=dict)


def expected(variants: Sequence[Variant], rows: Sequence[Mapping[str, str]], **other: Any) -> float:
    """Seconds that scoring takes on a lent GPU, about."""
    return 15 + 0.02 * len(variants) * len(rows)


@lent(expected)
def score(
    base: TextBase,
    variants: Sequence[Variant],
    rows: Sequence[Mapping[str, str]],
    stop: threading.Event | None = None,
    chat: bool = True,
    system: str | None = None,
) -> Iterator[Scores]:
    """Score variants on rows with known answers, without generating.

    The answer is fed in (teacher-forced). Where every answer token and the end token after it is the most likely one, greedy
    decoding gives exactly the answer, token for token; so the exact share is that of greedy decoding at a fraction of its cost.
    (The same letters spelt with other tokens count as wrong.) What the prompts have in common at their beginning, as the system
    message and the question's wording, is run once for each variant; gates read whole prompts, so a gated variant runs them whole.

    Args:
        base: the model.
        variants: what to score.
        rows: with ``prompt`` and ``answer``.
        stop: when set, no further batch is run.
        chat, system: as in `backends.sampling.Sampling`.

    Yields:
        The table while it fills, all variants with about the same rows; the last one is the result.

    Raises:
        AdapterError: when there is nothing to score, or an adapter does not fit the base.
        BaseError: when a row is too long or memory does not suffice for one.
    """
    start, stop = time.perf_counter(), stop or threading.Event()
    if not variants or not rows:
        raise AdapterError("nothing to score", None, "Give at least one variant and one row.")
    examples = [encode_row(base, number, row, chat, system) for number, row in enumerate(rows)]
    pool = pool_of(base, variants)
    found = [Scored(variant, Gated(base.model, pool)) for variant in variants]
    for scored in found:
        scored.live.set_rows(pool.row_weights([scored.variant.weighting]))
    shared = common_prefix([example.prompt for example in examples])
    names = tuple(variant.name for variant in variants)
    for batch in batches(base, examples, shared):
        for scored in found:
            if stop.is_set():
                return
            run(base, scored, batch, shared)
            if all(other.hits for other in found):
                yield table(names, found, len(rows), time.perf_counter() - start)


def table(names: tuple[str, ...], found: Sequence[Scored], rows: int, seconds: float) -> Scores:
    """What is known now."""
    done, total = sum(len(scored.hits) for scored in found), len(found) * rows
    return Scores(
        names=names,
        exact=tuple(sum(s.hits.values()) / len(s.hits) if s.hits else math.nan for s in found),
        nll=tuple(s.nll / s.tokens if s.tokens else math.nan for s in found),
        hits=tuple(tuple(s.hits.get(number) for number in range(rows)) for s in found),
        done=done,
        total=total,
        finished=done == total,
        seconds=seconds,
    )


def encode_row(base: TextBase, number: int, row: Mapping[str, str], chat: bool, system: str | None) -> Example:
    """One row as tokens.

    Raises:
        BaseError: when it is longer than the base reads, or the base has no end token.
    """
    prompt = encode(base, row["prompt"], chat, system)
    ends = end_tokens(base)
    if not ends:
        raise BaseError("has no end token, so no answer can be complete", base.info.id)
    end = base.tokenizer.eos_token_id if base.tokenizer.eos_token_id in ends else min(ends)
    answer = [*base.tokenizer(row["answer"], add_special_tokens=False)["input_ids"], end]
    if (most := context_length(base)) and len(prompt) + len(answer) > most:
        raise BaseError(f"row {number + 1} has {len(prompt) + len(answer)} tokens, more than {most}", base.info.id)
    return Example(number, prompt, answer)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least one is left for each."""
    shared = min(map(len, prompts)) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        shared = next((i for i in range(shared) if prompt[i] != first[i]), shared)
    return shared


def batches(base: TextBase, examples: Sequence[Example], shared: int) -> Iterator[list[Example]]:
    """Examples of similar length together, the longest first, so that memory fails early if it does."""
    at_once = TOKENS_AT_ONCE.get(base.device.type, 8192)
    ordered = sorted(examples, key=lambda e: -len(e.prompt) - len(e.answer))
    while ordered:
        longest = len(ordered[0].prompt) + len(ordered[0].answer)
        most = rows_at_once(base, longest, max(len(example.answer) for example in ordered))
        count = max(1, min(most, at_once // (longest - shared)))
        yield ordered[:count]
        ordered = ordered[count:]


def run(base: TextBase, scored: Scored, batch: list[Example], shared: int) -> None:
    """Score one batch, in halves where memory runs out.

    Raises:
        BaseError: when one row alone does not fit.
    """
    smaller: Sequence[list[Example]] = ()
    try:
        logits = answer_logits(base, scored, batch, shared)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        smaller = halves(batch, "row", "Use shorter rows or a smaller base.", base, error)
    if smaller:  # outside the handler, whose error keeps the failed pass's memory
        release(base.device)
        for half in smaller:
            run(base, scored, half, shared)
        return
    ends = end_tokens(base)
    for example, row in zip(batch, logits, strict=True):
        row = row[-len(example.answer) :]
        best = row.argmax(-1).tolist()
        target = torch.tensor(example.answer, device=row.device)
        scored.nll += float(torch.nn.functional.cross_entropy(row.float(), target, reduction="sum"))
        scored.tokens += len(example.answer)
        scored.hits[example.number] = best[:-1] == example.answer[:-1] and best[-1] in ends


def answer_logits(base: TextBase, scored: Scored, batch: Sequence[Example], shared: int) -> Tensor:
    """Logits (rows, positions, vocab) that predict the batch's answers, ending with the end token's."""
    prompt = None
    if scored.variant.weighting.gates:
        shared, same = 0, [scored.variant] * len(batch)
        scored.live.set_rows(scored.live.pool.row_weights([each.weighting for each in same]), routes_of(base, same))
    if shared and scored.prefix is None:
        prefix = torch.tensor([batch[0].prompt[:shared]], device=base.device)
        scored.prefix = new_cache(base)
        forward(
            base, scored.live, None, input_ids=prefix, past_key_values=scored.prefix, use_cache=True, logits_to_keep=1
        )
    sequences = [example.prompt[shared:] + example.answer[:-1] for example in batch]
    ids, mask = pad_left(sequences, base.device)
    if scored.live.routes:
        prompt = read_by_gates(mask, [len(example.answer) - 1 for example in batch])
    mask = torch.cat([mask.new_ones(len(batch), shared), mask], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, shared:]
    cache = None
    if shared:
        with torch.inference_mode():
            cache = copy.deepcopy(scored.prefix)
            cache.batch_repeat_interleave(len(batch))
    kept = max(len(example.answer) for example in batch)
    out = forward(
        base, scored.live, prompt, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
        use_cache=cache is not None, logits_to_keep=kept,
    )  # fmt: skip
    return out["logits"][:, -kept:]
