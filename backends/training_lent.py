"""Training gates where GPUs are lent: the training runs in another process, its steps and the learned gates come back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from backends import device
from backends import gates as store
from backends.base import Base
from backends.gates import GateEntry
from backends.lent import Keys, lent
from backends.training import Training
from mole.gate import Gates
from mole.recipe import GateRecipe
from mole.train import Progress

SECONDS = 0.06
"""A sample forward and backward, on a GPU, with room."""


@dataclass(frozen=True)
class State:
    """Gates with what their training has come to: at its start, and at its end."""

    gates: Gates
    recipe: GateRecipe
    tensors: dict[str, Tensor]


def keys_of(keys: Sequence[str], **others: Any) -> Keys:
    """What a training needs of the library."""
    return keys, ()


def seconds(recipe: GateRecipe, **others: Any) -> float:
    """How long a training takes there, about."""
    training = recipe.training
    return 20 + SECONDS * (training.steps * training.batch + training.calibration)


@lent(seconds, keys_of)
def steps(
    base: Base, keys: Sequence[str], recipe: GateRecipe, folder: Path | None, stop: threading.Event | None = None
) -> Iterator[State | Progress]:
    """A training: its gates before the first step, every step, and the gates at the end."""
    training = Training(base, keys, recipe, folder)
    yield _state(training)
    yield from training.run(stop)
    yield _state(training)


def _state(training: Training) -> State:
    tensors = {name: value.detach().cpu() for name, value in training.trainer.state().items()}
    return State(copy.deepcopy(training.gates).cpu(), training.recipe, tensors)


class LentTraining:
    """A training as `Training`, whose work is done elsewhere."""

    def __init__(self, base: Base, keys: Sequence[str], recipe: GateRecipe, folder: Path | None = None) -> None:
        """Begun there; the first step waits."""
        self.base, self.keys, self._stop = base, tuple(keys), threading.Event()
        self._steps = steps(base, tuple(keys), recipe, folder, self._stop)
        self._take(next(self._steps))

    def _take(self, found: Any) -> None:
        self.gates, self.recipe, self._tensors = found.gates, found.recipe, found.tensors

    def run(self, stop: threading.Event | None = None) -> Iterator[Progress]:
        """Train; yields after every step."""
        for found in self._steps:
            if isinstance(found, State):
                self._take(found)
            else:
                yield found
            if stop and stop.is_set():
                self._stop.set()

    def add(self, name: str) -> GateEntry:
        """The gates as they came back as an entry of the library."""
        return store.add_trained(name, self.gates, self.base, self.recipe, self._tensors)  # type: ignore[arg-type]


def begin(base: Base, keys: Iterable[str], recipe: GateRecipe, folder: Path | None = None) -> Training | LentTraining:
    """A training, wherever it runs; arguments and errors as `Training`'s."""
    return (LentTraining if device.lends() else Training)(base, tuple(keys), recipe, folder)
