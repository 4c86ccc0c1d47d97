"""Votes between two variants at a time, and what they say about all: Bradley–Terry strengths with intervals. Plain functions.

A variant i beats j with probability σ(θ_i − θ_j). A tie, and a vote that both are bad, count as half a win for each. The strengths θ
maximise the likelihood of all votes under the prior θ_i ~ N(0, `PRIOR`²), without which one that has won every vote would be
infinitely strong; they sum to 0. Their 95 % intervals are Laplace's: normal, with the inverse of the negative log posterior's second
derivative as covariance, of each strength against the mean of all. The prior matters less the more votes there are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Choice = Literal["left", "right", "tie", "both bad"]
CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both bad")
PRIOR = 2.0
"""Standard deviation of the prior of a strength, in units of log odds."""
Z = 1.959963984540054
"""Of a 95 % interval of a normal distribution."""


@dataclass(frozen=True)
class Vote:
    """What somebody said about one pair: the names of its two variants, where it stood, and the choice."""

    prompt: str
    seed: int
    left: str
    right: str
    choice: Choice

    @property
    def winner(self) -> str:
        """The name of the better one; empty where there is none."""
        return {"left": self.left, "right": self.right}.get(self.choice, "")


@dataclass(frozen=True)
class Standing:
    """How one variant stands.

    Attributes:
        name: of the variant.
        strength: θ, log odds against an average opponent.
        low, high: its 95 % interval.
        wins, losses, ties, bad: votes; the last two in which it shared a tie or was bad like the other.
    """

    name: str
    strength: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    bad: int


def strengths(won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bradley–Terry strengths and their covariance; see the module.

    Args:
        won: (n, n), how often i beat j, halves for ties.

    Returns:
        θ (n,) that sum to 0, and the covariance (n, n) of θ minus its mean.
    """
    count = len(won)
    games, theta = won + won.T, np.zeros(count)
    for _ in range(100):  # Newton on a strictly convex function; a handful of steps is enough
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        gradient = (won - games * chance).sum(1) - theta / PRIOR**2
        spread = games * chance * (1 - chance)
        curvature = np.diag(spread.sum(1) + 1 / PRIOR**2) - spread
        step = np.linalg.solve(curvature, gradient)
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            break
    centre = np.eye(count) - 1 / count  # votes say nothing about all strengths together
    return theta, centre @ np.linalg.inv(curvature) @ centre


def tally(votes: Sequence[Vote]) -> list[Standing]:
    """How all variants stand that were voted on, the strongest first."""
    names = list(dict.fromkeys(name for vote in votes for name in (vote.left, vote.right)))
    at = {name: i for i, name in enumerate(names)}
    won = np.zeros((len(names), len(names)))
    for vote in votes:
        left, right = at[vote.left], at[vote.right]
        share = {"left": 1.0, "right": 0.0}.get(vote.choice, 0.5)
        won[left, right] += share
        won[right, left] += 1 - share
    theta, covariance = strengths(won)
    wide = Z * np.sqrt(covariance.diagonal())
    found = [
        Standing(name, float(theta[i]), float(theta[i] - wide[i]), float(theta[i] + wide[i]), *_counts(votes, name))
        for name, i in at.items()
    ]
    return sorted(found, key=lambda standing: -standing.strength)


def _counts(votes: Sequence[Vote], name: str) -> tuple[int, int, int, int]:
    mine = [vote for vote in votes if name in (vote.left, vote.right)]
    won = sum(vote.winner == name for vote in mine)
    ties = sum(vote.choice == "tie" for vote in mine)
    bad = sum(vote.choice == "both bad" for vote in mine)
    return won, len(mine) - won - ties - bad, ties, bad


def chance(strength: float) -> float:
    """The probability with which a variant of this strength beats an average one."""
    return float(1 / (1 + np.exp(-strength)))


def to_csv(votes: Sequence[Vote]) -> str:
    """One line a vote: number, prompt, seed, left, right, choice, winner."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["vote", "prompt", "seed", "left", "right", "choice", "winner"])
    for number, vote in enumerate(votes, 1):
        table.writerow([number, vote.prompt, vote.seed, vote.left, vote.right, vote.choice, vote.winner])
    return file.getvalue()
