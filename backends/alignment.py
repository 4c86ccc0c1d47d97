"""How well pictures fit captions and other pictures: the MoLE paper's text alignment and image alignment, by a contrastive model."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from backends import bases, device, hub
from backends.base import TOKENIZER_FILES, Progress, loading
from backends.bases import BaseError
from backends.language import weight_files
from lego.errors import AdapterError

if TYPE_CHECKING:
    from PIL.Image import Image

BUILTIN = "brickyard-clip-64"
ASSETS = Path(__file__).parents[1] / "assets" / "image" / "clip"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
BATCH = 64
KEPT = 2
"""Models kept in memory when nobody uses them: the latest."""

_loaded: OrderedDict[str, Alignment] = OrderedDict()
_guard = threading.Lock()


@dataclass(eq=False)
class Alignment:
    """A contrastive image–text model (transformers' CLIPModel), shared by everyone in the process.

    Attributes:
        id: `BUILTIN`, a hub id or the path of a folder.
        processor: makes a picture what the model was trained on.
        lock: held around every forward pass.
    """

    id: str
    model: Any
    tokenizer: Any
    processor: Any
    device: torch.device
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, id: str | None = None, progress: Progress | None = None) -> Alignment:
        """A model, loaded at the first call and shared afterwards.

        Args:
            id: `BUILTIN` (also None), a hub id (owner/name, with ``@revision`` where one is meant) or the path of a folder.
            progress: is told what happens, and the fraction done or None.

        Raises:
            BaseError: when it cannot be fetched or loaded, with what to do instead.
        """
        name = BUILTIN if id is None or id.strip() == BUILTIN else bases.normalise(id)
        with _guard:
            if name not in _loaded:
                _loaded[name] = _load(name, progress)
            _loaded.move_to_end(name)
            while len(_loaded) > KEPT:
                _loaded.popitem(last=False)
            return _loaded[name]

    @torch.no_grad()
    def images(self, pictures: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Unit vectors of pictures, on the CPU.

        Raises:
            AdapterError: when there are none.
        """
        found = []
        for part in _parts(pictures, "pictures"):
            pixels = self.processor(images=part, return_tensors="pt")["pixel_values"].to(self.device, self.model.dtype)
            with self.lock:
                found.append(self.model.get_image_features(pixel_values=pixels).pooler_output.float().cpu())
        return F.normalize(torch.cat(found), dim=-1)

    def pixels(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n d"]:
        """Unit vectors of square pictures with values from −1 to 1, on the model's device; gradients reach the pixels."""
        side = self.model.config.vision_config.image_size
        wanted = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True) / 2 + 0.5
        mean, spread = (wanted.new_tensor(value)[:, None, None] for value in self.normalisation)
        features = self.model.get_image_features(pixel_values=((wanted - mean) / spread).to(self.model.dtype))
        return F.normalize(features.pooler_output.float(), dim=-1)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and spread of the colours, as the processor takes them off."""
        return self.processor.image_mean, self.processor.image_std

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of captions, cut to what the model reads, on the CPU.

        Raises:
            AdapterError: when there are none.
        """
        found, length = [], self.model.config.text_config.max_position_embeddings
        for part in _parts(captions, "captions"):
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt")
            with self.lock:
                features = self.model.get_text_features(**tokens.to(self.device))
            found.append(features.pooler_output.float().cpu())
        return F.normalize(torch.cat(found), dim=-1)

    def text_alignment(self, pictures: Sequence[Image], captions: Sequence[str]) -> Float[Tensor, " n"]:
        """Cosine of each picture with its own caption.

        Raises:
            AdapterError: when there is not one caption for each picture.
        """
        if len(pictures) != len(captions):
            raise AdapterError(f"{len(pictures)} pictures and {len(captions)} captions", None, "Give one for each.")
        distinct = list(dict.fromkeys(captions))
        rows = [distinct.index(caption) for caption in captions]
        return (self.images(pictures) * self.texts(distinct)[rows]).sum(1)

    def image_alignment(self, pictures: Sequence[Image], references: Sequence[Image]) -> Float[Tensor, " n"]:
        """Mean cosine of each picture with all the references.

        Raises:
            AdapterError: when there are no pictures or no references.
        """
        return self.images(pictures) @ self.images(references).mean(0)


def wanted(sizes: Mapping[str, int], read: Callable[[str], dict[str, Any]], where: object) -> list[str]:
    """The files to load, of those that a folder or a repository holds; arguments as in `language.wanted`.

    Raises:
        BaseError: when it is no CLIP model that can be loaded; with the reason.
    """
    if missing := next((name for name in (CONFIG, PREPROCESSOR) if name not in sizes), None):
        raise BaseError(f"has no {missing}", where, "Give a CLIP model as transformers writes it.")
    if (kind := read(CONFIG).get("model_type")) != "clip":
        raise BaseError(f"is a model of type {kind!r}, not clip", where, "Choose a CLIP model of transformers.")
    rest = [name for name in sizes if "/" not in name and name.endswith(TOKENIZER_FILES)]
    return [*rest, *weight_files(sizes, where)]


def _fetch(id: str, tell: Progress) -> Path:
    """The folder of a model's files, downloaded first where need be."""
    path = ASSETS if id == BUILTIN else Path(id)
    if path.is_absolute():
        sizes = {file.name: file.stat().st_size for file in sorted(path.glob("*")) if file.is_file()}
        wanted(sizes, lambda name: json.loads((path / name).read_text(encoding="utf-8")), path)
        return path
    name, _, revision = id.partition("@")
    tell(f"Asking the hub for {name}", None)
    found = hub.look_or_find(name, revision or None, [PREPROCESSOR])
    if isinstance(found, Path):
        return found
    return hub.download(found, wanted(found.sizes, lambda file: hub.read_json(found, file), name), tell)


def _load(id: str, progress: Progress | None) -> Alignment:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    tell = bases.Teller(id, progress)
    try:
        folder = _fetch(id, tell)
    except AdapterError as error:
        if isinstance(error, BaseError):
            raise
        raise BaseError(error.what, error.where, error.fix) from error
    tell("Loading the weights", None)
    where, dtype = device.own()
    if id == BUILTIN:
        dtype = torch.float32  # as it was trained, and small enough everywhere
    with loading(id):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        model = CLIPModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    tell("Ready", 1.0)
    return Alignment(id, model.to(where).eval().requires_grad_(False), tokenizer, processor, where)


def _parts(things: Sequence[Any], what: str) -> list[list[Any]]:
    if not things:
        raise AdapterError(f"no {what} to measure", None, "Give at least one.")
    return [list(things[start : start + BATCH]) for start in range(0, len(things), BATCH)]
