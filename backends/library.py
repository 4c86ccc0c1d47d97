"""The adapter library: what ships, what people add from folders and the hub, and what they merge.

Entries are kept for the whole process under a hash of what the adapter does (its weights and scales), so equal adapters are one
entry wherever they came from, and a key tells nothing about who added it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from backends import opener
from backends.builtin import home
from backends.fitting import Shapes, held_by_kohya, misfit, of_pipeline, pipeline_names
from backends.hub import Progress
from lego import Adapter, AdapterError, merge_into, read_adapter, write_adapter
from lego.formats import peft
from lego.preflight import Preflight
from lego.recipe import Source
from lego.sources import checked

ASSETS = Path(__file__).parents[1] / "assets" / "text" / "adapters"
IMAGE_ASSETS = Path(__file__).parents[1] / "assets" / "image" / "adapters"
MERGE_BYTES = 4 * 2**30
"""Merges kept on disk; the oldest make room."""
MERGES_OPEN = 32
"""Merges of which headers and report stay in memory; older ones are opened again when they are asked for."""


@dataclass(frozen=True)
class Entry:
    """One adapter of the library.

    Attributes:
        key: hash of what it holds, 12 hex digits.
        name: short, as in file names.
        title: for people.
        source: ``built-in``, ``folder``, ``upload``, ``hub`` or ``merge``.
        path: its folder, or the single file that it is.
        card: front matter of its README.md.
        ranks: the different ranks of its modules, ascending.
        alpha: as its config says, for people.
        targets: kinds of module it adapts.
        size_bytes: of the weights file.
        base_model: the base its config names.
        task: what it was trained for, in a few words; empty where nothing says so.
        origin: the hub id with its commit, for one from the hub.
    """

    key: str
    name: str
    title: str
    source: str
    path: Path
    card: Mapping[str, Any] = field(hash=False, compare=False)
    ranks: tuple[int, ...] = ()
    alpha: str = ""
    targets: tuple[str, ...] = ()
    size_bytes: int = 0
    base_model: str | None = None
    task: str = ""
    origin: str | None = None


@dataclass(frozen=True)
class Kept:
    """An entry, its weights file and how that looked when it was added, and the opened adapter; None for an older merge."""

    entry: Entry
    weights: Path
    stamp: tuple[int, int]
    adapter: Adapter | None


_kept: dict[str, Kept] = {}
_lock = threading.Lock()


def builtin(kind: str = "text") -> list[Entry]:
    """The adapters that ship with the app for bases of a kind, by name; the first reading of kohya's files takes some seconds.

    Raises:
        AdapterError: when one of them is damaged.
    """
    found = ASSETS.glob(f"*/{peft.CONFIG}") if kind == "text" else IMAGE_ASSETS.glob("*/*.safetensors")
    return [_keep(read_adapter(folder), "built-in") for folder in sorted({path.parent for path in found})]


def add_folder(path: str | Path) -> Entry:
    """Add an adapter from a local folder or a single file.

    Raises:
        AdapterError: when it is not a LoRA that can be taken apart; with the reason.
    """
    return _keep(of_pipeline(read_adapter(Path(path).expanduser().resolve())), "folder")


def add_upload(path: Path) -> Entry:
    """Add a checked upload from its folder in the cache; the same adapter, where it is known from elsewhere, stays that entry.

    Raises:
        AdapterError: as `add_folder`.
    """
    return _keep(of_pipeline(read_adapter(path.resolve())), "upload")


def add_hub(
    repo_id: str,
    revision: str | None = None,
    shapes: Shapes | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Entry:
    """Add an adapter from the hub; what cannot be used is refused before its weights are downloaded.

    Args:
        repo_id: owner/name, or the address of its page.
        revision: branch, tag or commit.
        shapes: of a base's modules; then an adapter that does not fit is refused as well.
        token, progress: as `opener.fetch` takes them.

    Raises:
        AdapterError: when it does not exist, may not be read, is not a usable LoRA, or the hub cannot be reached.
    """

    def refuse(found: Preflight) -> str | None:
        return None if shapes is None else misfit(pipeline_names(found.format, found.modules), shapes)

    adapter = of_pipeline(opener.fetch(repo_id, revision, refuse, token, progress))
    return _keep(adapter, "hub", origin=adapter.origin)


def add_source(source: Source, folder: Path, shapes: Shapes | None = None) -> Entry:
    """Add an adapter that a gate recipe names, if it is the one that the recipe means.

    Args:
        source: a path, the name of a built-in adapter, or a hub id.
        folder: what a relative path is relative to.
        shapes: as in `add_hub`.

    Raises:
        AdapterError: as `add_folder` and `add_hub`, or with both hashes when it is another.
    """
    if source.hub:
        added = add_hub(source.hub, source.revision, shapes)
    elif source.path:
        place = folder / Path(source.path).expanduser()
        kinds = () if place.exists() else ("text", "image")
        shipped = {entry.name: entry for kind in kinds for entry in builtin(kind)}
        if not place.exists() and source.path not in shipped:
            what = "is neither a file or folder nor a built-in adapter"
            raise AdapterError(what, source.path, f"Built in: {', '.join(shipped)}.")
        added = add_folder(place) if place.exists() else shipped[source.path]
    else:
        raise AdapterError("has neither a path nor a hub id", source, "Say where it is.")
    checked(get(added.key), source)
    return added


def add_merge(adapter: Adapter) -> Entry:
    """Add a merged adapter: written to the cache folder in fp16 and read back, so that what runs is what is downloaded.

    Raises:
        AdapterError: when it cannot be written.
    """
    return _adopt(adapter.name, lambda place: write_adapter(adapter, place, torch.float16))


def merge(adapters: Sequence[Adapter], name: str, **options: Any) -> Entry:
    """Merge adapters from files to files and add the result; ``options`` as `lego.merge_into` takes them.

    The format is the first adapter's, or diffusers' where that is kohya's and cannot hold what the others adapt.

    Raises:
        AdapterError: when they cannot be merged, or the result cannot be written.
    """
    if adapters and adapters[0].format == "kohya" and not all(map(held_by_kohya, adapters)):
        options.setdefault("format", "diffusers")
    return _adopt(name, lambda place: merge_into(place, adapters, name=name, **options))


def _adopt(title: str, write: Callable[[Path], object]) -> Entry:
    root = home() / "merges"
    root.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")[:60] or "merge"
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=root) as scratch:
        written = Path(scratch) / slug
        write(written)
        key = read_adapter(written).fingerprint[:12]
        place = root / key / slug
        place.parent.mkdir(exist_ok=True)
        if not place.is_dir():
            try:
                os.rename(written, place)
            except OSError:
                if not place.is_dir():  # otherwise someone else has just written the same
                    raise
    make_room(root, place.parent)
    return _keep(read_adapter(place), "merge", title=title)


def make_room(root: Path, latest: Path) -> None:
    """Remove the oldest merges until the rest fits; the latest stays."""
    sizes = {
        path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in root.glob("[!.]*")
    }
    total = sum(sizes.values())
    for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
        if total > MERGE_BYTES and path != latest:
            shutil.rmtree(path, ignore_errors=True)
            forget(path)
            total -= sizes[path]


def entry(key: str) -> Entry:
    """The entry with this key.

    Raises:
        AdapterError: when there is none.
    """
    return _find(key).entry


def get(key: str) -> Adapter:
    """The adapter with this key; its tensors are read when asked for.

    Raises:
        AdapterError: when there is none, or its file has changed since it was added.
    """
    kept = _find(key)
    if stamp(kept.weights) != kept.stamp:
        with _lock:
            _kept.pop(key, None)
        raise AdapterError("has changed or gone since it was added", kept.entry.path, "Add it again.")
    if kept.adapter is None:
        kept = replace(kept, adapter=read_adapter(kept.entry.path))
        with _lock:
            _put(kept)
    assert kept.adapter is not None
    return kept.adapter


def adopt(found: Entry) -> None:
    """Know an entry that another process of this machine has added."""
    with _lock:
        known = found.key in _kept
    if not known:
        read = read_adapter(found.path)
        _keep(read if found.source == "merge" else of_pipeline(read), found.source, found.title, found.origin)


def forget(place: Path) -> list[str]:
    """Drop the entries whose files lie in a folder; gives their keys."""
    with _lock:
        keys = [key for key, kept in _kept.items() if kept.entry.path.is_relative_to(place)]
        for key in keys:
            del _kept[key]
    return keys


def fits(entry: Entry, shapes: Shapes) -> str | None:
    """Why an adapter does not fit a base, in one sentence; None when it fits.

    Args:
        entry: of the library.
        shapes: of the base's modules, from `backends.bases.module_shapes`.
    """
    return misfit(get(entry.key).modules, shapes)


def _find(key: str) -> Kept:
    with _lock:
        kept = _kept.get(key)
    if kept is None and re.fullmatch(r"[0-9a-f]{12}", key):
        # Merges outlive the process.
        for folder in sorted((home() / "merges" / key).glob("*")):
            _keep(read_adapter(folder), "merge")
        with _lock:
            kept = _kept.get(key)
    if kept is None:
        raise AdapterError("there is no adapter with this key", str(key)[:40], "Add it to the library first.")
    return kept


def _keep(adapter: Adapter, source: str, title: str | None = None, origin: str | None = None) -> Entry:
    key = adapter.fingerprint[:12]
    assert adapter.path is not None
    assert adapter.weights_file is not None
    facts = adapter.card.get("brickyard")
    facts = facts if isinstance(facts, dict) else {}
    made = Entry(
        key=key,
        name=adapter.name,
        title=str(title or facts.get("title") or adapter.name),
        source=source,
        path=adapter.path,
        card=adapter.card,
        ranks=adapter.ranks,
        alpha=alpha_of(adapter),
        targets=adapter.kinds,
        size_bytes=adapter.weights_file.stat().st_size,
        base_model=adapter.base_model,
        task=str(facts.get("task") or ""),
        origin=origin,
    )
    with _lock:
        known = _kept.get(key)
        stays = known and (known.entry.source == "built-in" or source == "upload")
        if known and stays and stamp(known.weights) == known.stamp:
            return known.entry
        _put(Kept(made, adapter.weights_file, stamp(adapter.weights_file), adapter))
    return made


def _put(kept: Kept) -> None:
    """Keep an entry as the latest; under the lock. A report and the headers of hundreds of modules take half a megabyte."""
    _kept.pop(kept.entry.key, None)
    _kept[kept.entry.key] = kept
    opened = [key for key, each in _kept.items() if each.entry.source == "merge" and each.adapter]
    for key in opened[:-MERGES_OPEN]:
        _kept[key] = replace(_kept[key], adapter=None)


def stamp(weights: Path) -> tuple[int, int]:
    """How a weights file looks from outside: time of change and size; (0, 0) where it is gone."""
    try:
        found = weights.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def alpha_of(adapter: Adapter) -> str:
    """Alpha for people, with what changes it: ``16``, ``16 (rsLoRA)``, ``16, differs by module``."""
    if adapter.format == "peft" and adapter.path:
        config = peft.read_config(adapter.path / peft.CONFIG)
        notes = " (rsLoRA)" if config.get("use_rslora") else ""
        differs = ", differs by module" if config.get("alpha_pattern") else ""
        return f"{config.get('lora_alpha', '')}{notes}{differs}"
    alphas = sorted({round(spec.scale * spec.rank, 4) for spec in adapter.modules.values()})
    return f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} to {alphas[-1]:g}, differs by module"
