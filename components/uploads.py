"""Adapters that visitors upload: checked first, then kept in the cache folder under the hash of what they hold."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from backends import library
from backends.bases import home
from backends.library import Entry
from lego import AdapterError, read_adapter
from lego.formats import peft


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
