"""Work on a GPU that is lent for one call at a time, as on ZeroGPU: another process does it, which may be older than what it needs.

So a call goes there as plain data: bases by id, adapters and gates with the places of their files; and results come back as data.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from backends import device, gates, library
from backends.gates import GateEntry
from backends.library import Entry
from backends.variants import Variant

LEAST, MOST = 15, 180
"""Seconds that a GPU is asked for."""
Keys = tuple[Iterable[str], Iterable[str]]


class Flag:
    """A stop flag that both processes see: a file. Used as a `threading.Event`."""

    def __init__(self, path: str) -> None:
        """Not set."""
        self.path = path

    def set(self) -> None:
        """Ask for the end."""
        Path(self.path).touch()

    def is_set(self) -> bool:
        """Whether the end is asked for."""
        return os.path.exists(self.path)


@dataclass(frozen=True)
class Luggage:
    """What a call needs that the other process may not know yet."""

    entries: tuple[Entry, ...]
    gates: tuple[GateEntry, ...]

    @classmethod
    def packed(cls, adapters: Iterable[str], gate_keys: Iterable[str]) -> Luggage:
        """The library's entries of these keys."""
        found = tuple(gates.entry(key) for key in dict.fromkeys(gate_keys))
        keys = dict.fromkeys([*adapters, *(key for entry in found for key in entry.experts)])
        return cls(tuple(library.entry(key) for key in keys), found)

    def unpack(self) -> None:
        """Let this process know them."""
        for entry in self.entries:
            library.adopt(entry)
        for found in self.gates:
            gates.adopt(found)


def of_variants(variants: Iterable[Variant], **others: Any) -> Keys:
    """The keys of the adapters and gates that variants name."""
    weightings = [variant.weighting for variant in variants]
    return [key for each in weightings for key, _ in each.adapters], [each.gates for each in weightings if each.gates]


def lent(seconds: Callable[..., float], keys: Callable[..., Keys] = of_variants) -> Callable[[Any], Any]:
    """Decorator of a function or generator that runs a base: where GPUs are lent, it runs on one; elsewhere as it is.

    Args:
        seconds: tells from the function's arguments, by name, how long it takes there.
        keys: tells the keys of the adapters and of the gates that it needs.
    """

    def decorate(function: Any) -> Any:
        if not device.lends():
            return function
        streams = inspect.isgeneratorfunction(function)
        given = inspect.signature(function)

        def asked(luggage: Luggage, flag: str, arguments: dict[str, Any]) -> int:
            return max(LEAST, min(MOST, int(seconds(**arguments))))

        def called(luggage: Luggage, flag: str, arguments: dict[str, Any]) -> Any:
            luggage.unpack()
            stop = {"stop": Flag(flag)} if "stop" in given.parameters else {}
            return function(**arguments, **stop)

        @device.gpu(duration=asked)
        def there(luggage: Luggage, flag: str, arguments: dict[str, Any]) -> Any:
            return called(luggage, flag, arguments)

        @device.gpu(duration=asked)
        def streamed_there(luggage: Luggage, flag: str, arguments: dict[str, Any]) -> Iterator[Any]:
            yield from called(luggage, flag, arguments)

        def packed(args: Any, named: Any) -> tuple[Luggage, dict[str, Any], threading.Event | None]:
            arguments = dict(given.bind(*args, **named).arguments)
            stop = arguments.pop("stop", None)
            return Luggage.packed(*keys(**arguments)), arguments, stop

        @wraps(function)
        def plain(*args: Any, **named: Any) -> Any:
            luggage, arguments, _ = packed(args, named)
            return there(luggage, "", arguments)

        @wraps(function)
        def generator(*args: Any, **named: Any) -> Iterator[Any]:
            luggage, arguments, stop = packed(args, named)
            with tempfile.TemporaryDirectory(prefix="brickyard-") as folder:
                flag = Flag(str(Path(folder) / "stop"))
                try:
                    for item in streamed_there(luggage, flag.path, arguments):
                        yield item
                        if stop and stop.is_set():
                            flag.set()
                finally:
                    flag.set()  # who closes this ends the work there too

        return generator if streams else plain

    return decorate
