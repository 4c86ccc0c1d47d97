"""What is expected to take how long: what was measured, each by the work it measured, the newest most."""

from __future__ import annotations

import pytest

from components import paces


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paces, "_paces", {})


def test_time_grows_with_the_amount() -> None:
    assert paces.expected("text", "base", 10) is None
    paces.note("text", "base", 100, 5.0)
    assert paces.expected("text", "base", 10) == pytest.approx(0.5)
    assert paces.expected("text", "another", 10) is None
    assert paces.expected("picture", "base", 10) is None


def test_earlier_measurements_count_for_half_of_the_next() -> None:
    for seconds in (1.0, 2.0, 4.0):
        paces.note("text", "base", 1, seconds)
    assert paces.expected("text", "base", 1) == pytest.approx((1.0 / 4 + 2.0 / 2 + 4.0) / (1 / 4 + 1 / 2 + 1))


def test_little_work_says_little() -> None:
    paces.note("text", "base", 100, 10.0)
    paces.note("text", "base", 1, 5.0)  # most of it was something else
    assert paces.expected("text", "base", 100) == pytest.approx(100 * (5.0 + 5.0) / (50 + 1))


def test_what_is_over_at_once_says_nothing() -> None:
    paces.note("merge", "", 1_000_000, 0.001)
    paces.note("merge", "", 0, 3.0)
    assert paces.expected("merge", "", 1) is None
