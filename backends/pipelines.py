"""Diffusion pipelines as bases: which files one needs, what is refused before its weights are fetched, loading."""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends import device
from backends.base import TOKENIZER_FILES, Base, BaseInfo, loading, no_weights
from backends.errors import BaseError
from backends.memory import free_bytes
from backends.previews import Sketch, sketch
from lego.formats.diffusers import CLIP, COMPONENTS

ID = "brickyard-emoji-64"
TITLE = "Brickyard Emoji 64"
ASSETS = Path(__file__).parents[1] / "assets" / "image" / "base"
GUIDANCE = 2.0
"""Of the built-in pipeline, whose pictures are recognised most often so."""

INDEX = "model_index.json"
CONFIG = "config.json"
VARIANT = "fp16"
# What checks finished pictures or reads pictures that are given: nothing here needs them.
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
NEEDED = {"prompt", "generator", "num_inference_steps", "callback_on_step_end"}
OTHER = "Choose another base."


@dataclass(eq=False, kw_only=True)
class ImageBase(Base):
    """A diffusion pipeline; `model` only holds its parts, under the names that adapters use, and is never called itself.

    Attributes:
        pipeline: of diffusers; what runs it takes a copy of the object, with a scheduler of its own.
        weights: the safetensors files of all its parts, in the folder.
    """

    pipeline: Any
    weights: tuple[str, ...]

    @property
    def files(self) -> Sequence[Path]:
        """Its parts' configs and weights."""
        parts = dict.fromkeys(name.split("/")[0] for name in self.weights)
        return [self.folder / name for name in (*(f"{part}/{CONFIG}" for part in parts), *sorted(self.weights))]

    @cached_property
    def accepts(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the pipeline's call."""
        return inspect.signature(type(self.pipeline).__call__).parameters

    @property
    def guidance(self) -> float | None:
        """How strongly it follows the prompt where nothing else is said; None for a pipeline that has no such setting."""
        found = self.accepts.get("guidance_scale")
        return GUIDANCE if self.info.id == ID else found and found.default

    @cached_property
    def sketch(self) -> Sketch | None:
        """Cheap pictures of its latents; None where its decoder is of a kind unknown here."""
        return sketch(self.pipeline.vae, self.device)


def wanted(sizes: Mapping[str, int], read: Callable[[str], dict[str, Any]], where: object) -> list[str]:
    """The files to load, of those that a folder or a repository holds; arguments as in `language.wanted`.

    Raises:
        BaseError: when it is no pipeline that draws pictures from text and takes LoRAs; with the reason.
    """
    index = read(INDEX)
    pipeline_class(index, where)
    parts = components(index, where)
    rest = [name for name in sizes if name.split("/")[0] in parts and name.endswith(TOKENIZER_FILES)]
    return [INDEX, *rest, *weight_files(sizes, networks(parts), where)[0]]


def pipeline_class(index: Mapping[str, Any], where: object) -> Any:
    """The pipeline's class in diffusers.

    Raises:
        BaseError: when it is none that draws pictures from text and takes LoRAs.
    """
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as FROM_TEXT

    name = index.get("_class_name")
    if not isinstance(name, str):
        raise code_needed(f"its pipeline is {name!r}", where)
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise BaseError(f"is a {name!r}, which diffusers {diffusers.__version__} does not have", where, OTHER)
    if not hasattr(found, "load_lora_weights"):
        raise BaseError(f"is a {name}, for which diffusers loads no LoRAs", where, OTHER)
    asked = inspect.signature(found.__call__).parameters
    guided = any("control" in argument for argument in asked)
    if found not in FROM_TEXT.values() or guided or not set(asked) >= NEEDED or not hasattr(found, "encode_prompt"):
        raise BaseError(f"is a {name}, which does not draw pictures from text alone", where, OTHER)
    return found


def components(index: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The classes of the pipeline's parts by name, without those that nothing here needs.

    Raises:
        BaseError: when one is neither diffusers' nor transformers'.
    """
    import diffusers

    found = {}
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED or not isinstance(value, list) or value[:1] == [None]:
            continue
        library, kind = value if len(value) == 2 else (None, None)
        if library in ("diffusers", "transformers"):
            source: Any = import_module(library)
        else:
            source = getattr(diffusers.pipelines, str(library), None)
        found[name] = getattr(source, str(kind), None)
        if not isinstance(found[name], type):
            raise code_needed(f"its {name} is {kind} of {library}", where)
    return found


def code_needed(what: str, where: object) -> BaseError:
    """The error for a part whose program would have to come from the repository."""
    why = f"needs program code from its repository, which is never run ({what})"
    return BaseError(why, where, "Choose another base, or update diffusers if it has this meanwhile.")


def networks(parts: Mapping[str, Any]) -> list[str]:
    """The parts that have weights."""
    return [name for name, kind in parts.items() if issubclass(kind, nn.Module)]


def weight_files(names: Iterable[str], parts: Sequence[str], where: object) -> tuple[list[str], str | None]:
    """The safetensors files of all parts and their variant: ``fp16`` for a GPU where there is one, else as there is.

    Raises:
        BaseError: when a part has none, as where only pickles are given, which are never loaded.
    """
    names = list(names)
    whole, half = ({part: files_of(part, names, variant) for part in parts} for variant in (None, VARIANT))
    small = device.pick()[1] != torch.float32
    variant = VARIANT if (small and any(half.values())) or not all(whole.values()) else None
    chosen: list[str] = []
    for part in parts:
        files = (half[part] or whole[part]) if variant else whole[part]
        if not files:
            raise no_weights([name for name in names if name.startswith(f"{part}/")], where, part)
        chosen += files
    return chosen, variant


def files_of(part: str, names: Sequence[str], variant: str | None) -> list[str]:
    """One part's safetensors files of a variant: the single one, else all its shards, their numbers before or after the variant."""
    stem = rf"{part}/(?:diffusion_pytorch_)?model"
    dot = rf"\.{variant}" if variant else ""
    single = [name for name in names if re.fullmatch(rf"{stem}{dot}\.safetensors", name)]
    shards = rf"{stem}(?:{dot}-\d+-of-\d+|-\d+-of-\d+{dot})\.safetensors"
    return single[:1] or sorted(name for name in names if re.fullmatch(shards, name))


def load(folder: Path, info: BaseInfo, commit: str | None) -> ImageBase:
    """The pipeline from its folder, on the device.

    Raises:
        BaseError: when it cannot be loaded.
    """
    where, dtype = device.pick()
    if info.id == ID:
        dtype = torch.float32  # small enough everywhere, and exact: a row's picture does not depend on its batch
        torch.backends.cudnn.allow_tf32 = False  # which rounds convolutions in fp32 to 10 bits
    with loading(info.id):
        index = read_index(folder)
        kind, parts = pipeline_class(index, info.id), components(index, info.id)
        files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")]
        weights, variant = weight_files(files, networks(parts), info.id)
        options: dict[str, Any] = dict.fromkeys(UNUSED & set(index))
        if "requires_safety_checker" in inspect.signature(kind.__init__).parameters:
            options["requires_safety_checker"] = False
        with warnings.catch_warnings():  # newer versions call it dtype, and the oldest supported know no such name
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            pipeline = kind.from_pretrained(
                folder, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, **options
            )
    pipeline.set_progress_bar_config(disable=True)
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for part in models.values():
        part.eval().requires_grad_(False)
    if hasattr(models.get("vae"), "enable_slicing"):
        pipeline.vae.enable_slicing()
    if "unet" in models:  # convolutions are faster so
        models["unet"].to(memory_format=torch.channels_last)
    place(pipeline, where, sum(p.nbytes for part in models.values() for p in part.parameters()))
    return ImageBase(
        model=holder(models),
        info=replace(info, ready=True),
        device=where,
        dtype=dtype,
        folder=folder,
        commit=commit,
        pipeline=pipeline,
        weights=tuple(weights),
    )


def place(pipeline: Any, where: torch.device, weights: int) -> None:
    """Put a pipeline on the device; on a GPU without room for it all, its parts only while they work, attention in slices.

    ``BRICKYARD_OFFLOAD`` (``1``, ``0``) overrides the choice.

    Args:
        pipeline: on the CPU.
        where: it shall run.
        weights: bytes of all its parts.
    """
    here = where.type == "cuda" and not device.lends()  # a lent one is large, and not there yet
    short = os.environ.get("BRICKYARD_OFFLOAD") or str(int(here and weights > free_bytes(where)))
    if short == "1" and where.type != "cpu":
        pipeline.enable_attention_slicing()
        pipeline.enable_model_cpu_offload(device=where)
    else:
        pipeline.to(where)


def holder(models: Mapping[str, nn.Module]) -> nn.Module:
    """A module whose children are the parts that LoRAs adapt, so that their modules have the names that adapters use.

    Files call the modules of CLIP ``text_model.…``; a class that has no such level gets it here.
    """
    made = nn.Module()
    for name, part in models.items():
        if name not in COMPONENTS:
            continue
        if name.startswith("text_encoder") and any(CLIP.match(child) for child, _ in part.named_modules()):
            level = nn.Module()
            level.add_module("text_model", part)
            part = level
        made.add_module(name, part)
    return made


def skeleton(folder: Path) -> nn.Module:
    """The parts that LoRAs adapt without weights, from their configs.

    Raises:
        BaseError: when a config cannot be read.
    """
    with loading(folder):
        parts = components(read_index(folder), folder)
        made = {name: empty(parts[name], folder / name) for name in networks(parts) if name in COMPONENTS}
    return holder(made)


def empty(kind: Any, folder: Path) -> nn.Module:
    """A part without weights."""
    own = hasattr(kind, "load_config")  # diffusers' classes read a dictionary, transformers' an object
    config = kind.load_config(folder) if own else kind.config_class.from_pretrained(folder)
    with torch.device("meta"):
        return kind.from_config(config) if own else kind(config)


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's own config."""
    found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
