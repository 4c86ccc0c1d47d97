"""How long things take on this machine: measured whenever they are done, guessed before the first time."""

from __future__ import annotations

import time
from functools import cache

import torch

from backends.bases import ImageBase, TextBase

KEPT = 0.5
"""What earlier measurements still count for beside each new one; in itself each counts by the work that it measured."""
SHORT = 0.05
"""Seconds below which a measurement says more about everything else."""
MERGED = "merge"
LATENT = 32
"""Side of the latents that a guess about pictures takes for granted."""

_paces: dict[tuple[str, str], tuple[float, float]] = {}
"""Seconds and amounts of work, of each kind and place."""


def note(what: str, where: str, amount: float, seconds: float) -> None:
    """Remember that an amount of work took so long.

    Args:
        what: the kind of work: ``merge``, ``text``, ``picture``.
        where: on which base, by its id; empty where that does not matter.
        amount: rows × tokens, pictures × steps, parameters of the sources.
        seconds: it took.
    """
    if amount > 0 and seconds > SHORT:
        before, work = _paces.get((what, where), (0.0, 0.0))
        _paces[what, where] = KEPT * before + seconds, KEPT * work + amount


def expected(what: str, where: str, amount: float) -> float | None:
    """Seconds that an amount of work will take, as measured here before; None before the first time."""
    seconds, work = _paces.get((what, where), (0.0, 0.0))
    return seconds / work * amount if work else None


def guessed(base: TextBase | ImageBase, amount: float) -> float:
    """Seconds, from the number of operations alone: two a weight and token; a picture is taken for so many tokens as a quarter
    of its latent has pixels, with and without its prompt.
    """
    weights = sum(parameter.numel() for parameter in base.model.parameters())
    positions = 1.0 if isinstance(base, TextBase) else 2 * LATENT**2 / 4
    return amount * positions * 2 * weights / rate(str(base.device), base.dtype)


@cache
def rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of middling size, measured once; a model reaches about a third of it."""
    a = torch.ones(512, 512, device=device, dtype=dtype)
    best = min(_seconds(a) for _ in range(3))
    return 2 * 512**3 / best / 3


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    float((a @ a)[0, 0])  # waits for the device
    return time.perf_counter() - start
