"""Trained gates: what ships, what is trained here and what people add, under a hash of what they hold."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from backends import library
from backends.base import Base
from backends.bases import load_base
from backends.builtin import home
from lego import AdapterError
from mole import checkpoint
from mole.checkpoint import Expert, Saved
from mole.gate import BASE, Gates
from mole.pool import Weighting
from mole.recipe import GateRecipe

ASSETS = {kind: Path(__file__).parents[1] / "assets" / kind / "gates" for kind in ("text", "image")}
"""Folders of the gates that ship, by what their bases make."""
KEPT = 8
"""Gates kept in memory: the latest."""

_entries: dict[str, GateEntry] = {}
_loaded: OrderedDict[tuple[str, str, str], Gates] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class GateEntry:
    """Trained gates in the library.

    Attributes:
        key: hash of what they hold, 12 hex digits.
        name: for people.
        source: ``built-in``, ``trained`` or ``folder``.
        path: their folder.
        saved: what their config says.
    """

    key: str
    name: str
    source: str
    path: Path
    saved: Saved

    @property
    def experts(self) -> tuple[str, ...]:
        """The library's keys of the LoRAs they mix."""
        return tuple(expert.fingerprint[:12] for expert in self.saved.experts)

    @property
    def columns(self) -> tuple[str, ...]:
        """What a gate chooses from, by name."""
        names = tuple(expert.name for expert in self.saved.experts)
        return (*names, BASE) if self.saved.recipe.gates.base_expert else names

    def weighting(self, masked: tuple[str, ...] = ()) -> Weighting:
        """The weighting of a gated variant."""
        return Weighting(tuple((key, 1.0) for key in self.experts), gates=self.key, masked=masked)


def builtin(kind: str = "text") -> list[GateEntry]:
    """The gates that ship with the app for bases of a kind, by name.

    Raises:
        AdapterError: when some are damaged.
    """
    return [_keep(path.parent, "built-in") for path in sorted(ASSETS[kind].glob(f"*/{checkpoint.CONFIG}"))]


def ships(key: str) -> bool:
    """Whether the gates with this key came with the app."""
    with _lock:
        return key in _entries and _entries[key].source == "built-in"


def add_folder(path: str | Path) -> GateEntry:
    """Add trained gates from a folder; whether they fit a base and the LoRAs is seen when they are used.

    Raises:
        AdapterError: when the folder holds none, or they are damaged.
    """
    folder = Path(path).expanduser().resolve()
    checkpoint.load_gates(folder)
    return _keep(folder, "folder")


def add_trained(name: str, gates: Gates, base: Base, recipe: GateRecipe, state: Mapping[str, Tensor]) -> GateEntry:
    """Add gates that were trained here; they are kept in the cache folder.

    Raises:
        AdapterError: when they cannot be written.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "gates"
    digest = hashlib.sha256(recipe.to_yaml().encode())
    for value in state.values():
        digest.update(value.contiguous().view(-1).cpu().numpy().tobytes())
    place = home() / "gates" / digest.hexdigest()[:12] / slug
    if place.is_dir():  # the same training before; what has been damaged since is written again
        try:
            checkpoint.load_gates(place)
        except AdapterError:
            shutil.rmtree(place)
    if not place.is_dir():
        checkpoint.save_gates(place, gates, base_of(base), experts_of(gates.experts), recipe, state)
    return _keep(place, "trained")


def entry(key: str) -> GateEntry:
    """The entry with this key.

    Raises:
        AdapterError: when there is none.
    """
    with _lock:
        found = _entries.get(key)
    if found is None:  # what was trained outlives the process
        shipped = [path for folder in ASSETS.values() for path in folder.glob(f"*/{checkpoint.CONFIG}")]
        for config in [*(home() / "gates").glob(f"*/*/{checkpoint.CONFIG}"), *shipped]:
            if key_of(config.parent) == key:
                return _keep(config.parent, "built-in" if config in shipped else "trained")
        raise AdapterError("there are no gates with this key", str(key)[:40], "Train or add them first.")
    return found


def adopt(found: GateEntry) -> None:
    """Know gates that another process of this machine has added."""
    with _lock:
        _entries.setdefault(found.key, found)


def forget(place: Path) -> None:
    """Drop gates whose files lie in a folder."""
    with _lock:
        for key in [key for key, found in _entries.items() if found.path.is_relative_to(place)]:
            del _entries[key]
            for kept in [kept for kept in _loaded if kept[0] == key]:
                del _loaded[kept]


def loaded(base: Base, key: str) -> Gates:
    """Gates ready to run beside a base; the latest are kept.

    Raises:
        AdapterError: when there are none with this key, or they belong to another base or to LoRAs that the library lacks.
    """
    found, place = entry(key), (key, base.fingerprint, str(base.device))
    with _lock:
        if place in _loaded:
            _loaded.move_to_end(place)
            return _loaded[place]
    checkpoint.check_fit(found.saved, base_of(base), experts_of(found.experts), found.name)
    gates = checkpoint.load_gates(found.path, found.experts).to(base.device)
    with _lock:
        _loaded[place] = gates
        while len(_loaded) > KEPT:
            _loaded.popitem(last=False)
    return gates


def base_of(base: Base) -> checkpoint.Base:
    """A base by hash."""
    return checkpoint.Base(id=base.info.id, fingerprint=base.fingerprint)


def experts_of(keys: tuple[str, ...]) -> list[Expert]:
    """LoRAs of the library by hash.

    Raises:
        AdapterError: when the library lacks one.
    """
    found = [library.get(key) for key in keys]
    return [Expert(name=adapter.name, fingerprint=adapter.fingerprint) for adapter in found]


def key_of(folder: Path) -> str:
    """Hash of what decides the gates' choices."""
    digest = hashlib.sha256()
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        try:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError as error:
            raise AdapterError(f"cannot be read ({error.strerror})", folder / name) from error
    return digest.hexdigest()[:12]


def _keep(folder: Path, source: str) -> GateEntry:
    made = GateEntry(key_of(folder), folder.name, source, folder, checkpoint.read_config(folder))
    with _lock:
        known = _entries.get(made.key)
        if known and known.source != "folder" and known.path.is_dir() and key_of(known.path) == made.key:
            return known
        _entries[made.key] = made
    return made


def opened(folder: str | Path, base: Base | None = None) -> tuple[Base, GateEntry]:
    """Gates from a folder with everything they need: their base loaded, their LoRAs in the library, and what does not fit refused.

    Args:
        folder: of the gates.
        base: to run them on; the one they name unless given.

    Raises:
        AdapterError: when the base or a LoRA cannot be found, or is another.
    """
    added = add_folder(folder)
    for source in added.saved.recipe.sources:
        library.add_source(source, added.path)
    base = base or load_base(added.saved.base.id)
    loaded(base, added.key)
    return base, added


def masked_keys(entry: GateEntry, names: Sequence[str]) -> tuple[str, ...]:
    """The columns' keys of LoRAs by name; the base expert is called `mole.gate.BASE`.

    Raises:
        AdapterError: when a name is none of the experts'.
    """
    keys = {expert.name: key for expert, key in zip(entry.saved.experts, entry.experts, strict=True)}
    keys |= {BASE: BASE} if entry.saved.recipe.gates.base_expert else {}
    if unknown := [name for name in names if name not in keys]:
        raise AdapterError("is not among the gates' experts", unknown[0], f"They mix: {', '.join(keys)}.")
    return tuple(keys[name] for name in names)
