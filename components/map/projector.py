"""UMAP in a process of its own.

The first UMAP of a process compiles for half a minute, in Python: in a thread that would hold up every other thread of the
page. The process is started when first needed, keeps what it compiled, and ends with the page.

    parent → worker: numbers of units and of components (8 bytes each), then the units' principal components (float32)
    worker → parent: the coordinates (float32, units × 2)
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lego import AdapterError
from lego.projection import umap

ROOT = Path(__file__).parents[2]
HEADER = "<qq"


class Projector:
    """The worker process, one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def umap(self, points: np.ndarray) -> np.ndarray:
        """Coordinates (units, 2) of units with these principal components (units, components).

        Raises:
            AdapterError: when the worker dies.
        """
        with self._lock:
            process = self._running()
            try:
                process.stdin.write(struct.pack(HEADER, *points.shape) + np.ascontiguousarray(points, "<f4").tobytes())
                process.stdin.flush()
                return _read(process.stdout, len(points), 2)
            except (OSError, EOFError) as error:
                process.kill()
                self._process = None
                raise AdapterError("UMAP could not be computed", None, "Use PCA; the terminal says more.") from error

    def _running(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "components.map.projector"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        return self._process


def _read(stream: BinaryIO, rows: int, columns: int) -> np.ndarray:
    wanted = 4 * rows * columns
    data = stream.read(wanted)
    if len(data) < wanted:
        raise EOFError
    return np.frombuffer(data, "<f4").reshape(rows, columns)


def serve() -> None:
    """The worker: answer requests until the parent goes away. Only answers go to stdout."""
    os.nice(10)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    while header := sys.stdin.buffer.read(struct.calcsize(HEADER)):
        points = _read(sys.stdin.buffer, *struct.unpack(HEADER, header))
        answers.write(np.ascontiguousarray(umap(points), "<f4").tobytes())
        answers.flush()


projector = Projector()
"""The one worker of this process."""

if __name__ == "__main__":
    serve()
