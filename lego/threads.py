"""How many cores the many small operations of clustering and projecting use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the calling thread's tensor operations on one core.

    Thousands of operations of microseconds gain little from a second core; where another process keeps that core busy, waiting for it
    at the end of each made clustering ten times as slow. Unlike `torch.set_num_threads`, this leaves other threads alone.
    """
    torch.get_num_threads()  # a thread's first question sets its number: before ours, not after
    with openmp().limit(limits=1, user_api="openmp"):
        yield


@cache
def openmp() -> ThreadpoolController:
    """The thread pools of the loaded libraries, looked up once."""
    return ThreadpoolController()
