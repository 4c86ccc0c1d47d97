"""UMAPs that were computed ahead, found by the adapters and modules they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ASSETS = Path(__file__).parents[2] / "assets"
MAPS = "first/maps.safetensors"


def umap(adapters: Sequence[tuple[str, float]], where: str) -> np.ndarray | None:
    """Coordinates of the units of weighted adapters in some modules, (units, 2); None where they were not computed ahead.

    Args:
        adapters: (library key, weight) of each; a key is the hash of what the adapter holds.
        where: a kind of module.
    """
    return _maps().get(place(adapters, where))


def place(adapters: Sequence[tuple[str, float]], where: str) -> str:
    """The name of a map among those computed ahead."""
    return hashlib.sha256(repr([list(adapters), where]).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _maps() -> dict[str, np.ndarray]:
    return {name: xy for file in sorted(ASSETS.glob(f"*/{MAPS}")) for name, xy in load_file(file).items()}
