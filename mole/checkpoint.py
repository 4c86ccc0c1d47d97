"""Trained gates on disk: safetensors, and a config that names the base and every LoRA by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from lego.errors import AdapterError
from lego.folder import new_folder
from lego.recipe import Part, explain, read_text
from mole.gate import Gates
from mole.recipe import GateRecipe
from mole.sites import Site

CONFIG, WEIGHTS, TRAINING, RECIPE, CARD = (
    "gate_config.json", "gates.safetensors", "training.safetensors", "recipe.yaml", "README.md"
)  # fmt: skip
HASH = "^[0-9a-f]{64}$"
ANEW = "Take the whole folder anew, or train the gates again."


class Base(Part):
    """The base that gates were trained on."""

    id: str = Field(description="its name")
    fingerprint: str = Field(pattern=HASH, description="the hash of its weights")


class Expert(Part):
    """A LoRA that gates mix."""

    name: str = Field(description="its name")
    fingerprint: str = Field(pattern=HASH, description="the hash of its weights and scales")


class Place(Part):
    """A `Site` as JSON."""

    name: str = Field(description="a module, layer or block")
    modules: list[str] = Field(min_length=1, description="the modules it gates")
    readers: list[str] = Field(min_length=1, description="the modules whose input it reads")
    places: tuple[int, int] = Field(default=(1, 1), description="[places of their input, of their output]")

    @model_validator(mode="after")
    def reads_what_it_gates(self) -> Place:
        """Refuse readers that are not among the modules."""
        if strange := next((module for module in self.readers if module not in self.modules), None):
            raise ValueError(f"reads {strange}, which is none of its modules")
        return self


class Saved(Part):
    """What `gate_config.json` says."""

    version: Literal[1] = Field(default=1, description="1")
    base: Base = Field(description="{id: …, fingerprint: …}")
    experts: list[Expert] = Field(min_length=1, description="a list of {name: …, fingerprint: …}")
    sites: list[Place] = Field(min_length=1, description="a list of {name: …, modules: …, readers: …}")
    length: int = Field(default=1, ge=1, description="the number of tokens each gate reads; 1 for its places")
    steps: int = Field(ge=0, description="the steps that were trained")
    files: dict[str, Annotated[str, Field(pattern=HASH)]] = Field(description="{gates.safetensors: its SHA-256, …}")
    recipe: GateRecipe = Field(description="the recipe of the training")


def save_gates(
    folder: Path, gates: Gates, base: Base, experts: Sequence[Expert], recipe: GateRecipe, state: Mapping[str, Tensor]
) -> None:
    """Write trained gates, whole or not at all.

    Args:
        folder: to be made; it must not exist.
        gates: what was trained.
        base, experts: by hash; the experts in the gates' order.
        recipe: of the training, with hashes.
        state: from `mole.train.Trainer.state`, so that the training can go on.

    Raises:
        AdapterError: when the folder exists or cannot be written.
    """
    with new_folder(folder) as scratch:
        save_file(tensors_of(gates), scratch / WEIGHTS, {"format": "pt"})
        save_file({key: value.contiguous() for key, value in state.items()}, scratch / TRAINING, {"format": "pt"})
        saved = Saved(
            base=base,
            experts=list(experts),
            sites=[Place.model_validate(json.loads(json.dumps(asdict(site)))) for site in gates.sites],
            length=gates.length,
            steps=int(state["step"]),
            files={name: sha256((scratch / name).read_bytes()) for name in (WEIGHTS, TRAINING)},
            recipe=recipe,
        )
        (scratch / CONFIG).write_text(saved.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
        (scratch / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        (scratch / CARD).write_text(card(folder.name, saved), encoding="utf-8")
        for file in scratch.iterdir():  # safetensors writes files that only their owner may read
            file.chmod(0o644)


def read_config(folder: Path) -> Saved:
    """What gates on disk say of themselves.

    Raises:
        AdapterError: when there are none, or their config is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError("holds no trained gates", folder, f"A gates' folder has a {CONFIG} and {WEIGHTS}.")
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"is not JSON ({error})", path, ANEW) from error
    if not isinstance(document, dict):
        raise AdapterError("is not the config of gates", path, ANEW)
    try:
        return Saved.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise AdapterError(explain(error, Saved), path, ANEW) from error


def load_gates(folder: Path, keys: Sequence[str] | None = None) -> Gates:
    """Trained gates.

    Args:
        folder: as `save_gates` wrote it.
        keys: of the experts in the pool; their fingerprints unless given.

    Raises:
        AdapterError: when the folder holds none, or they are damaged.
    """
    saved, path = read_config(folder), folder / WEIGHTS
    tensors = read_tensors(path)
    sites = [Site(place.name, tuple(place.modules), tuple(place.readers), place.places) for place in saved.sites]
    try:
        features = [len(tensors[f"{label(site)}.weight"]) for site in sites]
        keys = keys or [expert.fingerprint for expert in saved.experts]
        gates = Gates(saved.recipe.gates, keys, sites, features, saved.length)
        gates.load_state_dict(
            {
                f"gates.{number}.{key}": tensors.pop(f"{label(site)}.{key}")
                for number, (site, gate) in enumerate(gates.items())
                for key in gate.state_dict()
            }
        )
    except (KeyError, RuntimeError, TypeError) as error:
        raise AdapterError(f"does not fit its {CONFIG} ({error})", path, ANEW) from error
    if tensors:
        raise AdapterError(f"holds {next(iter(tensors))}, which its {CONFIG} lacks", path, ANEW)
    if bad := next((key for key, value in gates.state_dict().items() if not value.isfinite().all()), None):
        raise AdapterError(f"holds numbers that are not finite ({bad})", path, ANEW)
    return gates.requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file in a gates' folder, as they were saved.

    Raises:
        AdapterError: when the file is missing, damaged or another one than the folder's config says.
    """
    try:
        content = path.read_bytes()
        found = sha256(content)
        if read_config(path.parent).files.get(path.name, found) != found:
            raise AdapterError(f"is damaged: it is not the file of which {CONFIG} has the SHA-256", path, ANEW)
        return load(content)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"is not a readable safetensors file ({error})", path, ANEW) from error


def sha256(content: bytes) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(content).hexdigest()


def check_fit(saved: Saved, base: Base, experts: Sequence[Expert], where: object) -> None:
    """Refuse gates that were trained on another base or with other LoRAs.

    Raises:
        AdapterError: naming what differs.
    """
    if saved.base.fingerprint != base.fingerprint:
        what = f"was trained on the base {saved.base.id} ({saved.base.fingerprint[:12]}), not on {base.id} ({base.fingerprint[:12]})"
        raise AdapterError(what, where, "Load that base, or train gates on this one.")
    given = {expert.fingerprint for expert in experts}
    if missing := [expert for expert in saved.experts if expert.fingerprint not in given]:
        told = ", ".join(f"{expert.name} ({expert.fingerprint[:12]})" for expert in missing)
        have = ", ".join(f"{expert.name} ({expert.fingerprint[:12]})" for expert in experts) or "none"
        raise AdapterError(f"mixes {told}; given: {have}", where, "Load the LoRAs it was trained with.")


def tensors_of(gates: Gates) -> dict[str, Tensor]:
    """The gates' tensors under their sites' names."""
    return {
        f"{label(site)}.{key}": value.contiguous()
        for site, gate in gates.items()
        for key, value in gate.state_dict().items()
    }


def label(site: Site) -> str:
    """A site's name in a file."""
    return site.name or "network"


def card(name: str, saved: Saved) -> str:
    """The model card of trained gates."""
    config, training = saved.recipe.gates, saved.recipe.training
    rows = "\n".join(f"- {expert.name} (`{expert.fingerprint[:12]}`)" for expert in saved.experts)
    data = ", ".join(f"{data.rows} × {data.share:g}" for data in saved.recipe.data)
    return f"""---
tags: [lora, mixture-of-lora-experts, brickyard]
---

# {name}

Gates that mix LoRAs for {saved.base.id} (MoLE, [arXiv 2404.13628](https://arxiv.org/abs/2404.13628)): {len(saved.sites)}, one for each
{config.granularity}, reading the LoRAs' {config.reads} ({config.normalise}). They choose between

{rows}

Trained for {saved.steps} steps of {training.batch} samples of {data}; α = {training.alpha:g}, seed {training.seed}.
`python -m mole train recipe.yaml -o OUT` makes them again.
"""
