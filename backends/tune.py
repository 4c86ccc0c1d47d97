"""The strength of a merge that is best on given rows: one merge, its live weight changed between trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends import library
from backends.bases import TextBase
from backends.score import score
from backends.variants import Variant
from lego.errors import AdapterError
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


@dataclass(frozen=True)
class Rows:
    """Rows with known answers.

    Attributes:
        rows: with ``prompt`` and ``answer``.
        sha256: of the file they came from.
        split: which of its splits they are, where it has several.
    """

    rows: tuple[dict[str, str], ...]
    sha256: str
    split: str | None = None


def read_rows(path: Path, split: str | None = None) -> Rows:
    """Rows from a file, one JSON object with ``prompt`` and ``answer`` a line.

    Args:
        path: of the file.
        split: take only the rows whose ``split`` is this.

    Raises:
        AdapterError: when a line is not such a row, none is left, or rows of several splits would be mixed.
    """
    try:
        data = path.read_bytes()
        lines = data.decode().splitlines()
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise AdapterError("is not text in UTF-8", path) from error
    rows = [row_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    splits = list(dict.fromkeys(row.get("split", "") for row in rows))
    if split is None and len(splits) > 1:
        names = ", ".join(name or "none" for name in splits)
        raise AdapterError(f"holds rows of several splits ({names})", path, "Choose one with --split.")
    kept = tuple(row for row in rows if split in (None, row.get("split")))
    if not kept:
        raise AdapterError("holds no rows" + (f" of the split {split!r}" if split else ""), path)
    return Rows(kept, hashlib.sha256(data).hexdigest(), split)


def row_of(line: str, where: str) -> dict[str, str]:
    """One row.

    Raises:
        AdapterError: when it is none.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AdapterError(f"is not JSON ({error})", where) from error
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompt", "answer")):
        raise AdapterError('is not a row: it takes {"prompt": "…", "answer": "…"}', where)
    return row


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
