"""Pictures with captions that visitors bring along: checked first, then kept in the cache folder under the hash of what they hold."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from backends.bases import home
from backends.captions import METADATA, open_picture, read_captions
from backends.rows import ALL
from components.library import unpacking
from components.library.uploads import stem
from components.session.leaving import hold
from lego import AdapterError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PICTURES, PICTURE_BYTES = 1000, 20 * 2**20
LINE = '{"file_name": "a.png", "text": "what there is to see"}'
ONE = "Upload one set: a zip, or its pictures with their metadata.jsonl."


def receive_pictures(files: Sequence[str], pictures: bool = True) -> Path:
    """Keep uploaded pictures with captions: single files, or the zip of a folder as the `datasets` library reads it.

    Args:
        files: pictures and metadata.jsonl, or one zip.
        pictures: whether they are needed; else captions alone will do.

    Raises:
        AdapterError: when captions or pictures are missing, empty, unreadable or too many; with the first file or line.
    """
    given = [Path(file) for file in files]
    with _receiving(stem(files) or "pictures") as folder:
        if any(file.suffix == ".zip" for file in given):
            if len(given) > 1:
                raise AdapterError(f"{len(given)} files were uploaded, a zip among them", None, ONE)
            _unpack(given[0], folder)
        for file in given:
            if file.name == METADATA or file.suffix.lower() in SUFFIXES:
                _check_size(file.name, file.stat().st_size)
                if (folder / file.name).exists():
                    raise AdapterError("is there twice", file.name, ONE)
                shutil.copyfile(file, folder / file.name)
        return _keep(folder, pictures)


def receive_captions(captions: Sequence[str], pictures: Sequence[bytes] = ()) -> Path:
    """Keep captions, and where they are given the pictures that belong to them.

    Raises:
        AdapterError: as `receive_pictures`.
    """
    with _receiving("captions") as folder:
        names = [f"{number:04d}" for number in range(1, len(captions) + 1)]
        for name, picture in zip(names, pictures, strict=False):
            _check_size(name, len(picture))
            (folder / name).write_bytes(picture)
        rows = [{"file_name": name, "text": text} for name, text in zip(names, captions, strict=True)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / METADATA).write_text(lines, encoding="utf-8")
        return _keep(folder, bool(pictures))


@contextmanager
def _receiving(name: str) -> Iterator[Path]:
    """An empty folder beside the kept ones, gone in the end; messages do not name its place on the server."""
    root = home() / "captions"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=root) as scratch:
        folder = (Path(scratch) / name).resolve()
        folder.mkdir()
        try:
            yield folder
        except AdapterError as error:
            where = str(error.where or "").replace(f"{folder}{os.sep}", "").replace(str(folder), METADATA)
            raise AdapterError(error.what, where or None, error.fix) from error


def _keep(folder: Path, pictures: bool) -> Path:
    """Check a set and move it to its place."""
    if not (folder / METADATA).is_file():
        fix = f"Add it: one line for each picture, such as {LINE}."
        raise AdapterError(f"there is no {METADATA} with the captions", None, fix)
    found, digest = read_captions(folder, ALL, pictures=pictures)
    if len(found) > MOST_PICTURES:
        raise AdapterError(f"{len(found)} captions are too many", None, f"A set may hold {MOST_PICTURES}.")
    named = {sample.picture for sample in found}
    for file in sorted(folder.rglob("*")):
        if pictures and file.is_file() and file.name != METADATA and file not in named:
            raise AdapterError("has no caption", file, f"{METADATA} does not name it; add a line such as {LINE}.")
    place = folder.parents[1] / digest[:16] / folder.name

    def write(kept: Path) -> None:
        for picture in filter(None, named):
            open_picture(picture, (8, 8))
        kept.mkdir(exist_ok=True)
        os.rename(folder, place)

    return next(iter(sorted(hold(place.parent, write).iterdir())))


def _unpack(file: Path, folder: Path) -> None:
    """A set's captions and pictures out of a zip, from wherever in it the set lies; nothing outside it is read.

    Raises:
        AdapterError: when it is no zip, or does not hold one set.
    """
    with unpacking.opened(file) as (archive, members):
        tops = [PurePosixPath(m.filename).parent for m in members if PurePosixPath(m.filename).name == METADATA]
        if len(tops) > 1:
            raise AdapterError(f"holds {len(tops)} files {METADATA}", file.name, ONE)
        top, left = tops[0] if tops else PurePosixPath(), unpacking.MOST_BYTES
        for member in members:
            path = PurePosixPath(member.filename)
            known = path.name == METADATA or path.suffix.lower() in SUFFIXES
            if not known or "__MACOSX" in path.parts or not path.is_relative_to(top):
                continue
            target = folder / path.relative_to(top)
            _check_size(path.name, member.file_size)
            target.parent.mkdir(parents=True, exist_ok=True)
            left -= unpacking.copy(archive, member, target, left)


def _check_size(name: str, size: int) -> None:
    if size > PICTURE_BYTES:
        raise AdapterError(f"is {size / 1e6:.0f} MB large", name, f"A file may have {PICTURE_BYTES / 1e6:.0f} MB.")
