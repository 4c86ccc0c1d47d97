"""Files for download, written complete or not at all, into a folder of their own in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from backends import library
from backends.bases import home
from backends.gates import GateEntry
from components.compare import comparison, sheet
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.compare.votes import Vote, to_csv
from components.library.uploads import GATE_FILES
from components.merge.making import slug
from components.session.opening import embedded
from components.session.remembered import Remembered
from components.theme import css
from lego.formats import peft
from lego.formats.opening import inside
from lego.write import RECIPE, REPORT

PICTURES = "pictures"
PICTURE_BYTES = 2**30
"""Finished pictures kept on disk for the pages that show them; the oldest make room."""

ZIP_BYTES = 2 * 2**30
"""Zips kept on disk for download; the oldest make room."""


def folder() -> Path:
    """Where downloads are written; the only folder that the server gives files from."""
    path = home() / "exports"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _once(target: Path, write: Callable[[Path], None]) -> Path:
    """Write a file under a temporary name and rename it, unless it is there already."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(handle)
    try:
        write(Path(scratch))
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return target


def adapter_zip(key: str, name: str) -> Path:
    """An adapter of the library as a zip: its weights; of a folder config, card, recipe and report too, and nothing else in it.

    Raises:
        AdapterError: when its files have changed or gone since it was added.
    """
    return _zipped(folder() / key, slug(name) or "adapter", adapter_files(key))


def adapter_files(key: str) -> list[Path]:
    """The files of an adapter of the library.

    Raises:
        AdapterError: when they have changed or gone since it was added.
    """
    adapter = library.get(key)
    assert adapter.path is not None
    assert adapter.weights_file is not None
    files = [adapter.weights_file]
    if adapter.path.is_dir():
        beside = [inside(adapter.path, file) for file in (peft.CONFIG, peft.CARD, RECIPE, REPORT)]
        files += [file for file in beside if file.is_file()]
    return files


def _zipped(place: Path, called: str, files: Sequence[Path]) -> Path:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in files:
                archive.write(file, f"{called}/{file.name}")

    made = _once(place / f"{called}.zip", write)
    os.utime(made)
    make_room("*/*.zip", ZIP_BYTES)
    return made


def gates_zip(found: GateEntry, name: str) -> Path:
    """Trained gates as a zip: their weights, config, recipe, card and what a training needs to go on."""
    return _zipped(folder() / f"gates-{found.key}", slug(name) or "gates", gates_files(found))


def gates_files(found: GateEntry) -> list[Path]:
    """The files of trained gates."""
    return [file for file in (inside(found.path, part) for part in GATE_FILES) if file.is_file()]


def comparison_files(found: Comparison, recipe: Remembered | None = None) -> tuple[Path, Path]:
    """The comparison as JSON and as a standalone page, both with the recipe of its session where one is given."""
    text = comparison.to_json(found, recipe and recipe.model_dump(mode="json", exclude_none=True))
    place = folder() / hashlib.sha256(text.encode()).hexdigest()[:16]
    page = comparison.to_html(found, css(), embedded(recipe) if recipe else "")
    as_json = _once(place / "comparison.json", lambda path: _write(path, text))
    return as_json, _once(place / "comparison.html", lambda path: _write(path, page))


def report_file(page: str) -> Path:
    """A report as a page of its own."""
    place = folder() / hashlib.sha256(page.encode()).hexdigest()[:32]
    return _once(place / "report.html", lambda path: _write(path, page))


def session_file(recipe: Remembered) -> Path:
    """A session's recipe as YAML."""
    text = recipe.to_yaml()
    place = folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
    return _once(place / "session.yaml", lambda path: _write(path, text))


def votes_file(cast: Sequence[Vote]) -> Path:
    """The votes as CSV."""
    text = to_csv(cast)
    place = folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
    return _once(place / "votes.csv", lambda path: _write(path, text))


def picture_file(picture: Image.Image) -> Path:
    """A finished picture as a file that the page shows, under the hash of what it holds: nobody finds it who cannot see it."""
    data = sheet.png(picture)
    place = folder() / PICTURES / f"{hashlib.sha256(data).hexdigest()}.png"
    if place.exists():
        os.utime(place)  # in use again: others make room first
    return _once(place, lambda path: _write_bytes(path, data))


def make_room(kind: str = f"{PICTURES}/*.png", most: int = PICTURE_BYTES) -> None:
    """Remove the oldest pictures, or other downloads, until the rest fits."""
    files = {file: file.stat() for file in folder().glob(kind)}
    total = sum(found.st_size for found in files.values())
    for file in sorted(files, key=lambda file: files[file].st_mtime):
        if total > most:
            file.unlink(missing_ok=True)
            total -= files[file].st_size


def gallery_files(found: Gallery, remembered: Remembered | None) -> tuple[Path, Path]:
    """A finished comparison of pictures: one sheet with captions, and a zip of the single pictures.

    Args:
        found: with its files.
        remembered: the recipe of its session, when the files are to carry it; else None.
    """
    recipe = remembered and remembered.model_dump(mode="json", exclude_none=True)
    text = json.dumps([found.files, found.names, found.prompts, found.seeds, recipe])
    place = folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
    drawn = [[[Image.open(file) for file in row] for row in rows] for rows in found.files]
    whole = sheet.contact_sheet(drawn, found.names, found.prompts, found.seeds)
    as_sheet = _once(place / "sheet.png", lambda path: _write_bytes(path, sheet.png(whole, recipe)))

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for number, at in enumerate(found.places(), 1):
                name = f"{number:03d} {found.names[at.variant]} {found.prompts[at.prompt]}"[:100]
                data = sheet.png(drawn[at.variant][at.prompt][at.seed], recipe)
                archive.writestr(f"pictures/{slug(name)}-seed-{found.seeds[at.seed]}.png", data)

    return as_sheet, _once(place / "pictures.zip", write)


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
