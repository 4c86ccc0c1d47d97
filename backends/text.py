"""Texts of many variants for many prompts, streamed side by side from one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backends.bases import TextBase
from backends.decode import Row, decode
from backends.detokenise import Detokeniser
from backends.errors import BaseError
from backends.lent import lent
from backends.rows import tasks
from backends.sampling import Sampling
from backends.score import Scores, score
from backends.variants import Variant, context_length, encode, pool_of
from lego.errors import AdapterError
from mole.gated import Gated

__all__ = ["Grid", "Sampling", "Scores", "Variant", "generate", "score", "tasks"]


@dataclass(frozen=True)
class Grid:
    """A comparison as far as it has come.

    Attributes:
        texts: [variant][prompt].
        tokens: how many tokens each has, [variant][prompt].
        ended: which texts are complete, [variant][prompt].
        finished: whether all are.
        seconds: since the start.
    """

    texts: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    ended: tuple[tuple[bool, ...], ...]
    finished: bool
    seconds: float


def expected(
    variants: Sequence[Variant], prompts: Sequence[str], sampling: Sampling | None = None, **other: Any
) -> float:
    """Seconds that a comparison takes on a lent GPU, about."""
    batches = -(-len(variants) * len(prompts) // 64)
    return 15 + 0.06 * batches * (sampling or Sampling()).max_new_tokens


@lent(expected)
def generate(
    base: TextBase,
    variants: Sequence[Variant],
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Grid]:
    """Every variant's text for every prompt, all in one batch where memory allows.

    A row's greedy text is what the same variant gives alone, and what PEFT gives with the same adapter: the generation config's end
    tokens are honoured, its other settings (penalties, sampling) are not used.

    Args:
        base: from `backends.bases.load_base`.
        variants: the columns; their adapters are looked up in the library.
        prompts: the rows.
        sampling: length, temperature, top-p, seed, chat or raw; greedy with 64 tokens unless given.
        stop: when set, no further token is made.

    Yields:
        The grid after every token; the last one is the result.

    Raises:
        AdapterError: when there is nothing to do, or an adapter does not fit the base.
        BaseError: when a prompt is too long or memory does not suffice for one row.
    """
    start = time.perf_counter()
    sampling, stop = sampling or Sampling(), stop or threading.Event()
    if not variants or not prompts:
        raise AdapterError("nothing to generate", None, "Give at least one variant and one prompt.")
    rows = rows_of(base, len(variants), prompts, sampling)
    pool = pool_of(base, variants)
    for _ in decode(base, Gated(base.model, pool), rows, variants, sampling, stop):
        yield grid_of(rows, len(variants), len(prompts), time.perf_counter() - start)


def rows_of(base: TextBase, variants: int, prompts: Sequence[str], sampling: Sampling) -> list[Row]:
    """One row for every text, the variants of a prompt beside each other.

    Raises:
        BaseError: when a prompt leaves no room for an answer.
    """
    most = context_length(base)
    rows = []
    for number, prompt in enumerate(prompts):
        ids = encode(base, prompt, sampling.chat, sampling.system)
        if most is not None and len(ids) >= most:
            what = f"prompt {number + 1} has {len(ids)} tokens, but the base reads at most {most}"
            raise BaseError(what, base.info.id, "Shorten it.")
        limit = sampling.max_new_tokens if most is None else min(sampling.max_new_tokens, most - len(ids))
        rows += [Row(v, number, ids, Detokeniser(base.tokenizer), limit) for v in range(variants)]
    return rows


def grid_of(rows: Sequence[Row], variants: int, prompts: int, seconds: float) -> Grid:
    """What the rows hold now."""
    by_place = {(row.variant, row.prompt): row for row in rows}
    table = [[by_place[v, p] for p in range(prompts)] for v in range(variants)]
    return Grid(
        texts=tuple(tuple(row.made.text for row in line) for line in table),
        tokens=tuple(tuple(len(row.made.ids) for row in line) for line in table),
        ended=tuple(tuple(row.ended for row in line) for line in table),
        finished=all(row.ended for row in rows),
        seconds=seconds,
    )
