"""What all loaded bases have in common, whatever they make."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from backends import builtin
from backends.errors import BaseError
from mole.making import MAKING

Progress = Callable[[str, float | None], None]
WRITTEN_BY = ("transformers_version", "_diffusers_version", "_name_or_path")
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@dataclass(frozen=True)
class BaseInfo:
    """One base model in the catalogue.

    Attributes:
        id: a built-in one's own, a hub id or the path of a folder.
        title: for people.
        source: ``built-in``, ``hub`` or ``folder``.
        kind: ``text`` or ``image``.
        ready: whether loading needs no download and no conversion.
    """

    id: str
    title: str
    source: str
    kind: str = "text"
    ready: bool = False


@dataclass(eq=False, kw_only=True)
class Base(ABC):
    """A loaded base, shared by everyone in the process; nothing may change its weights.

    Attributes:
        model: names the modules as adapters do.
        folder: where its files lie.
        commit: of the hub's repository.
        lock: to be held around every forward pass.
    """

    model: Any
    info: BaseInfo
    device: torch.device
    dtype: torch.dtype
    folder: Path
    commit: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process it goes as its id: there it is loaded already, or loaded once."""
        from backends import bases

        return bases.load_base, (self.info.id,)

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Its configs and weights."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of configs and weights: equal for equal models wherever they came from.

        What is converted here is known by the package it comes from: another release of the converting library writes another config.
        """
        if self.info.id == builtin.ID:
            return builtin.WHEEL_SHA256
        digest = hashlib.sha256()
        for file in self.files:
            digest.update((config_hash(file) if file.suffix == ".json" else builtin.sha256(file)).encode())
        return digest.hexdigest()


def config_hash(file: Path) -> str:
    """Hash of what a JSON file says of a model, without the releases of the libraries that wrote it."""
    found = json.loads(file.read_text(encoding="utf-8"))
    told = {key: value for key, value in found.items() if key not in WRITTEN_BY} if isinstance(found, dict) else found
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@contextmanager
def loading(where: object) -> Iterator[None]:
    """Load or make a model, one at a time, and turn whatever a library raises for files that it cannot load into one message.

    Raises:
        BaseError: that message.
    """
    try:
        with MAKING:
            yield
    except BaseError:
        raise
    except (OSError, ValueError, ImportError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        told = str(error).strip().splitlines()
        raise BaseError(f"cannot be loaded: {told[0] if told else type(error).__name__}", where) from error


def no_weights(names: Iterable[str], where: object, part: str = "") -> BaseError:
    """The error for weights that are not there, or only as pickles."""
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        why = f"holds its weights {part and f'of {part} '}only as pickles, which can run code and are never loaded"
        return BaseError(why, where, "Ask its owner for safetensors, or look for a converted copy.")
    if part:
        return BaseError(f"has no safetensors in its {part}", where, "Give a pipeline as diffusers writes it.")
    return BaseError("has no model.safetensors", where, "Give a model in the transformers layout.")
