"""The base models: what there is, and loading each once per process."""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Container
from pathlib import Path
from typing import Any

from torch import nn

from backends import builtin, hub, language, pipelines
from backends.base import Base, BaseInfo, Progress
from backends.builtin import ID as BUILTIN
from backends.builtin import home
from backends.errors import BaseError
from backends.language import TextBase
from backends.pipelines import ID as IMAGE
from backends.pipelines import ImageBase
from lego.errors import AdapterError

__all__ = [
    "BUILTIN", "IMAGE", "Base", "BaseError", "BaseInfo", "ImageBase", "TextBase", "catalogue", "home", "load_base",
    "module_shapes", "warm",
]  # fmt: skip

Shapes = dict[str, tuple[int, ...]]
KINDS: dict[str, Any] = {"text": language, "image": pipelines}
"""The module that knows the bases of a kind: ``wanted``, ``load`` and ``skeleton``."""

INDEX = {"image": pipelines.INDEX, "text": language.CONFIG}
"""The file that tells a kind of base."""

KEPT = 2
"""Bases kept in memory when nobody uses them: the latest."""


_loaded: OrderedDict[str, TextBase | ImageBase] = OrderedDict()
_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


def catalogue() -> list[BaseInfo]:
    """The built-in bases, and those loaded in this process."""
    shipped = [_text_builtin(), *([_image_builtin()] if (pipelines.ASSETS / pipelines.INDEX).is_file() else [])]
    with _guard:
        return [*shipped, *(base.info for name, base in _loaded.items() if name not in (BUILTIN, IMAGE))]


def _text_builtin() -> BaseInfo:
    return BaseInfo(BUILTIN, f"{builtin.TITLE} (built in)", "built-in", ready=builtin.ready())


def _image_builtin() -> BaseInfo:
    return BaseInfo(IMAGE, f"{pipelines.TITLE} (built in)", "built-in", "image", ready=True)


def load_base(id: str, progress: Progress | None = None) -> TextBase | ImageBase:
    """A base model, loaded at the first call and shared afterwards.

    Args:
        id: `BUILTIN`, `IMAGE`, a hub id (owner/name) or the path of a local folder.
        progress: is told what happens, and the fraction done or None; the terminal is told as well.

    Raises:
        BaseError: when it cannot be fetched or loaded, with what to do instead.
    """
    id = normalise(id)
    with _guard:
        lock = _locks.setdefault(id, threading.Lock())
    with lock:
        with _guard:
            if id in _loaded:
                _loaded.move_to_end(id)
                return _loaded[id]
        try:
            base = _load(id, Teller(id, progress))
        except AdapterError as error:
            if isinstance(error, BaseError):
                raise
            raise BaseError(error.what, error.where, error.fix) from error
        with _guard:
            _loaded[id] = base
            while len(_loaded) > KEPT:
                _loaded.popitem(last=False)
        return base


def warm(id: str = BUILTIN, progress: Progress | None = None) -> threading.Thread:
    """Load a base in the background; who needs it meanwhile waits in `load_base`, which also raises what went wrong."""

    def work() -> None:
        try:
            load_base(id, progress)
        except BaseError as error:
            print(f"brickyard: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=work, name=f"load {id}", daemon=True)
    thread.start()
    return thread


def module_shapes(base: Base | str) -> Shapes:
    """(d_in, d_out) of every linear layer of a base, (in·kh·kw, out, kh, kw) of every convolution that a LoRA can adapt.

    A convolution of 1 × 1 is a matrix, as a linear layer is.

    Args:
        base: a loaded one, or the id of one: the built-in needs no file for this, others need their config.json.

    Raises:
        AdapterError: when the config cannot be had.
    """
    model = _skeleton(normalise(base)) if isinstance(base, str) else base.model
    return {name: shape for name, module in model.named_modules() if (shape := shape_of(module))}


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """As in `module_shapes`; empty for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        size = math.prod(module.kernel_size)
        return module.in_channels * size, module.out_channels, *(module.kernel_size if size > 1 else ())
    return ()


def normalise(id: str) -> str:
    """The one form of a base's id: a built-in's, a resolved path, or owner/name with ``@revision`` where one was given.

    Raises:
        BaseError: when it is none of them.
    """
    text = id.strip()
    if text in (BUILTIN, IMAGE):
        return text
    path = Path(text).expanduser()
    if path.is_absolute() or text.startswith(".") or path.is_dir():
        if not path.is_dir():
            raise BaseError("is not a folder", path)
        return str(path.resolve())
    try:
        name, at, revision = text.partition("@")
        repo, from_address = hub.parse_id(name)
    except AdapterError as error:
        raise BaseError(
            f"{text[:80]!r} is neither a hub id nor a folder", None, "Write owner/name or a path."
        ) from error
    revision = revision if at else from_address or ""
    return f"{repo}@{revision}" if revision else repo


class Teller:
    """Passes progress on, and prints it where it says something new."""

    def __init__(self, id: str, progress: Progress | None) -> None:
        self.id, self.progress, self.printed = id, progress, ("", -1)

    def __call__(self, text: str, fraction: float | None) -> None:
        if self.progress:
            self.progress(text, fraction)
        stage = re.sub(r"[\d,. ]+of.*", "", text), -1 if fraction is None else int(fraction * 10)
        if stage != self.printed:
            self.printed = stage
            print(f"brickyard: {self.id}: {text}", file=sys.stderr, flush=True)


def _load(id: str, tell: Teller) -> TextBase | ImageBase:
    folder, info, commit = _fetch(id, tell)
    tell("Loading the weights", None)
    base: TextBase | ImageBase = KINDS[info.kind].load(folder, info, commit)
    tell("Ready", 1.0)
    return base


def _fetch(id: str, tell: Teller) -> tuple[Path, BaseInfo, str | None]:
    """The local folder of a base's files, downloaded first where need be."""
    if id == BUILTIN:
        return builtin.ensure(tell), _text_builtin(), None
    if id == IMAGE:
        return pipelines.ASSETS, _image_builtin(), None
    path = Path(id)
    if not path.is_absolute():
        return _fetch_hub(id, tell)
    sizes = {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in sorted(path.glob("*")) + sorted(path.glob("*/*"))
        if file.is_file()
    }
    kind = kind_of(sizes)
    KINDS[kind].wanted(sizes, lambda name: json.loads((path / name).read_text(encoding="utf-8")), path)
    return path, BaseInfo(id, path.name, "folder", kind), None


def _fetch_hub(id: str, tell: Teller) -> tuple[Path, BaseInfo, str | None]:
    name, _, revision = id.partition("@")
    tell(f"Asking the hub for {name}", None)
    found = hub.look_or_find(name, revision or None, list(INDEX.values()))
    if isinstance(found, Path):
        return found, BaseInfo(id, name, "hub", kind_of([file.name for file in found.iterdir()])), found.name
    kind = kind_of(found.sizes)
    files = KINDS[kind].wanted(found.sizes, lambda file: hub.read_json(found, file), name)
    return hub.download(found, files, tell), BaseInfo(id, name, "hub", kind), found.commit


def kind_of(names: Container[str]) -> str:
    """What a folder or a repository with these files makes: ``image`` for a pipeline, else ``text``."""
    return "image" if pipelines.INDEX in names else "text"


def _skeleton(id: str) -> nn.Module:
    """The model without weights."""
    with _guard:
        if id in _loaded:
            return _loaded[id].model
    if id == BUILTIN:
        return language.skeleton(None)
    path = pipelines.ASSETS if id == IMAGE else Path(id)
    if path.is_absolute():
        kind, folder = kind_of([pipelines.INDEX] if (path / pipelines.INDEX).is_file() else []), path
    else:
        name, _, revision = id.partition("@")
        repo = hub.look(name, revision or None)
        kind = kind_of(repo.sizes)
        configs = {
            "text": [language.CONFIG],
            "image": [pipelines.INDEX, *(name for name in repo.sizes if name.endswith(f"/{pipelines.CONFIG}"))],
        }
        folder = hub.download(repo, configs[kind])
    return KINDS[kind].skeleton(folder)


def main() -> int:
    """``python -m backends.bases``: fetch and convert the built-in base, if that has not been done; 0 when it is there."""
    try:
        print(builtin.ensure(Teller(BUILTIN, None)))
    except BaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
