"""UMAPs of unit maps: computed in the background by one worker process, told how long that takes, stopped when nobody waits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import numpy as np

from components import paces
from components.map import umap_worker
from components.work import Shared
from lego import AdapterError
from lego.layout import UnitMap

ROOT = Path(__file__).parents[2]
PACE, FIRST = "umap", "first umap"
USUAL = {PACE: 4e-4, FIRST: 20.0}
"""Seconds, until they are measured here: of a unit, and of the first UMAP of a worker, which compiles."""
LOOK = 0.5
"""Seconds between two tellings of how long it takes."""


class Projector:
    """The worker process, one request at a time. It starts when first needed, keeps what it compiled, and ends with the page."""

    def __init__(self) -> None:
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._process: subprocess.Popen | None = None
        self._answers: threading.Event | None = None
        self.compiled = False

    def umap(self, points: np.ndarray, stop: threading.Event) -> np.ndarray:
        """Coordinates (units, 2) of units with these principal components (units, components).

        Raises:
            AdapterError: when the worker dies, or is stopped.
        """
        with self._turn:
            start = monotonic()
            with self._guard:
                if stop.is_set():
                    raise _stopped()
                process, self._answers = self._running(), stop
                first = not self.compiled
            try:
                process.stdin.write(umap_worker.packed(points))
                process.stdin.flush()
                found = umap_worker.read(process.stdout, len(points), 2)
            except (OSError, EOFError) as error:
                self._end(process)
                if stop.is_set():
                    raise _stopped() from error
                raise AdapterError("UMAP could not be computed", None, "Use PCA; the terminal says more.") from error
            finally:
                with self._guard:
                    self._answers = None
        self.compiled = True
        paces.note(FIRST if first else PACE, "", 1 if first else len(points), monotonic() - start)
        return found

    def stop(self, stop: threading.Event) -> None:
        """Break off the request that was made with this flag; the next worker compiles anew."""
        with self._guard:
            stop.set()
            if self._answers is stop and self._process is not None:
                self._process.kill()

    def _running(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", umap_worker.__name__]
            self.compiled = False
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        return self._process

    def _end(self, process: subprocess.Popen) -> None:
        process.kill()
        process.communicate()  # closes its pipes
        self._process = None


def _stopped() -> AdapterError:
    return AdapterError("UMAP was stopped", None, "Choose it again.")


projector = Projector()
"""The one worker of this process."""


class Umap(Shared[np.ndarray]):
    """The UMAP of one map, coordinates (units, 2): computed ahead, or from the first time that someone waits for it."""

    def __init__(self, units: UnitMap, ahead: np.ndarray | None) -> None:
        self._units = units
        super().__init__(
            lambda _, stop: projector.umap(self._units.components(), stop), ahead, lambda s: projector.stop(s)
        )

    def told(self, who: object) -> Iterator[tuple[float, float]]:
        """Until it is there: the seconds since it was asked for, and those it is expected to take.

        Raises:
            AdapterError: when it fails, or the others who waited stopped it.
        """
        for _ in self.wait(who, LOOK):
            yield monotonic() - self.since, self.expected

    @property
    def expected(self) -> float:
        """Seconds that it takes, as measured here before, or else usual."""
        pace, amount = (PACE, len(self._units)) if projector.compiled else (FIRST, 1)
        return paces.expected(pace, "", amount) or USUAL[pace] * amount
