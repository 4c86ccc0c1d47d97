"""Trimming over all modules of an adapter at once, as the TIES paper does with its task vectors; PEFT trims each tensor on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from lego.units import Pool

# Pieces of what one source is trimmed by, in one pool.
Entries = Callable[[Pool, int], Iterator[Tensor]]
HALF = 16  # bits of an fp32 number that are counted at a time


def limit_over_all(pool: Pool, source: int, density: float, entries: Entries) -> float:
    """The least magnitude among the share ``density`` of largest of one source, over every module of the merge.

    The modules are read again, twice, and only once for a merge.
    """
    key = (source, density, entries)

    def pieces() -> Iterator[np.ndarray]:
        for other in pool.whole.pools():
            if source in other.present:
                for piece in entries(other, source):
                    yield piece.abs().cpu().contiguous().numpy().ravel()

    with pool.whole.lock:
        if key not in pool.whole.memo:
            pool.whole.memo[key] = kth_largest(pieces, density)
        return pool.whole.memo[key]


def kth_largest(pieces: Callable[[], Iterator[np.ndarray]], density: float) -> float:
    """The entry of rank ``int(density · entries)`` from above in a stream of fp32 magnitudes, exactly; infinite for rank 0.

    The bits of positive numbers are in the numbers' order: counting the upper halves finds the half that the entry has, counting the
    lower halves of those finds the entry.
    """
    upper, lower = (np.zeros(1 << HALF, dtype=np.int64) for _ in range(2))
    for piece in pieces():
        upper += np.bincount(bits(piece) >> HALF, minlength=1 << HALF)
    count = int(density * int(upper.sum()))
    if count < 1:
        return float("inf")
    high, left = place(upper, count)
    for piece in pieces():
        found = bits(piece)
        lower += np.bincount(found[found >> HALF == high] & ((1 << HALF) - 1), minlength=1 << HALF)
    low, _ = place(lower, left)
    return float(np.array((high << HALF) | low, dtype=np.uint32).view(np.float32))


def bits(piece: np.ndarray) -> np.ndarray:
    """fp32 numbers as whole numbers."""
    return piece.astype(np.float32, copy=False).view(np.uint32)


def place(counts: np.ndarray, count: int) -> tuple[int, int]:
    """The value of the count-th entry from above, and its place among those of that value."""
    above = np.cumsum(counts[::-1])
    found = int(np.searchsorted(above, count))
    return len(counts) - 1 - found, count - int(above[found] - counts[::-1][found])
