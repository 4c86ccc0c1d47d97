"""What visitors upload: checked first, then kept for them in the cache folder under the hash of what it holds."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gradio.utils import get_upload_folder

from backends import gates, library
from backends.bases import home
from backends.gates import GateEntry
from backends.library import Entry
from backends.rows import HELD_OUT, read_rows
from components.library import unpacking
from components.session.leaving import held, hold, keep
from lego import AdapterError, read_adapter
from lego.formats import peft
from mole import checkpoint

GATE_FILES = (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAINING, checkpoint.RECIPE, checkpoint.CARD)
MOST_ADAPTERS = 8
"""In one upload."""
MOST_HELD = 32
"""Uploads of one visitor."""
FILE_BYTES = 200 * 10**6
"""One uploaded file; the server refuses larger ones."""
LIMITS = (
    f"Up to {MOST_ADAPTERS} adapters at a time and {MOST_HELD} in all; a file up to {FILE_BYTES // 10**6} MB, "
    f"a zip up to {unpacking.MOST_BYTES // 10**6} MB unpacked. Only you see them, and they are deleted when you leave."
)
TOGETHER = "Put each adapter into a folder of its own and upload a zip of the folders."


def receive(files: Sequence[str]) -> list[Entry]:
    """Add adapters from uploaded files: PEFT's pairs of weights and config, single files of diffusers or kohya, zips of both.

    Raises:
        AdapterError: when there is none, one cannot be used, or they are too many; then none is added.
    """
    with _scratch() as scratch:
        groups = enumerate(_groups(files, scratch))
        found = [_folder(group, scratch / f"adapter-{number}", scratch) for number, group in groups]
        if not found:
            what = "no weights file was uploaded"
            raise AdapterError(what, None, "Upload .safetensors files; with PEFT's layout the adapter_config.json too.")
        if len(found) > MOST_ADAPTERS:
            raise AdapterError(f"{len(found)} adapters are too many", None, f"Upload {MOST_ADAPTERS} at a time.")
        keys = [read_adapter(folder).fingerprint[:12] for folder in found]
        places = [
            _kept(folder, home() / "uploads" / key / folder.name) for key, folder in zip(keys, found, strict=True)
        ]
    discard(files)
    added = [library.add_upload(place) for place in places]
    for entry in added:
        keep(entry.path)
    return added


@contextmanager
def _scratch() -> Iterator[Path]:
    root = home() / "uploads"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=root) as scratch:
        yield Path(scratch)


def _groups(files: Sequence[str], scratch: Path) -> Iterator[list[Path]]:
    """The files of each adapter; those of a zip's folders are together, others as far as there is no doubt."""
    given = [Path(file) for file in files]
    loose = [file for file in given if file.suffix != ".zip"]
    if twice := {file.name for file in loose if [other.name for other in loose].count(file.name) > 1}:
        raise AdapterError(f"{sorted(twice)[0]} was uploaded more than once", None, TOGETHER)
    yield from _adapters(loose)
    for number, file in enumerate(each for each in given if each.suffix == ".zip"):
        written = unpacking.unpack(file, scratch / f"zip-{number}", _wanted)
        for folder in dict.fromkeys(path.parent for path in written):
            yield from _adapters([path for path in written if path.parent == folder])


def _wanted(name: str) -> bool:
    return name in (peft.CONFIG, peft.CARD) or (name.endswith(".safetensors") and not name.startswith("."))


def _adapters(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files of each adapter of one folder."""
    weights = [file for file in files if file.suffix == ".safetensors"]
    config = [file for file in files if file.name == peft.CONFIG]
    card = [file for file in files if file.name == peft.CARD]
    if config:
        own = [file for file in weights if file.name == peft.WEIGHTS] or weights
        if len(own) != 1:
            what = f"{len(own)} weights files came with one {peft.CONFIG}" if own else f"{peft.CONFIG} came alone"
            raise AdapterError(what, None, TOGETHER if own else "Upload its weights with it.")
        yield [*own, *config, *card]
        weights = [file for file in weights if file not in own]
    alone = card if len(weights) == 1 and not config else []
    yield from ([file, *alone] for file in weights)


def _folder(files: Sequence[Path], place: Path, scratch: Path) -> Path:
    """One adapter's files in a folder of their own, called as the visitor called it."""
    weights, *beside = files
    paired = any(file.name == peft.CONFIG for file in beside)
    zipped = weights.is_relative_to(scratch)
    title = weights.parent.name if zipped and weights.name == peft.WEIGHTS else weights.stem
    folder = place / (_slug(title) or "uploaded")
    folder.mkdir(parents=True)
    for file, name in [(weights, peft.WEIGHTS if paired else "weights.safetensors"), *((f, f.name) for f in beside)]:
        shutil.copyfile(file, folder / name)
    return folder


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]


def _kept(folder: Path, place: Path) -> Path:
    """Move a checked folder to its place, where it is this visitor's as long as they are here.

    Raises:
        AdapterError: when they hold as much as one may.
    """
    if len(held("uploads")) >= MOST_HELD:
        raise AdapterError(f"you hold {MOST_HELD} uploads, which is the most", None, "Reload the page to start anew.")
    hold(place.parent, lambda parent: _move(folder, parent / folder.name))
    return next(found for found in sorted(place.parent.iterdir()))


def _move(folder: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, place)


def discard(files: Sequence[str]) -> None:
    """Delete what the browser sent, once it has been received."""
    root = Path(get_upload_folder()).resolve()
    for file in map(Path, files):
        if file.resolve().is_relative_to(root):
            file.unlink(missing_ok=True)


def receive_gates(files: Sequence[str]) -> GateEntry:
    """Add trained gates from uploaded files: their weights and their config, or a zip that holds both.

    Raises:
        AdapterError: when there are none, or they are damaged.
    """
    with _scratch() as scratch:
        folder = scratch / "gates" / (stem(files) or "uploaded")
        folder.mkdir(parents=True)
        for number, file in enumerate(map(Path, files)):
            zipped = file.suffix == ".zip"
            given = unpacking.unpack(file, scratch / f"zip-{number}", GATE_FILES.__contains__) if zipped else [file]
            for each in given:
                if (folder / each.name).exists():
                    raise AdapterError(f"{each.name} is there twice", file.name, "Upload one set of gates.")
                if each.name in GATE_FILES:
                    shutil.copyfile(each, folder / each.name)
        checkpoint.load_gates(folder)
        place = _kept(folder, home() / "uploads" / f"gates-{gates.key_of(folder)}" / folder.name)
    discard(files)
    return gates.add_folder(place)


def stem(files: Sequence[str]) -> str:
    """What the visitor called a zip, as a folder may be called."""
    names = [Path(file).stem for file in files if file.endswith(".zip")]
    return _slug(names[0]) if names else ""


def receive_rows(file: str | Path) -> Path:
    """Keep an uploaded JSONL file of prompts and answers.

    Raises:
        AdapterError: when a line is not such a row; with its number.
    """
    given = Path(file)
    try:
        found = read_rows(given, without=HELD_OUT)
    except AdapterError as error:  # its message names the upload's place on the server
        where = str(error.where or "").replace(str(given), given.name)
        raise AdapterError(error.what, where, error.fix) from error
    place = home() / "rows" / found.sha256[:16] / f"{_slug(given.stem) or 'rows'}.jsonl"

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            copied = shutil.copyfile(given, Path(scratch) / place.name)
            folder.mkdir(exist_ok=True)
            os.replace(copied, place)

    return next(iter(sorted(hold(place.parent, write).iterdir())))
