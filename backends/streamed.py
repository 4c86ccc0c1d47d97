"""What a function tells while it works, as a generator: the work runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

Told = TypeVar("Told")


class Abandoned(Exception):
    """Nobody listens any more."""


class _Ended(Generic[Told]):
    """The last thing in the queue: the error that ended the work, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def streamed(work: Callable[[Callable[[Told], None]], None], name: str) -> Iterator[Told]:
    """Yield whatever the work tells, until it ends; an error that ends it is raised here.

    When the generator is closed first, the work's next ``tell`` raises `Abandoned`, and closing waits for the work to end.

    Args:
        work: is called with ``tell``.
        name: of the thread.
    """
    told: SimpleQueue[Told | _Ended[Told]] = SimpleQueue()
    closed = threading.Event()

    def tell(item: Told) -> None:
        if closed.is_set():
            raise Abandoned
        told.put(item)

    def run() -> None:
        error: BaseException | None = None
        try:
            work(tell)
        except Abandoned:
            pass  # nobody listens
        except BaseException as caught:  # noqa: BLE001 - handed over, whatever it is
            error = caught
        told.put(_Ended(error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while not isinstance(item := told.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        thread.join()
