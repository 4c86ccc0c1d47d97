"""Adapters that visitors upload: checked first, then kept in the cache folder under the hash of what they hold."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from backends import library
from backends.bases import home
from backends.library import Entry
from lego import AdapterError, read_adapter

NEEDED = ("adapter_model.safetensors", "adapter_config.json")
ACCEPTED = {*NEEDED, "README.md"}


def receive(files: Sequence[str]) -> Entry:
    """Add an adapter from uploaded files, told apart by their names.

    Raises:
        AdapterError: when a file is missing, or the adapter cannot be used.
    """
    found = {Path(file).name: Path(file) for file in files if Path(file).name in ACCEPTED}
    missing = [name for name in NEEDED if name not in found]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise AdapterError(f"{' and '.join(missing)} {are} missing", None, "Upload both files of the adapter.")
    root = home() / "uploads"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=root) as scratch:
        folder = Path(scratch) / "uploaded"
        folder.mkdir()
        for name, file in found.items():
            shutil.copyfile(file, folder / name)
        key = read_adapter(folder).fingerprint[:12]
        place = root / key / "uploaded"
        place.parent.mkdir(exist_ok=True)
        if not place.is_dir():
            os.rename(folder, place)
    return library.add_folder(place)
