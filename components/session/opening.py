"""Recipes on their way in and out: in an address, in YAML, in every file that the page gives out. What comes in is not trusted."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from pathlib import Path
from typing import Any

from components.compare import sheet
from components.session.remembered import Remembered
from lego import AdapterError
from lego.recipe import MOST, load

LONGEST = 8000
"""Characters of an address: browsers and messengers take that many."""
PLACE = "brickyard-recipe"
"""Id of the element of an exported page that holds the recipe."""
EMBEDDED = re.compile(rf'<script type="application/json" id="{PLACE}">(.*?)</script>', re.DOTALL)
MOST_BYTES = 8 * MOST
"""Of a text file that is dropped: exports hold texts and pictures beside the recipe."""
RESTORABLE = "Drop a picture, a page, a JSON or a YAML file that was downloaded here."


def to_link(recipe: Remembered) -> str:
    """The recipe as a piece of an address: JSON, compressed, in base64 for addresses; empty where it would be too long."""
    text = json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), separators=(",", ":"))
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    return packed if len(packed) <= LONGEST else ""


def from_link(text: str) -> Remembered:
    """The recipe of an address.

    Raises:
        AdapterError: when it is none; nothing endless is unpacked.
    """
    where = "this address"
    if len(text) > LONGEST:
        raise AdapterError("is too long to be one of this page", where)
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MOST)
        document = json.loads(data) if unpacker.eof else None
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise AdapterError("carries no session", where, "Copy the whole address.") from error
    if document is None:
        raise AdapterError("is cut off, or unpacks to too much", where, "Copy the whole address.")
    return Remembered.check(document, where)


def embedded(recipe: Remembered) -> str:
    """The recipe as an element of a page."""
    text = json.dumps(recipe.model_dump(mode="json", exclude_none=True)).replace("<", "\\u003c")
    return f'<script type="application/json" id="{PLACE}">{text}</script>'


def recipe_in(file: Path) -> Remembered:
    """The recipe in a file that was dropped: a PNG, an exported page or JSON, or YAML.

    Raises:
        AdapterError: when it carries none.
    """
    with file.open("rb") as opened:
        start = opened.read(8)
    if start.startswith(b"\x89PNG") or file.suffix.lower() == ".png":
        return Remembered.check(sheet.recipe_in(file), file.name)
    return Remembered.check(_document(file), file.name)


def _document(file: Path) -> Any:
    if file.stat().st_size > MOST_BYTES:
        raise AdapterError("is larger than any recipe", file.name, RESTORABLE)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AdapterError("carries no recipe", file.name, RESTORABLE) from error
    try:
        if found := EMBEDDED.search(text):
            return json.loads(found[1])
        if text.lstrip().startswith("{"):
            document = json.loads(text)
            return document.get("recipe", document)
    except (ValueError, RecursionError) as error:
        raise AdapterError("is not readable JSON", file.name, RESTORABLE) from error
    if "<html" in text[:1000].lower():
        raise AdapterError("carries no recipe", file.name, RESTORABLE)
    return load(text, file.name)
