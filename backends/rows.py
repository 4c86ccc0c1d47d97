"""Rows with known answers: the tasks that ship, and people's JSONL files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lego.errors import AdapterError

ASSETS = Path(__file__).parents[1] / "assets" / "text" / "tasks"
HELD_OUT, ALL = "held_out", "all"


def tasks() -> dict[str, list[dict[str, str]]]:
    """The rows of every task that ships: ``prompt``, ``answer`` and ``split`` (``train``, ``tune`` or ``held_out``), by task name."""
    return {path.stem: lines_of(path, path.stat().st_mtime_ns) for path in sorted(ASSETS.glob("*.jsonl"))}


@lru_cache(maxsize=64)
def lines_of(path: Path, changed: int) -> list[dict[str, str]]:
    """The rows of a file, one JSON object a line; read again when it has changed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass(frozen=True)
class Rows:
    """Rows of a file.

    Attributes:
        rows: as they stand in the file.
        sha256: of the file they came from.
        split: which of its splits they are, where it has several.
    """

    rows: tuple[dict[str, str], ...]
    sha256: str
    split: str | None = None


def read_rows(
    path: Path, split: str | None = None, without: str | None = None, keys: Sequence[str] = ("prompt", "answer")
) -> Rows:
    """Rows from a file, one JSON object a line.

    Args:
        path: of the file.
        split: take only the rows whose ``split`` is this; `ALL` takes every row.
        without: leave out the rows whose ``split`` is this.
        keys: what every row has, as texts.

    Raises:
        AdapterError: when a line is not such a row, none is left, or rows of several splits would be mixed.
    """
    try:
        data = path.read_bytes()
        lines = data.decode().splitlines()
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise AdapterError("is not text in UTF-8", path) from error
    rows = [row_of(line, f"{path}, line {number}", keys) for number, line in enumerate(lines, 1) if line.strip()]
    rows = [row for row in rows if without is None or row.get("split") != without]
    splits = list(dict.fromkeys(row.get("split", "") for row in rows))
    if split is None and len(splits) > 1:
        names = ", ".join(name or "none" for name in splits)
        raise AdapterError(
            f"holds rows of several splits ({names})", path, "Give the rows of one split (--split on the command line)."
        )
    kept = tuple(row for row in rows if split in (None, ALL, row.get("split")))
    if not kept:
        of = f" of the split {split!r}" if split else f" but those of the split {without!r}" if without else ""
        raise AdapterError(f"holds no rows{of}", path)
    return Rows(kept, hashlib.sha256(data).hexdigest(), split)


def row_of(line: str, where: str, keys: Sequence[str]) -> dict[str, str]:
    """One row.

    Raises:
        AdapterError: when it is none.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AdapterError(f"is not JSON ({error})", where) from error
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in keys):
        wanted = ", ".join(f'"{name}": "…"' for name in keys)
        raise AdapterError(f"is not a row: it takes {{{wanted}}}", where)
    return row


def rows_file(name: str, folder: Path) -> Path:
    """The file of rows.

    Args:
        name: of a built-in task, or a path.
        folder: what a relative path is relative to.

    Raises:
        AdapterError: when there is neither.
    """
    builtin, path = ASSETS / f"{name}.jsonl", folder / Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if not builtin.is_file():
        names = ", ".join(sorted(file.stem for file in ASSETS.glob("*.jsonl")))
        raise AdapterError("is neither a file nor a built-in task", name, f"Built in: {names}.")
    return builtin
