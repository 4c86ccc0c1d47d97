"""Timing a call."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a call takes, what a GPU does for it included.

    Args:
        work: the call.
        clock: on a CPU; where a GPU works it is the wall clock, since no processor's time counts there.
    """
    if not torch.cuda.is_available():
        start = clock()
        work()
        return clock() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
