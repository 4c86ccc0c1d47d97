"""UMAPs in the worker process: waited for, stopped when nobody waits any more, and started anew after a stop or a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from components import paces
from components.map import plot, umaps
from components.map.umaps import Projector, Umap
from components.session.state import Session
from lego import AdapterError

SMALL, LARGE = 3, 5000
"""Units without neighbourhoods, whose first two components are the answer; and units whose UMAP compiles for many seconds."""


@dataclass
class Units:
    """Principal components in place of a unit map."""

    count: int

    def __len__(self) -> int:
        return self.count

    def components(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((self.count, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def projector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Projector]:
    """A worker of the test's own."""
    mine = Projector()
    monkeypatch.setattr(umaps, "projector", mine)
    monkeypatch.setattr(umaps, "LOOK", 0.05)
    monkeypatch.setattr(paces, "_paces", {})
    yield mine
    with mine._turn:  # a request that was stopped ends its worker itself
        if mine._process is not None:
            mine._end(mine._process)


def umap(count: int, ahead: np.ndarray | None = None) -> Umap:
    units: Any = Units(count)
    return Umap(units, ahead)


def started(found: Umap, who: object, projector: Projector) -> Iterator[tuple[float, float]]:
    """One who waits, once the worker has the request."""
    waiting = found.told(who)
    next(waiting)
    while projector._answers is None:
        next(waiting)
    return waiting


def test_what_was_computed_ahead_is_there_and_starts_nothing(projector: Projector) -> None:
    ahead = np.ones((SMALL, 2), np.float32)
    found = umap(SMALL, ahead)
    assert list(found.told("one")) == []
    found.give_up("one")
    assert found.ready is ahead
    assert found.result() is ahead
    assert projector._process is None


def test_coordinates_come_from_the_worker(projector: Projector) -> None:
    found = umap(SMALL)
    assert found.ready is None
    np.testing.assert_array_equal(found.result(), Units(SMALL).components()[:, :2])
    assert found.ready is not None
    assert projector._process is not None
    assert projector._process.poll() is None


def test_the_last_who_waits_stops_it_and_it_starts_anew(projector: Projector) -> None:
    found = umap(LARGE)
    first, second = started(found, "first", projector), found.told("second")
    seconds, expected = next(second)
    assert seconds >= 0
    assert expected == umaps.USUAL[umaps.FIRST]
    process = projector._process
    assert process is not None
    found.give_up("first")
    assert not found._stop.is_set()
    found.give_up("second")
    assert process.wait(10) != 0
    for waiting in (first, second):
        with pytest.raises(AdapterError, match="UMAP was stopped"):
            list(waiting)
    assert found.ready is None
    again = started(found, "first", projector)
    assert projector._process is not process
    again.close()


def test_what_waits_its_turn_is_stopped_without_harm_to_what_runs(projector: Projector) -> None:
    running, queued = umap(LARGE), umap(SMALL)
    first = started(running, "first", projector)
    second = queued.told("second")
    next(second)
    queued.give_up("second")
    assert projector._process is not None
    assert projector._process.poll() is None
    running.give_up("first")
    with pytest.raises(AdapterError, match="UMAP was stopped"):
        list(first)
    with pytest.raises(AdapterError, match="UMAP was stopped"):
        list(second)
    assert queued.result().shape == (SMALL, 2)


def test_a_worker_that_dies_is_told_and_replaced(projector: Projector) -> None:
    found = umap(LARGE)
    waiting = started(found, "one", projector)
    assert projector._process is not None
    projector._process.kill()
    with pytest.raises(AdapterError, match="UMAP could not be computed"):
        list(waiting)
    found._units = Units(SMALL)  # type: ignore[assignment]
    assert found.result().shape == (SMALL, 2)


def test_a_wait_that_is_overtaken_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a generator gives last is sent once more at its end, over what the newer wait has said since."""
    found, visitor, nothing = umap(LARGE), gr.Request(session_hash="visitor"), (gr.skip(),) * 3
    monkeypatch.setattr(plot.maps, "seen", lambda *asked: SimpleNamespace(mapped=SimpleNamespace(umap=found)))

    def waiting() -> Iterator[tuple[Any, Any, Any]]:
        wait = plot.wait(Session("base"), ("these", "q_proj", "layer 3"), 8, 0, visitor)
        assert next(wait) == nothing
        assert next(wait)[1].visible, "its Stop"
        assert "while UMAP is computed" in next(wait)[0]
        return wait

    first, second = waiting(), waiting()
    assert list(first) == [nothing]
    plot.stop(Session("base"), None, "layer 3", 8, visitor)
    assert list(second) == [nothing]
    assert list(plot.wait(Session("base"), None, 8, 0, visitor)) == [nothing], "nothing is awaited"
