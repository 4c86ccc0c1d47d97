"""What the command line needs from outside this package: the hub and base models, found by name when they are asked for.

Imports run one way, so nothing here imports `backends`; it lies beside this package in the app and may be missing elsewhere.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from typing import Any

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.merge import Progress


def outside(name: str, purpose: str) -> Any:
    """An object of another package by its name, ``package.module:object``.

    Raises:
        AdapterError: when the package, or one that it needs, is not installed.
    """
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        fix = "Run it where brickyard is installed with its requirements, from the repository's folder for instance."
        raise AdapterError(f"{purpose} needs {error.name}, which is not here", None, fix) from error


def fetch(hub_id: str, revision: str | None) -> Adapter:
    """An adapter of the hub, downloaded; see `backends.opener.fetch`."""
    found: Adapter = outside("backends.opener:fetch", "taking an adapter from the hub")(hub_id, revision)
    return found


def add_rows_options(command: argparse.ArgumentParser) -> None:
    """Which of the rows count, and who answers them: for every command that scores."""
    command.add_argument("--split", help="only the rows of this split")
    command.add_argument("--base", metavar="ID", help="the base that answers the rows (default: the built-in)")


def load_rows(path: str, split: str | None) -> Any:
    """Rows with known answers; see `backends.rows.read_rows`."""
    from pathlib import Path

    return outside("backends.rows:read_rows", "scoring a merge")(Path(path), split)


def load_base(id: str | None) -> Any:
    """A base model, the built-in unless an id is given; see `backends.bases.load_base`."""
    purpose = "scoring a merge"
    return outside("backends.bases:load_base", purpose)(id or outside("backends.bases:BUILTIN", purpose))


def terminal_progress(what: str) -> Progress | None:
    """One line on the terminal that counts; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r\x1b[K" if done == total else ""
        print(f"\r{what} {done}/{total}{end}", end="", file=sys.stderr, flush=True)

    return show
