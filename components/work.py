"""Work that outlives an event: bases being loaded, long jobs that can be stopped, warm-up at the start.

What is kept here belongs to the process and is keyed by content or base id, never by visitor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Generic, TypeVar

from backends import bases
from backends.bases import BaseError, ImageBase, TextBase
from components import fragments

T = TypeVar("T")
POLL = 0.1
"""Seconds between two looks at a running job."""
REDRAWN = 0.3
"""Seconds between two drawings of what a running job has reached, at least."""


def in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Run a function in a thread that does not hold up the end of the process; its error goes to who asks for the result."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001  (handed on, not swallowed)
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return result


def until_done(result: Future[T], every: float = POLL) -> Iterator[None]:
    """Wake up again and again until the result is there."""
    finished = threading.Event()
    result.add_done_callback(lambda future: finished.set())
    while not finished.wait(every):
        yield


class Stopped(Exception):
    """Raised inside a job whose visitor pressed Stop or went away."""


class Job(Generic[T]):
    """A function running in a thread, watched from a generator; leaving the ``with`` block stops it.

    The function receives ``progress(done, total)`` and stops at its next call after a stop.
    """

    def __init__(self, work: Callable[[Callable[[int, int], None]], T]) -> None:
        self._work, self._stop = work, threading.Event()
        self._done, self._total = 0, 0

    def _progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done, self._total = done, total

    def __enter__(self) -> Job[T]:
        self._result = in_thread(lambda: self._work(self._progress), "job")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def steps(self) -> Iterator[tuple[int, int]]:
        """(done, total) a few times a second until the function returns or fails."""
        for _ in until_done(self._result):
            yield self._done, self._total

    def result(self) -> T:
        """What the function returned; raises what it raised."""
        return self._result.result()


class Shared(Generic[T]):
    """Work whose result any number of pages want: begun when the first one waits for it, stopped when none does any more, kept.

    Attributes:
        since: when it began.
        part: the fraction done; None where that is not known.
    """

    def __init__(
        self,
        work: Callable[[Callable[[int, int], None], threading.Event], T],
        ready: T | None = None,
        halt: Callable[[threading.Event], None] = threading.Event.set,
    ) -> None:
        """Nothing has begun.

        Args:
            work: receives ``progress(done, total)``, whose next call ends it after a stop, and the flag that a stop sets.
            ready: its result, where that is there already.
            halt: sets the flag, and does what else stops the work.
        """
        self._work, self._halt, self._guard = work, halt, threading.Lock()
        self._stop, self._waiting = threading.Event(), set[object]()
        self._coming: Future[T] | None = None
        self.since = 0.0
        self.part: float | None = None
        if ready is not None:
            self._coming = Future()
            self._coming.set_result(ready)

    @property
    def ready(self) -> T | None:
        """The result, where it is there."""
        coming = self._coming
        return coming.result() if coming and coming.done() and coming.exception() is None else None

    def result(self) -> T:
        """The result, waited for; raises what the work raised."""
        for _ in self.wait(object()):
            pass
        assert self._coming is not None
        return self._coming.result()

    def wait(self, who: object, every: float = POLL) -> Iterator[None]:
        """Wake up again and again until the result is there; raises what the work raised."""
        coming = self._begun(who)
        try:
            yield from until_done(coming, every)
        finally:
            self._waiting.discard(who)
        coming.result()

    def give_up(self, who: object) -> None:
        """One who waited does so no longer: stopped, unless there are others."""
        with self._guard:
            self._waiting.discard(who)
            if self._coming is not None and not self._waiting:
                self._halt(self._stop)

    def _begun(self, who: object) -> Future[T]:
        with self._guard:
            self._waiting.add(who)
            if self.ready is None and (self._coming is None or self._stop.is_set() or self._coming.done()):
                self._stop, self.since, self.part = (stop := threading.Event()), monotonic(), None
                self._coming = in_thread(lambda: self._work(self._progress(stop), stop), "shared work")
            return self._coming

    def _progress(self, stop: threading.Event) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped
            self.part = done / total

        return progress


def lines(told: Iterable[tuple[str, float | None]]) -> Iterator[str]:
    """What is told, as (text, fraction), as lines with the time that is left and their Stop; each stage begins at 0 again."""
    start, before = monotonic(), 0.0
    for text, part in told:
        if (part or 0) < before:
            start = monotonic()
        before = part or 0
        yield fragments.progress(text + fragments.left(monotonic() - start, part), part, halt=True)


class Turn:
    """That a page asked for something; it is ``current`` until the page asks for the next, ``taken`` once it is being answered."""

    def __init__(self, turns: Turns, who: str) -> None:
        self._turns, self._who = turns, who
        self.taken = False

    @property
    def current(self) -> bool:
        """Nothing newer was asked for."""
        return self._turns.of(self._who) is self

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.current:
            self._turns.end(self._who)


class Turns:
    """What each page asked for last, of what only the last answer counts."""

    def __init__(self) -> None:
        self._newest: dict[str, Turn] = {}

    def begin(self, who: str) -> Turn:
        """A page asks: what it asked for before is not current any more."""
        turn = self._newest[who] = Turn(self, who)
        return turn

    def of(self, who: str) -> Turn | None:
        """What a page waits for."""
        return self._newest.get(who)

    def end(self, who: str) -> Turn | None:
        """A page waits for nothing any more; what it waited for."""
        return self._newest.pop(who, None)


class Loading:
    """A base on its way into memory, watched by any number of pages."""

    def __init__(self, base_id: str) -> None:
        self.id, self.since = base_id, monotonic()
        self._stop, self._waiting = threading.Event(), set[object]()
        self.text: str = "Waiting"
        self.fraction: float | None = None
        self._result = in_thread(lambda: bases.load_base(base_id, progress=self._progress), f"load {base_id}")

    def _progress(self, text: str, fraction: float | None) -> None:
        if self._stop.is_set():
            raise BaseError("was stopped", self.id, "Press Try again, or choose another base in the Library.")
        self.text, self.fraction = text, fraction

    @property
    def line(self) -> str:
        """What is being done, and how long it still takes."""
        return self.text + fragments.left(monotonic() - self.since, self.fraction)

    @property
    def done(self) -> bool:
        """Loaded or failed."""
        return self._result.done()

    @property
    def error(self) -> BaseException | None:
        """Why loading failed; None while it runs and after success."""
        return self._result.exception() if self._result.done() else None

    def base(self) -> TextBase | ImageBase:
        """The loaded base; waits for it, raises what loading raised."""
        return self._result.result()

    def watch(self, who: object = None) -> Iterator[None]:
        """Wake a few times a second until loading is over, which others cannot stop as long as ``who`` waits."""
        if who is not None:
            self._waiting.add(who)
        try:
            yield from until_done(self._result, 3 * POLL)
        finally:
            self._waiting.discard(who)

    def give_up(self, who: object) -> bool:
        """One who waited does so no longer: whether loading is stopped, as nobody else waits."""
        self._waiting.discard(who)
        if self._waiting:
            return False
        self.text, self.fraction = "Stopping", None
        self._stop.set()
        return True


_loadings: dict[str, Loading] = {}
_lock = threading.Lock()


def loading(base_id: str) -> Loading:
    """The base's loading, started at the first call; a failed one is started anew. Only the latest are remembered."""
    with _lock:
        known = _loadings.pop(base_id, None)
        if known is None or known.error is not None:
            known = Loading(base_id)
        _loadings[base_id] = known
        for old in [each for each, coming in _loadings.items() if coming.done][: -bases.KEPT]:
            del _loadings[old]  # what the backend has let go would be held by this alone
        return known


def peek(base_id: str) -> Loading | None:
    """The base's loading if there is one, failed or not; starts nothing."""
    return _loadings.get(base_id)


_stops: dict[str, threading.Event] = {}


def stop_of(ticket: str) -> threading.Event:
    """The flag by which the visitor with this ticket stops a training."""
    with _lock:
        return _stops.setdefault(ticket, threading.Event())


def forget(ticket: str) -> None:
    """Drop the flag: the training is over."""
    with _lock:
        _stops.pop(ticket, None)
