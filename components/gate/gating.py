"""Gates as the page makes and shows them: a recipe from what was set, what its training costs, choices as plain numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backends.bases import TextBase
from backends.captions import sets
from backends.gates import GateEntry
from backends.library import Entry
from backends.rows import tasks
from backends.training import Training
from components import figures, fragments
from components.gate import gate_figures
from components.library.shelf import local
from components.map import blocks
from components.session.state import Gating, Session, expert_title
from components.work import loading
from lego import AdapterError
from mole.cli import clock
from mole.gate import BASE
from mole.recipe import GateRecipe
from mole.train import Progress, TrainConfig

MOST_SAMPLES = 10_000
"""Samples of one training where others wait for the same machine."""


def recipe_of(
    keys: Sequence[str],
    data: Sequence[Mapping[str, Any]],
    gates: Mapping[str, Any],
    training: Mapping[str, Any],
    guidance: Mapping[str, Any] | None = None,
) -> GateRecipe:
    """A training as a recipe.

    Args:
        keys: of the LoRAs.
        data: each {"rows": task, set, file or folder, "share": number}.
        gates, training, guidance: fields of `GateConfig`, `TrainConfig`, `Guidance`; the last where captions alone are learned from.

    Raises:
        AdapterError: naming what is wrong with a setting.
    """
    if not keys:
        raise AdapterError("no LoRAs are picked", None, "Pick at least two in the Library.")
    if not data:
        raise AdapterError("there is nothing to train on", None, "Tick something or add samples of your own.")
    sources = [{"path": key} for key in keys]
    document = {"sources": sources, "data": list(data), "gates": dict(gates), "training": dict(training)}
    document |= {"guidance": dict(guidance)} if guidance is not None else {}
    recipe = GateRecipe.check(document, "The settings")
    samples = recipe.training.steps * recipe.training.batch
    if not local() and samples > MOST_SAMPLES:
        raise AdapterError(f"{samples} samples are too many here", None, f"Steps × batch may be {MOST_SAMPLES}.")
    return recipe


def task_rows(names: Sequence[str], shares: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Built-in tasks with their shares, as a recipe's data.

    Raises:
        AdapterError: for a task that does not ship: a path would be a file of this machine.
    """
    known = tasks()
    if unknown := [name for name in names if name not in known]:
        raise AdapterError(f"there is no task {str(unknown[0])[:60]!r}", None, f"Built in: {', '.join(known)}.")
    return [{"rows": name, "share": shares.get(name, 1.0)} for name in names]


def set_rows(names: Sequence[str], shares: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Built-in sets of pictures with their shares, as a recipe's data.

    Raises:
        AdapterError: for a set that does not ship: a path would be a folder of this machine.
    """
    known = sets()
    if unknown := [name for name in names if name not in known]:
        told = ", ".join(known) or "none"
        raise AdapterError(f"there is no set {str(unknown[0])[:60]!r} of pictures", None, f"Built in: {told}.")
    return [{"rows": name, "share": shares.get(name, 1.0)} for name in names]


@dataclass(frozen=True)
class Cost:
    """What a training takes: seconds, gates, trained numbers."""

    seconds: float
    gates: int
    parameters: int


def cost(base: str, keys: tuple[str, ...], recipe: GateRecipe) -> Cost:
    """What a training would take, measured with one forward pass.

    Args:
        base: its id; it is loaded.
        keys: of the LoRAs.
        recipe: of the training.

    Raises:
        AdapterError: as the training itself.
    """
    lasting = recipe.model_copy(update={"training": TrainConfig(seed=recipe.training.seed)})
    training = copy.copy(_ready(base, keys, lasting.model_dump_json()))
    training.recipe = training.recipe.model_copy(update={"training": recipe.training})
    return Cost(training.expected_seconds(), len(training.gates.sites), training.gates.parameter_count)


@lru_cache(maxsize=2)
def _ready(base: str, keys: tuple[str, ...], recipe: str) -> Training:
    """A training that is only asked what it takes; how many steps it has does not change what it holds."""
    return Training(loading(base).base(), keys, GateRecipe.model_validate_json(recipe))


def told_cost(found: Cost, recipe: GateRecipe) -> str:
    """The same in a line."""
    numbers = f"{found.gates} gates" if found.gates > 1 else "1 gate"
    return (
        f"About {clock(found.seconds)} for {recipe.training.steps} steps of {recipe.training.batch} samples; "
        f"{numbers}, {found.parameters:,} trained parameters."
    )


@dataclass
class History:
    """A training as it went, for the charts."""

    experts: int
    loras: int
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    balance: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    began: float = 0.0

    def add(self, progress: Progress) -> None:
        """Note a step."""
        self.began = self.began or progress.seconds
        for line, value in (
            (self.steps, progress.step),
            (self.loss, progress.loss),
            (self.balance, progress.balance),
            (self.entropy, progress.entropy),
        ):
            line.append(value)

    def chart(self, most: int) -> go.Figure:
        """Loss, balance and entropy over the steps; dotted: gates that trust all alike."""
        levels = self.loras * float(np.log(self.loras)), float(np.log(self.experts))
        lines = {"loss": (self.loss, None), "balance": (self.balance, levels[0]), "entropy": (self.entropy, levels[1])}
        return gate_figures.curves(self.steps, lines, most)


def line_of(progress: Progress, began: float) -> str:
    """How far a training is, and when it will be done.

    Args:
        progress: its latest step.
        began: seconds after which its first step was done; samples were looked at before, which is not repeated.
    """
    text = f"step {progress.step} of {progress.steps}, loss {progress.loss:.3f}"
    if progress.step > 1:
        left = (progress.seconds - began) / (progress.step - 1) * (progress.steps - progress.step)
        text += f", about {clock(left)} left"
    return fragments.progress(text, progress.step / progress.steps)


def place_of(site: str) -> str:
    """A gate's place for people: ``block 3``, ``block 3 q_proj``, ``down 0.1 resnet``, ``down 0.1 attn1.to_q``, ``network``."""
    if blocks.of_pipeline(site):
        return blocks.site_label(site)
    parts = site.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return site or "network"
    tail = f" {parts[-1]}" if number + 1 < len(parts) else ""
    return f"block {parts[number]}{tail}"


def groups_of(session: Session, keys: Sequence[str], entries: Mapping[str, Entry]) -> list[figures.Group]:
    """What gates choose from, with the colours of what is picked."""
    found = []
    for key in keys:
        pick = session.pick(key)
        title = "Base" if key == BASE else expert_title(session, key, dict(entries))
        found.append(figures.Group(title, pick.slot if pick else None))
    return found


def columns_of(found: GateEntry) -> tuple[str, ...]:
    """The keys of what gates choose from, the base last if it takes part."""
    return (*found.experts, BASE) if found.saved.recipe.gates.base_expert else found.experts


def checked_mask(found: GateEntry, masked: Sequence[str]) -> tuple[str, ...]:
    """A mask as it came from the page, in the gates' order.

    Raises:
        AdapterError: when nothing would be left.
    """
    kept = tuple(key for key in columns_of(found) if key in masked)
    if len(kept) == len(columns_of(found)):
        raise AdapterError("everything is masked", None, "Keep at least one LoRA.")
    return kept


def described(session: Session, found: GateEntry, gating: Gating, entries: Mapping[str, Entry]) -> str:
    """What gates are: what they mix, where they sit, what they read, how they were trained."""
    config, training = found.saved.recipe.gates, found.saved.recipe.training
    mixed = fragments.legend(
        (group.name, () if group.slot is None else (group.slot,))
        for group in groups_of(session, columns_of(found), entries)
    )
    many = len(found.saved.sites)
    where = f"{many} gates, one for each {config.granularity}" if many > 1 else f"One gate for the {config.granularity}"
    reads = "the LoRAs' outputs" if config.reads == "outputs" else "the hidden state"
    data = ", ".join(data.rows.rsplit("/", 1)[-1] for data in found.saved.recipe.data)
    guided = " (captions alone)" if found.saved.recipe.guidance else ""
    how = f"trained {found.saved.steps} steps of {training.batch} samples on {data}{guided}"
    settings = f"α {training.alpha:g}, {config.normalise}, seed {training.seed}"
    base = "" if gating.base == session.base else f" They need the base {found.saved.base.id}."
    return mixed + fragments.subtle(f"{where}, reading {reads}; {how} ({settings}).{base}")


def fits(base: TextBase, found: GateEntry) -> bool:
    """Whether gates were trained on this base."""
    return base.fingerprint == found.saved.base.fingerprint
