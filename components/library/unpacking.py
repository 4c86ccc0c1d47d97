"""Zips that visitors upload: only what is wanted is written, under names of our own, within limits."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZipFile, ZipInfo

from lego import AdapterError

MOST_BYTES = 500 * 10**6
"""All wanted files of one zip together, unpacked."""
MOST_ENTRIES = 2000
"""Entries of one zip, wanted or not."""
CHUNK = 2**20
AGAIN = "Pack it again without links, with nothing but what is needed."
# Damaged (also in its compressed data, or cut off), compressed in a way that Python does not know, or encrypted.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack(file: Path, folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Write the wanted files of a zip below a folder: each folder of the zip's becomes one there, in one of its number.

    Args:
        file: the zip.
        folder: an empty one.
        wanted: says of a bare name whether it is.

    Returns:
        The files written, in the zip's order.

    Raises:
        AdapterError: when it is no readable zip, names places outside of it, holds links or one file twice, or too much.
    """
    with opened(file) as (archive, members):
        return _write(archive, [each for each in members if wanted(PurePosixPath(each.filename).name)], folder)


@contextmanager
def opened(file: Path) -> Iterator[tuple[ZipFile, list[ZipInfo]]]:
    """A zip and its files, once nothing about their names and kinds is wrong.

    Raises:
        AdapterError: as `unpack`.
    """
    try:
        with ZipFile(file) as archive:
            yield archive, checked(archive.infolist(), file.name)
    except UNREADABLE as error:
        raise AdapterError(f"is not a readable zip ({error})", file.name) from error


def checked(members: list[ZipInfo], where: str) -> list[ZipInfo]:
    """The files of a zip, once nothing about their names and kinds is wrong.

    Raises:
        AdapterError: when there is.
    """
    if len(members) > MOST_ENTRIES:
        raise AdapterError(f"holds {len(members)} entries, more than {MOST_ENTRIES}", where, AGAIN)
    for each in members:
        path = PurePosixPath(each.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in each.filename or "\0" in each.filename:
            raise AdapterError(f"names a place outside of it: {each.filename[:60]!r}", where, AGAIN)
        if stat.S_ISLNK(each.external_attr >> 16):
            raise AdapterError(f"holds a link: {each.filename[:60]!r}", where, AGAIN)
    return [each for each in members if not each.is_dir()]


def _write(archive: ZipFile, members: list[ZipInfo], folder: Path) -> list[Path]:
    where, left, written = Path(str(archive.filename)), MOST_BYTES, []
    places: dict[PurePosixPath, Path] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        called = path.parent.name or where.stem
        target = places.setdefault(path.parent, folder / f"{len(places)}" / called) / path.name
        if target.exists():
            raise AdapterError(f"{path.name} is there twice", where.name, AGAIN)
        target.parent.mkdir(parents=True, exist_ok=True)
        left -= copy(archive, member, target, left)
        written.append(target)
    return written


def copy(archive: ZipFile, member: ZipInfo, target: Path, most: int) -> int:
    """Write one file; counts what really comes, whatever the zip says of its size.

    Args:
        archive, member: what is written.
        target: the file.
        most: bytes that it may have.

    Raises:
        AdapterError: when it has more.
    """
    count = 0
    with archive.open(member) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK):
            count += len(chunk)
            if count > most:
                limit = f"{MOST_BYTES / 1e6:.0f} MB"
                raise AdapterError(f"holds more than {limit} of files", Path(str(archive.filename)).name, AGAIN)
            out.write(chunk)
    return count
