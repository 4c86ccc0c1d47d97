"""What visitors upload: checked first, then kept in the cache folder under the hash of what it holds."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from backends import gates, library
from backends.bases import home
from backends.gates import GateEntry
from backends.library import Entry
from backends.rows import HELD_OUT, read_rows
from lego import AdapterError, read_adapter
from lego.formats import peft
from mole import checkpoint

GATE_FILES = (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAINING, checkpoint.RECIPE, checkpoint.CARD)
GATE_BYTES = 200 * 2**20
"""The most that one file of uploaded gates may hold, unpacked."""


def receive(files: Sequence[str]) -> Entry:
    """Add an adapter from uploaded files: PEFT's pair of weights and config, or a single file of diffusers or kohya.

    Raises:
        AdapterError: when there is not exactly one weights file, or the adapter cannot be used.
    """
    given = [Path(file) for file in files]
    weights = [file for file in given if file.suffix == ".safetensors"]
    if len(weights) != 1:
        what = f"{len(weights)} weights files were uploaded" if weights else "no weights file was uploaded"
        raise AdapterError(what, None, "Upload one .safetensors file; with PEFT's layout its adapter_config.json too.")
    found = {file.name: file for file in given if file.name in (peft.CONFIG, peft.CARD)}
    name = peft.WEIGHTS if peft.CONFIG in found else "weights.safetensors"
    root = home() / "uploads"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=root) as scratch:
        folder = Path(scratch) / (re.sub(r"[^A-Za-z0-9._-]+", "-", weights[0].stem).strip("-.")[:60] or "uploaded")
        folder.mkdir()
        for target, file in {**found, name: weights[0]}.items():
            shutil.copyfile(file, folder / target)
        key = read_adapter(folder).fingerprint[:12]
        place = root / key / folder.name
        place.parent.mkdir(exist_ok=True)
        if not place.is_dir():
            os.rename(folder, place)
    return library.add_folder(place)


def receive_gates(files: Sequence[str]) -> GateEntry:
    """Add trained gates from uploaded files: their weights and their config, or a zip that holds both.

    Raises:
        AdapterError: when there are none, or they are damaged.
    """
    root = home() / "uploads"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=root) as scratch:
        folder = Path(scratch) / (stem(files) or "uploaded")
        folder.mkdir()
        for file in map(Path, files):
            if file.suffix == ".zip":
                unpack(file, folder)
            elif file.name in GATE_FILES:
                shutil.copyfile(file, folder / file.name)
        checkpoint.load_gates(folder)
        place = root / f"gates-{gates.key_of(folder)}" / folder.name
        place.parent.mkdir(exist_ok=True)
        if not place.is_dir():
            os.rename(folder, place)
    return gates.add_folder(place)


def stem(files: Sequence[str]) -> str:
    """What the visitor called a zip, as a folder may be called."""
    names = [Path(file).stem for file in files if file.endswith(".zip")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", names[0]).strip("-.")[:60] if names else ""


def unpack(file: Path, folder: Path) -> None:
    """The gates' own files from a zip, wherever in it they lie; nothing else is read.

    Raises:
        AdapterError: when it is no zip, holds a file twice, or one is too large.
    """
    with opened_zip(file) as archive:
        for member in archive.infolist():
            name = member.filename.rsplit("/", 1)[-1]
            if name not in GATE_FILES:
                continue
            if member.file_size > GATE_BYTES or (folder / name).exists():
                what = "is too large" if member.file_size > GATE_BYTES else "is there twice"
                raise AdapterError(f"{name} {what}", file.name, "Upload the zip of one set of gates.")
            with archive.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)


@contextmanager
def opened_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    """An uploaded zip.

    Raises:
        AdapterError: when it is damaged (also in its compressed data, or cut off), compressed in a way that Python does not know, or
            encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise AdapterError(f"is not a readable zip ({error})", file.name) from error


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
    place = home() / "rows" / found.sha256[:16] / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', given.stem)[:60]}.jsonl"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            copied = shutil.copyfile(given, Path(scratch) / place.name)
            os.replace(copied, place)
    return place
