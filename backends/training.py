"""Training gates on a text base: rows as batches, the recipe's steps, and what comes out as gates of the library."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends import gates as store
from backends import library
from backends.bases import TextBase
from backends.decode import pad_left, read_by_gates
from backends.gates import GateEntry, base_of, experts_of
from backends.rows import ASSETS, HELD_OUT, read_rows, rows_file
from backends.score import Example, encode_row
from backends.variants import Variant, pool_of
from lego.errors import AdapterError
from lego.recipe import Source
from mole import checkpoint
from mole.gate import Gates
from mole.gated import Gated
from mole.losses import IGNORED, answer_loss
from mole.pool import Weighting
from mole.recipe import GateRecipe
from mole.sites import find_sites
from mole.train import Batch, Progress, Trainer

BACKWARD = 2.2
"""Seconds of a step over seconds of its forward pass, for the estimate only."""


class Training:
    """One training of gates, from its recipe to the library."""

    def __init__(self, base: TextBase, keys: Sequence[str], recipe: GateRecipe, folder: Path | None = None) -> None:
        """Ready to run; nothing has been computed yet.

        Args:
            base: the model.
            keys: of the LoRAs in the library, in the order of the recipe's sources.
            recipe: the rest.
            folder: what the recipe's relative paths are relative to.

        Raises:
            AdapterError: when there is nothing to choose from, a LoRA does not fit the base, or rows are missing or malformed.
        """
        if len(keys) + recipe.gates.base_expert < 2:
            raise AdapterError(
                "one LoRA leaves nothing to choose", None, "Pick another, or offer the base as an expert."
            )
        self.base, self.keys = base, tuple(keys)
        self.data, self.recipe = read_data(base, recipe, folder or Path())
        self.recipe = self.recipe.model_copy(update={"base": base.info.id, "sources": sources_of(keys)})
        every = Weighting(tuple((key, 1.0) for key in keys))
        pool = pool_of(base, [Variant("all", every)])
        Gated(base.model, pool)  # refuses LoRAs of another base
        with base.lock, torch.no_grad():
            one = torch.tensor([self.data.examples[0][0].prompt[:4]], device=base.device)
            sites = find_sites(base.model, pool.modules, recipe.gates.granularity, lambda: base.model(one))
        self.gates = Gates.fresh(recipe.gates, keys, sites, pool)
        self.trainer = Trainer(base.model, pool, self.gates, self._batch_of, text_loss, recipe.training)

    def _batch_of(self, step: int, count: int) -> Batch:
        if step < 0:
            return text_batch(
                self.base, Mixture(self.data.examples, self.data.shares, f"{self.data.seed} first").take(0, count)
            )
        return text_batch(self.base, self.data.take(step * count, count))

    def expected_seconds(self) -> float:
        """How long the training will take, from a forward pass over one sample of middling length."""
        examples = sorted(
            (example for rows in self.data.examples for example in rows), key=lambda e: len(e.prompt) + len(e.answer)
        )
        batch = text_batch(self.base, [examples[len(examples) // 2]] * 2)
        times = []
        for _ in range(3):
            with self.base.lock, torch.no_grad():
                start = time.perf_counter()
                self.base.model(**batch.inputs)
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
            AdapterError: when they are of another base, other LoRAs, or another kind.
        """
        saved = checkpoint.read_config(folder)
        checkpoint.check_fit(saved, base_of(self.base), experts_of(self.keys), folder)
        if saved.recipe.gates != self.recipe.gates:
            raise AdapterError("holds gates of another kind than the recipe's", folder, "Train them anew.")
        place = folder / checkpoint.TRAINING
        try:
            self.trainer.resume(checkpoint.read_tensors(place))
        except AdapterError as error:
            raise AdapterError(error.what, error.where or place, error.fix) from error

    def save(self, folder: Path) -> None:
        """Write the gates as they are now.

        Raises:
            AdapterError: when the folder exists or cannot be written.
        """
        experts = experts_of(self.keys)
        checkpoint.save_gates(folder, self.gates, base_of(self.base), experts, self.recipe, self.trainer.state())

    def add(self, name: str) -> GateEntry:
        """The gates as they are now as an entry of the library.

        Raises:
            AdapterError: when they cannot be written.
        """
        return store.add_trained(name, self.gates, self.base, self.recipe, self.trainer.state())


class Mixture:
    """Samples drawn from several sets of rows by their shares: an endless sequence that depends on its seed alone.

    Each set is gone through in an order of its own before any of its rows comes again.
    """

    def __init__(self, examples: Sequence[Sequence[Example]], shares: Sequence[float], seed: object) -> None:
        """Nothing is drawn yet."""
        self.examples, self.shares, self.seed = examples, shares, seed
        self._drawn: list[Example] = []
        self._sets = [self._endless(number) for number in range(len(examples))]
        self._counts = [0] * len(examples)

    def take(self, start: int, count: int) -> list[Example]:
        """Some samples of the sequence."""
        while len(self._drawn) < start + count:
            due = min(range(len(self.shares)), key=lambda i: (self._counts[i] + 1) / self.shares[i])
            self._counts[due] += 1
            self._drawn.append(next(self._sets[due]))
        return self._drawn[start : start + count]

    def _endless(self, number: int) -> Iterator[Example]:
        draw = random.Random(f"{self.seed} {number}")
        while True:
            yield from draw.sample(self.examples[number], len(self.examples[number]))


def read_data(base: TextBase, recipe: GateRecipe, folder: Path) -> tuple[Mixture, GateRecipe]:
    """The recipe's rows as tokens, and the recipe with their files' hashes.

    Raises:
        AdapterError: when rows are missing, malformed or too long, or a file is not the one whose hash the recipe gives.
    """
    examples, told = [], []
    for data in recipe.data:
        path = rows_file(data.rows, folder)
        found = read_rows(path, data.split, without=None if data.split else HELD_OUT)
        if data.sha256 not in (None, found.sha256):
            what = f"has changed: its SHA-256 is {found.sha256}, the recipe says {data.sha256}"
            raise AdapterError(what, path, "Take the file that was meant, or leave sha256 out of the recipe.")
        examples.append([encode_row(base, number, row, True, None) for number, row in enumerate(found.rows)])
        place = data.rows if path.parent == ASSETS else str(path)
        told.append(data.model_copy(update={"rows": place, "sha256": found.sha256}))
    shares = [data.share for data in recipe.data]
    return Mixture(examples, shares, recipe.training.seed), recipe.model_copy(update={"data": told})


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


def text_batch(base: TextBase, examples: Sequence[Example]) -> Batch:
    """Prompts with their answers: the gates read the prompts, the loss the answers."""
    ids, mask = pad_left([example.prompt + example.answer[:-1] for example in examples], base.device)
    kept = max(len(example.answer) for example in examples)
    labels = torch.full((len(examples), kept), IGNORED, device=base.device)
    for row, example in enumerate(examples):
        labels[row, -len(example.answer) :] = torch.tensor(example.answer, device=base.device)
    inputs: Mapping[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
        "use_cache": False,
        "logits_to_keep": kept,
    }
    known = {key: value for key, value in inputs.items() if key in base.accepts}
    return Batch(known, read_by_gates(mask, [len(example.answer) - 1 for example in examples]), labels)


def text_loss(out: Any, labels: Tensor) -> Tensor:
    """`answer_loss` of a language model's output."""
    return answer_loss(out.logits[:, -labels.shape[1] :], labels)
