"""Which files make an adapter, what they hold by their headers, and the lazy `Adapter` of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lego.adapter import Adapter, Factors
from lego.errors import AdapterError
from lego.formats import diffusers, kohya, peft
from lego.formats.header import Header, TensorFile, read_header
from lego.formats.parts import Contents
from lego.formats.reasons import Reasons

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE = "which is never loaded since it can run code"
RESAVE = (
    "Save it as safetensors: `model.save_pretrained(folder)` of a current PEFT, or `save_lora_weights` of diffusers."
)
MOST_CARD = 50_000
MOST_BRACKETS = 500  # PyYAML's time grows with the square of how deep they nest
# What PyYAML raises for a tag such as !!bool before a value that is none.
MISFITS = (AttributeError, LookupError, TypeError)


@dataclass(frozen=True)
class Found:
    """The files of one adapter, all inside its folder.

    Attributes:
        path: as given: a folder, or a file.
        weights: the safetensors file.
        config: of a PEFT folder; None for single files.
        card: front matter of the folder's README.md.
    """

    path: Path
    weights: Path
    config: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def open_adapter(path: Path) -> Adapter:
    """Open an adapter without reading its tensors.

    Raises:
        AdapterError: when it is missing, damaged or cannot be merged, with every reason.
    """
    found = find(path)
    file = TensorFile(found.weights, read_header(found.weights))
    contents, reasons = contents_of(file.header, found.config, path, file)
    reasons.check()

    def read(module: str) -> Factors:
        return contents.parts[module].read(file)

    modules = {module: part.spec for module, part in contents.parts.items()}
    name = path.name if found.path.is_dir() else path.stem
    facts: dict[str, Any] = {"format": contents.format, "config": contents.config, "card": found.card}
    return Adapter(name, modules, read, base_of(contents, found.card), path, found.weights, **facts)


def base_of(contents: Contents, card: Mapping[str, Any]) -> str | None:
    """The base as a PEFT config, a single file's card or its header names it."""
    named = card.get("base_model") if contents.format != "peft" else None
    return named if isinstance(named, str) else contents.base_model


def contents_of(
    header: Header, config: Mapping[str, Any] | None, where: object, file: TensorFile | None = None
) -> tuple[Contents, Reasons]:
    """What an adapter holds and why it cannot be merged, from its header and, for PEFT's, its config.

    Args:
        header: of the weights.
        config: of a PEFT folder; None for single files, which are told apart by their keys.
        where: for the error.
        file: to read alphas from; without it the scales of kohya files stay 1.
    """
    reasons = Reasons(where)
    alpha = file.scalar if file else None
    if config is not None:
        contents = peft.contents(header, config, reasons)
    elif any(key.startswith(peft.PREFIX) for key in header.tensors):
        contents = Contents("peft", {})
        reasons.add(f"is a file of a PEFT folder, without its {peft.CONFIG}", "Give the folder that holds both.")
    elif kohya.is_kohya(header.tensors):
        contents = kohya.contents(header, reasons, alpha)
    else:
        contents = diffusers.contents(header, reasons, alpha)
    if not contents.parts and not reasons:
        reasons.add("adapts no module", "It holds no LoRA weights.")
    return contents, reasons


def find(path: Path) -> Found:
    """The files of the adapter at a path.

    Raises:
        AdapterError: when there is none, or the path holds several.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise AdapterError("does not exist", path) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot be read ({error})", path) from error
    if not path.is_dir():
        return Found(path, single_file(path))
    card = read_card(inside(path, peft.CARD))
    if (path / peft.CONFIG).is_file() or (path / peft.WEIGHTS).is_file():
        config, weights = peft.read_config(inside(path, peft.CONFIG)), inside(path, peft.WEIGHTS)
        if not weights.is_file():
            pickled = (path / "adapter_model.bin").is_file()
            why = f"holds only a pickle (adapter_model.bin), {PICKLE}" if pickled else f"has no {peft.WEIGHTS}"
            raise AdapterError(why, path, RESAVE)
        return Found(path, weights, config, card)
    files = [path / diffusers.WEIGHTS] if (path / diffusers.WEIGHTS).is_file() else sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return Found(path, single_file(inside(path, files[0].name)), None, card)
    if files:
        names = ", ".join(file.name for file in files[:3])
        raise AdapterError(f"holds {len(files)} safetensors files ({names} …)", path, "Give one of them.")
    if pickle := next((file for file in sorted(path.iterdir()) if file.suffix in PICKLES), None):
        raise AdapterError(f"holds only a pickle ({pickle.name}), {PICKLE}", path, RESAVE)
    raise AdapterError(
        f"has no {peft.CONFIG}, {diffusers.WEIGHTS} or single other safetensors file",
        path,
        "Point to an adapter's folder.",
    )


def single_file(path: Path) -> Path:
    """The path of a weights file that is an adapter on its own.

    Raises:
        AdapterError: when it cannot be one.
    """
    if path.suffix in PICKLES:
        raise AdapterError(f"is a pickle, {PICKLE}", path, RESAVE)
    if path.name == peft.WEIGHTS:
        raise AdapterError("is a file of a PEFT folder", path, f"Give the folder, which holds its {peft.CONFIG} too.")
    if path.suffix != ".safetensors" or not path.is_file():
        raise AdapterError(
            "is a file but not a safetensors file", path, "Give an adapter's folder or its .safetensors file."
        )
    return path


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder, which may be a link only into the folder or into the hub cache it lies in.

    Raises:
        AdapterError: when the link leads elsewhere.
    """
    path = folder / name
    if path.is_symlink():
        home = folder.resolve()
        snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
        allowed = [home] + ([snapshots.parent / "blobs"] if snapshots else [])
        # Unlike Path.resolve, this takes a link to itself, which then is no file.
        if not any(Path(os.path.realpath(path)).is_relative_to(place) for place in allowed):
            raise AdapterError("is a link that leads out of its folder", path, "Copy the file itself there.")
    return path


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without merge keys, a few of which can hold more than fits in memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave "<<" for the constructor, which does not know it."""


class CardLoader(PlainLoader):
    """The same without aliases, which can hold themselves, or more than fits in memory when they are written out."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node that is no alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def plain(value: Any) -> Any:
    """What YAML gave as what JSON can hold: names of fields and dates, sets and infinities as text or lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def read_card(path: Path) -> dict[str, Any]:
    """Front matter of the README, as JSON could hold it, or nothing when there is none.

    Raises:
        AdapterError: when there is front matter that is not valid YAML.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MOST_CARD).decode("utf-8", errors="replace")
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    found = re.match(r"^---\n(.*?)\n---", text, re.DOTALL)
    if found and sum(map(found[1].count, "[{")) > MOST_BRACKETS:
        raise AdapterError(
            f"has front matter with more than {MOST_BRACKETS} brackets", path, "Write lists with dashes."
        )
    try:
        card = plain(yaml.load(found[1], CardLoader)) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError, *MISFITS) as error:
        raise AdapterError(f"has front matter that is not valid YAML ({error})", path) from error
    return card if isinstance(card, dict) else {}
