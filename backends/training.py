"""Training gates: the recipe's steps on any kind of base, and what comes out as gates of the library."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backends import gates as store
from backends import library
from backends.base import Base
from backends.gates import GateEntry, base_of, experts_of
from backends.language import TextBase
from backends.pipelines import ImageBase
from backends.variants import Variant, pool_of
from lego.errors import AdapterError
from lego.recipe import Source
from mole import checkpoint
from mole.batch import Batch
from mole.gate import Gates
from mole.gated import Gated
from mole.pool import Weighting
from mole.recipe import GateRecipe, Rows
from mole.sites import find_sites
from mole.train import Progress, Trainer

BACKWARD = 2.2
"""Seconds of a step over seconds of its forward pass, for the estimate only."""


class Samples(Protocol):
    """What gates of one kind of base learn from.

    Attributes:
        model: the base as the training runs it: a batch's inputs are its arguments.
        sets: the samples of each of the recipe's data.
        data: what the recipe says of them, with their files' hashes.
    """

    model: nn.Module
    sets: Sequence[Sequence[Any]]
    data: Sequence[Rows]

    def batch(self, chosen: Sequence[Any], draw: str) -> Batch:
        """Samples as tensors, made under the base's lock; what is random about them depends on ``draw`` alone."""

    def loss(self, out: Any, targets: Tensor) -> Tensor:
        """L_D from the model's output, a mean over samples."""

    def middling(self) -> list[Any]:
        """Two samples of middling size."""

    def look(self) -> object:
        """One small pass of the model, so that it is seen where its modules run."""


def samples_of(base: Base, recipe: GateRecipe, folder: Path) -> Samples:
    """A recipe's samples for a base.

    Raises:
        AdapterError: when they are missing, malformed, or not what such a base learns from.
    """
    if isinstance(base, TextBase):
        if recipe.guidance:
            raise AdapterError("guidance is for bases that draw", base.info.id, "Leave it out of the recipe.")
        from backends.training_text import TextSamples

        return TextSamples(base, recipe, folder)
    assert isinstance(base, ImageBase)
    if recipe.guidance:
        from backends.training_guided import GuidedSamples

        return GuidedSamples(base, recipe, folder)
    from backends.training_image import ImageSamples

    return ImageSamples(base, recipe, folder)


class Training:
    """One training of gates, from its recipe to the library."""

    def __init__(self, base: Base, keys: Sequence[str], recipe: GateRecipe, folder: Path | None = None) -> None:
        """Ready to run; nothing has been computed yet.

        Args:
            base: the model.
            keys: of the LoRAs in the library, in the order of the recipe's sources.
            recipe: the rest.
            folder: what the recipe's relative paths are relative to.

        Raises:
            AdapterError: when there is nothing to choose from, a LoRA does not fit the base, or samples are missing or malformed.
        """
        if len(keys) + recipe.gates.base_expert < 2:
            raise AdapterError(
                "one LoRA leaves nothing to choose", None, "Pick another, or offer the base as an expert."
            )
        self.base, self.keys = base, tuple(keys)
        self.samples = samples_of(base, recipe, folder or Path())
        self.shares, self.seed = [data.share for data in recipe.data], recipe.training.seed
        self.mixture = Mixture(self.samples.sets, self.shares, self.seed)
        told = {"data": list(self.samples.data), "base": base.info.id, "sources": sources_of(keys)}
        self.recipe = recipe.model_copy(update=told)
        every = Weighting(tuple((key, 1.0) for key in keys))
        pool = pool_of(base, [Variant("all", every)])
        Gated(base.model, pool)  # refuses LoRAs of another base
        with base.lock, torch.no_grad():
            sites = find_sites(base.model, pool.modules, recipe.gates.granularity, self.samples.look)
        if isinstance(base, ImageBase):
            from backends.painting import check_apart

            check_apart(sites)
        self.gates = Gates.fresh(recipe.gates, keys, sites, pool)
        self.trainer = Trainer(self.samples.model, pool, self.gates, self._batch_of, self.samples.loss, recipe.training)

    def _batch_of(self, step: int, count: int) -> Batch:
        draw = f"{self.seed} {step}"
        if step < 0:
            first = Mixture(self.samples.sets, self.shares, f"{self.seed} first")
            return self.samples.batch(first.take(0, count), draw)
        return self.samples.batch(self.mixture.take(step * count, count), draw)

    def expected_seconds(self) -> float:
        """How long the training will take, from forward passes of gates and all over samples of middling size."""
        with self.base.lock:
            batch = self.samples.batch(self.samples.middling(), "")
        times = []
        for _ in range(3):
            with self.base.lock, torch.no_grad():
                start = time.perf_counter()
                self.trainer.gated(batch)
                times.append((time.perf_counter() - start) / len(batch))
        took = min(times)
        training = self.recipe.training
        samples = training.steps * training.batch * (1 + BACKWARD)
        return took * (samples + (training.calibration if self.gates.config.normalise == "centred" else 0))

    def run(self, stop: threading.Event | None = None) -> Iterator[Progress]:
        """Train; yields after every step. Others use the base between steps.

        Raises:
            AdapterError: when a single sample does not fit into memory.
        """
        steps = self.trainer.run(stop)
        while True:
            with self.base.lock:
                progress = next(steps, None)
            if progress is None:
                return
            yield progress

    def resume(self, folder: Path) -> None:
        """Go on where gates on disk were, exactly.

        Raises:
            AdapterError: when they are of another base or other LoRAs, or learned otherwise than the recipe says.
        """
        saved = checkpoint.read_config(folder)
        experts = experts_of(self.keys)
        checkpoint.check_fit(saved, base_of(self.base), experts, folder)
        found = saved.recipe.differs(self.recipe)
        if [each.fingerprint for each in saved.experts] != [each.fingerprint for each in experts]:
            own, given = (", ".join(each.name for each in some) for some in (saved.experts, experts))
            found = f"the LoRAs {own}, where the recipe has {given}"
        if found:
            fix = "Go on with the recipe in its folder, with more steps if you like, or train anew."
            raise AdapterError(f"learned with {found}", folder, fix)
        place = folder / checkpoint.TRAINING
        try:
            self.trainer.resume(checkpoint.read_tensors(place))
        except AdapterError as error:
            raise AdapterError(error.what, error.where or place, error.fix) from error

    def save(self, folder: Path) -> None:
        """Write the gates as they are now; where several processes train them, the first one writes and the others wait.

        Raises:
            AdapterError: when the folder exists or cannot be written.
        """
        if self.first:
            experts = experts_of(self.keys)
            checkpoint.save_gates(folder, self.gates, base_of(self.base), experts, self.recipe, self.trainer.state())
        self.trainer.accelerator.wait_for_everyone()

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all that train these gates."""
        return self.trainer.accelerator.is_main_process

    def add(self, name: str) -> GateEntry:
        """The gates as they are now as an entry of the library.

        Raises:
            AdapterError: when they cannot be written.
        """
        return store.add_trained(name, self.gates, self.base, self.recipe, self.trainer.state())


class Mixture:
    """Samples drawn from several sets by their shares: an endless sequence that depends on its seed alone.

    Each set is gone through in an order of its own before any of its samples comes again.
    """

    def __init__(self, sets: Sequence[Sequence[Any]], shares: Sequence[float], seed: object) -> None:
        """Nothing is drawn yet."""
        self.sets, self.shares, self.seed = sets, shares, seed
        self._drawn: list[Any] = []
        self._endless = [self._draw(number) for number in range(len(sets))]
        self._counts = [0] * len(sets)

    def take(self, start: int, count: int) -> list[Any]:
        """Some samples of the sequence."""
        while len(self._drawn) < start + count:
            due = min(range(len(self.shares)), key=lambda i: (self._counts[i] + 1) / self.shares[i])
            self._counts[due] += 1
            self._drawn.append(next(self._endless[due]))
        return self._drawn[start : start + count]

    def _draw(self, number: int) -> Iterator[Any]:
        draw = random.Random(f"{self.seed} {number}")
        while True:
            yield from draw.sample(self.sets[number], len(self.sets[number]))


def sources_of(keys: Sequence[str]) -> list[Source]:
    """Where the LoRAs are, with their hashes."""
    sources = []
    for key in keys:
        adapter, entry = library.get(key), library.entry(key)
        hub, _, revision = (adapter.origin or "").partition("@")
        path = entry.name if entry.source == "built-in" else str(entry.path)
        place: dict[str, Any] = {"hub": hub, "revision": revision or None} if hub else {"path": path}
        sources.append(Source(name=adapter.name, sha256=adapter.sha256, **place))
    return sources
