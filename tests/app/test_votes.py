"""Votes: strengths against scikit-learn's logistic regression, intervals against a second derivative taken numerically."""

from __future__ import annotations

import csv
import io
from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from components.compare import votes
from components.compare.votes import Vote

NAMES = ["one", "two", "three", "four"]


def drawn(count: int, seed: int, unbeaten: bool = False) -> list[Vote]:
    """Votes as somebody might have cast them."""
    rng = np.random.default_rng(seed)
    pairs = list(combinations(NAMES, 2))
    found = []
    for number in range(count):
        left, right = rng.permutation(pairs[number % len(pairs)]).tolist()
        choice = votes.CHOICES[rng.choice(4, p=[0.45, 0.25, 0.2, 0.1])]
        if unbeaten and "one" in (left, right):
            choice = "left" if left == "one" else "right"
        found.append(Vote(f"prompt {number}", 0, left, right, choice))
    return found


def rows(cast: list[Vote]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each vote as two weighted games: a tie is half a win for each."""
    x, y, w = [], [], []
    for vote in cast:
        row = np.zeros(len(NAMES))
        row[NAMES.index(vote.left)], row[NAMES.index(vote.right)] = 1, -1
        share = {"left": 1.0, "right": 0.0}.get(vote.choice, 0.5)
        x += [row, row]
        y += [1, 0]
        w += [share, 1 - share]
    return np.array(x), np.array(y), np.array(w)


@pytest.mark.parametrize(("count", "unbeaten"), [(6, False), (60, False), (60, True), (1, False)])
def test_strengths_are_those_of_a_logistic_regression(count: int, unbeaten: bool) -> None:
    cast = drawn(count, seed=count, unbeaten=unbeaten)
    x, y, w = rows(cast)
    keep = w > 0
    model = LogisticRegression(C=votes.PRIOR**2, fit_intercept=False, tol=1e-10, max_iter=10_000)
    if len(set(y[keep])) == 1:  # scikit-learn wants both outcomes: the same game, seen from the other side
        x, y, w, keep = np.vstack([x, -x]), np.concatenate([y, 1 - y]), np.concatenate([w, w]) / 2, np.tile(keep, 2)
    expected = model.fit(x[keep], y[keep], w[keep]).coef_[0]
    found = {standing.name: standing.strength for standing in votes.tally(cast)}
    for name, strength in found.items():
        assert strength == pytest.approx(expected[NAMES.index(name)], abs=1e-4)
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)


def test_intervals_come_from_the_curvature_of_the_posterior() -> None:
    cast = drawn(40, seed=3)
    x, y, w = rows(cast)
    found = {standing.name: standing for standing in votes.tally(cast)}
    theta = np.array([found[name].strength for name in NAMES])

    def loss(at: np.ndarray) -> float:
        sign = np.where(y == 1, 1, -1)
        return float((w * np.log1p(np.exp(-sign * (x @ at)))).sum() + (at**2).sum() / (2 * votes.PRIOR**2))

    step, basis = 1e-4, np.eye(len(NAMES))
    curvature = np.array(
        [
            [
                sum(s * t * loss(theta + step * (s * a + t * b)) for s in (1, -1) for t in (1, -1)) / (4 * step**2)
                for b in basis
            ]
            for a in basis
        ]
    )
    centred = basis - 1 / len(NAMES)
    deviation = np.sqrt((centred @ np.linalg.inv(curvature) @ centred.T).diagonal())
    for name, wide in zip(NAMES, deviation, strict=True):
        assert found[name].high - found[name].low == pytest.approx(2 * 1.96 * wide, rel=1e-3)
        assert found[name].low < found[name].strength < found[name].high


def test_more_votes_narrow_the_intervals() -> None:
    few, many = (votes.tally(drawn(count, seed=1)) for count in (12, 600))
    assert max(s.high - s.low for s in many) < 0.5 * min(s.high - s.low for s in few)


def test_every_vote_is_counted_and_exported() -> None:
    cast = [
        Vote('say "hi", please', 3, "one", "two", "left"),
        Vote("two\nlines", 4, "two", "one", "right"),
        Vote("x", 0, "one", "two", "tie"),
        Vote("x", 0, "one", "two", "both bad"),
    ]
    first, second = votes.tally(cast)
    assert (first.name, first.wins, first.losses, first.ties, first.bad) == ("one", 2, 0, 1, 1)
    assert (second.name, second.wins, second.losses, second.ties, second.bad) == ("two", 0, 2, 1, 1)
    read = list(csv.DictReader(io.StringIO(votes.to_csv(cast))))
    assert [row["winner"] for row in read] == ["one", "one", "", ""]
    assert [(row["prompt"], row["seed"], row["left"]) for row in read[:2]] == [
        ('say "hi", please', "3", "one"),
        ("two\nlines", "4", "two"),
    ]
