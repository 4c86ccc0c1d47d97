"""UMAP in a process of its own: the worker that `umaps` starts, and how the two talk.

The first UMAP of a process compiles for a while, in Python: in a thread that would hold up every other thread of the page.

    parent → worker: numbers of units and of components (8 bytes each), then the units' principal components (float32)
    worker → parent: the coordinates (float32, units × 2)
"""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

import numpy as np

from lego.projection import umap

HEADER = "<qq"


def packed(points: np.ndarray) -> bytes:
    """The request for units with these principal components (units, components)."""
    return struct.pack(HEADER, *points.shape) + np.ascontiguousarray(points, "<f4").tobytes()


def read(stream: BinaryIO, rows: int, columns: int) -> np.ndarray:
    """A table of numbers, once all of it has come.

    Raises:
        EOFError: when the other side has gone.
    """
    wanted = 4 * rows * columns
    data = stream.read(wanted)
    if len(data) < wanted:
        raise EOFError
    return np.frombuffer(data, "<f4").reshape(rows, columns)


def serve() -> None:
    """Answer requests until the parent goes away. Only answers go to stdout."""
    os.nice(10)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    while header := sys.stdin.buffer.read(struct.calcsize(HEADER)):
        points = read(sys.stdin.buffer, *struct.unpack(HEADER, header))
        answers.write(np.ascontiguousarray(umap(points), "<f4").tobytes())
        answers.flush()


if __name__ == "__main__":
    serve()
