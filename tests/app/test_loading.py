"""Loading a base: watched, stopped by the last who waits for it, and begun anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from backends import bases
from components import header, work
from components.session import restore, sharing
from components.session.state import Session
from components.work import Turns


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """A base whose loading goes a step on at each release, of a hundred."""
    gate = threading.Semaphore(0)

    def load_base(base_id: str, progress: Callable[[str, float | None], None]) -> Any:
        for step in range(100):
            progress(f"Downloading {base_id}", step / 100)
            gate.acquire()
        return "the base"

    monkeypatch.setattr(bases, "load_base", load_base)
    monkeypatch.setattr(work, "POLL", 0.01)
    monkeypatch.setattr(work, "_loadings", {})
    yield gate
    gate.release(100)


def test_the_last_who_waits_stops_it(steps: threading.Semaphore) -> None:
    coming = work.loading("some/base")
    first, second = coming.watch("first"), coming.watch("second")
    next(first), next(second)
    assert not coming.give_up("first")
    assert coming.give_up("second")
    assert coming.text == "Stopping"
    steps.release()
    assert list(first) == list(second) == []
    assert "was stopped. Press Try again" in header.describe("some/base", coming)
    with pytest.raises(bases.BaseError, match="was stopped"):
        coming.base()
    again = work.loading("some/base")
    assert again is not coming
    steps.release(100)
    assert again.base() == "the base"  # type: ignore[comparison-overlap]


def test_who_has_gone_does_not_hold_it(steps: threading.Semaphore) -> None:
    coming = work.loading("some/base")
    gone = coming.watch("gone")
    next(gone)
    gone.close()
    assert coming.give_up("last")


@pytest.mark.parametrize("already", [True, False])
def test_a_session_that_is_not_brought_back_after_all_stops_only_its_own_load(
    steps: threading.Semaphore, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    """As when its visitor leaves: what was loaded from the start, which nobody watches, goes on."""
    monkeypatch.setattr(restore, "base_of", lambda base: "some/base")
    if already:
        work.loading("some/base")
    wanted: Any = SimpleNamespace(base=None)
    bringing = sharing.bring_back(Session("some/base"), wanted)
    next(bringing)
    coming = work.loading("some/base")
    bringing.close()
    steps.release(100)
    if already:
        assert coming.base() == "the base"  # type: ignore[comparison-overlap]
    else:
        with pytest.raises(bases.BaseError, match="was stopped"):
            coming.base()


def test_it_says_how_long_it_takes_and_after_a_while_has_its_stop(
    steps: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = work.loading("some/base")
    assert "data-halt" not in header.describe("some/base", coming)
    steps.release(20)
    while coming.fraction != 0.2:
        pass
    monkeypatch.setattr(coming, "since", coming.since - 10)
    line = header.describe("some/base", coming)
    assert "Downloading some/base, about 4" in line  # 10 s for a fifth, so four times as long are left
    assert "data-halt" in line


def test_the_time_left_is_that_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 10, 100, 102, 110])  # the start, a line, the second stage's start, its two lines
    monkeypatch.setattr(work, "monotonic", lambda: next(clock))
    told = list(work.lines([("first", 0.5), ("second", 0.1), ("second", 0.5)]))
    assert ["about 10 s left" in told[0], "about 18 s left" in told[1], "about 10 s left" in told[2]] == [True] * 3
    assert all("data-halt" in line for line in told)


def test_only_the_newest_turn_of_a_page_is_current() -> None:
    turns = Turns()
    with turns.begin("one") as first, turns.begin("another") as other:
        assert first.current
        with turns.begin("one") as second:
            assert (first.current, second.current, other.current) == (False, True, True)
        assert turns.of("one") is None
        assert turns.end("another") is other
        assert not other.current
    assert turns.of("one") is None
