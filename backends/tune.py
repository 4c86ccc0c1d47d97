"""The strength of a merge that is best on given rows: one merge, its live weight changed between trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends import library
from backends.bases import TextBase
from backends.rows import Rows
from backends.score import score
from backends.variants import Variant
from mole.live import Weighting

STRENGTHS = (0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
ROUNDS = 2  # of halving the distance to the neighbours of the best

# Told (trials done, trials in all of this round).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """The score of a merge at one strength: share of rows answered exactly, loss in nats per answer token."""

    strength: float
    exact: float
    nll: float

    @property
    def quality(self) -> tuple[float, float]:
        """What is compared: the exact share, among equals the loss."""
        return self.exact, -self.nll


def score_at(base: TextBase, folder: Path, rows: Rows, strengths: Sequence[float] = (1.0,)) -> list[Trial]:
    """Scores of an adapter at several strengths.

    Args:
        base: the model.
        folder: of the adapter.
        rows: what is asked.
        strengths: its weights.

    Raises:
        AdapterError: when the adapter does not fit the base, or a row is too long.
    """
    key = library.add_folder(folder).key
    variants = [Variant(f"{strength:g}", Weighting(((key, strength),))) for strength in strengths]
    *_, last = score(base, variants, rows.rows)
    return [Trial(*trial) for trial in zip(strengths, last.exact, last.nll, strict=True)]


def best_strength(
    base: TextBase,
    folder: Path,
    rows: Rows,
    strengths: Sequence[float] = STRENGTHS,
    progress: Progress | None = None,
) -> tuple[float, list[Trial]]:
    """The strength with the most exact answers; among equals the one with the least loss.

    First the given strengths, then `ROUNDS` times the middles between the best and its neighbours (beyond the first and the last: half
    of it, one and a half times it).

    Args:
        base: the model.
        folder: the merge at strength 1.
        rows: what is asked; apart from those that judge the merge.
        strengths: tried first, positive.
        progress: told (trials done, trials known of).

    Returns:
        The strength, and all trials by strength.

    Raises:
        AdapterError: when the merge does not fit the base, or a row is too long.
    """
    trials: dict[float, Trial] = {}
    wanted = list(strengths)
    for left in range(ROUNDS, -1, -1):
        for number, strength in enumerate(wanted):
            if progress:
                progress(len(trials), len(trials) + len(wanted) - number)
            trials[strength] = score_at(base, folder, rows, [strength])[0]
        if left:
            wanted = [strength for strength in around(best(trials).strength, sorted(trials)) if strength not in trials]
    return best(trials).strength, [trials[strength] for strength in sorted(trials)]


def best(trials: dict[float, Trial]) -> Trial:
    """The best trial."""
    return max(trials.values(), key=lambda trial: trial.quality)


def around(strength: float, known: Sequence[float]) -> list[float]:
    """The middles to the neighbours of one of the known strengths, three digits."""
    place = known.index(strength)
    below = (known[place - 1] + strength) / 2 if place else strength / 2
    above = (known[place + 1] + strength) / 2 if place + 1 < len(known) else strength * 1.5
    return [float(f"{value:.3g}") for value in (below, above)]
