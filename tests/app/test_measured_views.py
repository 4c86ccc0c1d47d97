"""Views that take long the first time: how long is said, they can be stopped, give way to others, and are measured once for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest

from backends import bases
from components.library import shelf
from components.map import maps, views
from components.map import tab as map
from components.session.state import Session
from components.work import Shared, Stopped
from lego import AdapterError
from tests.serving import fresh_home

VIEW, FIRST = views.MEASURED[0], next(iter(views.VIEWS))
VISITOR, OTHER = gr.Request(session_hash="visitor"), gr.Request(session_hash="other")


class Steps:
    """Work of four steps, each of which is let go from outside; how often it was begun and whether it ended."""

    def __init__(self) -> None:
        self.go, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self.begun, self.ended = 0, threading.Event()

    def __call__(self, progress: Callable[[int, int], None], stop: threading.Event) -> str:
        self.begun += 1
        try:
            for step in range(4):
                progress(step, 4)
                self.reached.release()
                assert self.go.acquire(timeout=20)
            return "done"
        finally:
            self.ended.set()


@pytest.fixture
def steps() -> Iterator[Steps]:
    made = Steps()
    yield made
    made.go.release(1000)


def test_it_is_done_once_for_all_who_wait(steps: Steps) -> None:
    work = Shared(steps)
    assert work.ready is None
    assert steps.begun == 0
    first, second = work.wait("first"), work.wait("second")
    next(first)
    next(second)
    assert steps.reached.acquire(timeout=20)
    steps.go.release()
    assert steps.reached.acquire(timeout=20)
    assert work.part == 0.25
    steps.go.release(4)
    assert list(first) is not None
    assert list(second) is not None
    assert (work.ready, work.result(), steps.begun) == ("done", "done", 1)
    work.give_up("first")
    assert (work.result(), steps.begun) == ("done", 1)


def test_the_last_who_waits_stops_it_and_it_is_begun_anew(steps: Steps) -> None:
    work = Shared(steps)
    first, second = work.wait("first"), work.wait("second")
    next(first)
    next(second)
    assert steps.reached.acquire(timeout=20)
    work.give_up("first")
    steps.go.release()
    assert steps.reached.acquire(timeout=20), "the second still waits"
    work.give_up("second")
    steps.go.release()
    for waiting in (first, second):
        with pytest.raises(Stopped):
            list(waiting)
    assert work.ready is None
    steps.go.release(8)
    assert (work.result(), steps.begun) == ("done", 2)


def test_what_fails_is_told_and_begun_anew() -> None:
    tries: list[int] = []

    def work(*_: Any) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise AdapterError("the file is gone", "a.safetensors", "Bring it back.")
        return "done"

    shared = Shared(work)
    with pytest.raises(AdapterError, match="the file is gone"):
        shared.result()
    assert shared.result() == "done"


@pytest.fixture
def session(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("BRICKYARD_HOME", str(fresh_home(tmp_path / "home")))
    return shelf.start_session(bases.BUILTIN)


@pytest.fixture
def place(session: Session) -> tuple[str, str, int]:
    return maps.kinds(session)[0], maps.ALL_LAYERS, 4


@pytest.fixture
def measuring(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> Shared[str]:
    """What the measured views wait for, in steps."""
    made = Shared(steps)
    monkeypatch.setattr(views, "coming", lambda name, *_: made if name in views.MEASURED else None)
    return made


def test_a_view_says_how_far_it_is_and_then_is_drawn(
    session: Session, place: tuple, steps: Steps, measuring: Shared[str]
) -> None:
    showing = map.beside(session, *place, VIEW, VISITOR)
    line, figure = next(showing)
    assert "measuring" in line
    assert "data-halt" in line
    assert figure == gr.skip()
    steps.go.release(2)
    for _ in range(3):
        assert steps.reached.acquire(timeout=20)
    line, _ = next(showing)
    assert 'aria-valuenow="50"' in line
    assert " left" in line
    steps.go.release(2)
    *_, (title, figure) = showing
    assert "Interference by layer" in title
    assert figure.data


def test_stop_goes_back_to_the_first_view_and_ends_the_work(
    session: Session, place: tuple, steps: Steps, measuring: Shared[str]
) -> None:
    showing = map.beside(session, *place, VIEW, VISITOR)
    next(showing)
    assert steps.reached.acquire(timeout=20)
    *_, (name, title, figure) = map.stop_measuring(session, *place, VIEW, VISITOR)
    assert name == FIRST
    assert "made of" in title
    assert figure.data
    steps.go.release()
    assert steps.ended.wait(20)
    assert list(showing) == [(gr.skip(), gr.skip())]
    assert measuring.ready is None


def test_others_who_wait_are_not_stopped(session: Session, place: tuple, steps: Steps, measuring: Shared[str]) -> None:
    mine, other = (map.beside(session, *place, VIEW, who) for who in (VISITOR, OTHER))
    next(mine)
    next(other)
    list(map.stop_measuring(session, *place, VIEW, VISITOR))
    list(mine)
    steps.go.release(4)
    *_, (title, _) = other
    assert "Interference by layer" in title
    assert steps.begun == 1


def test_another_view_is_shown_at_once_and_not_drawn_over(
    session: Session, place: tuple, steps: Steps, measuring: Shared[str]
) -> None:
    showing = map.beside(session, *place, VIEW, VISITOR)
    next(showing)
    ((title, _),) = map.beside(session, *place, FIRST, VISITOR)
    assert "made of" in title
    steps.go.release(4)
    assert list(showing) == [(gr.skip(), gr.skip())]
