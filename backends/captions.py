"""Pictures with captions: those that ship, and people's folders, laid out as the `datasets` library reads them (imagefolder).

A folder holds pictures and ``metadata.jsonl``, one JSON object a line: ``{"file_name": "0001.png", "text": "a red apple"}``, with a
``split`` perhaps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from backends.rows import read_rows
from lego.errors import AdapterError

ASSETS = Path(__file__).parents[1] / "assets" / "image" / "data"
METADATA = "metadata.jsonl"
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 50_000_000
"""Of one picture; a small file may unfold to gigabytes."""


@dataclass(frozen=True)
class Captioned:
    """A caption and the picture it describes; None where only captions were asked for."""

    text: str
    picture: Path | None


def sets() -> list[str]:
    """The names of those that ship."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{METADATA}"))


def captions_folder(name: str, folder: Path) -> Path:
    """The folder of a set.

    Args:
        name: of one that ships, or a path, of the folder or of its metadata.jsonl.
        folder: what a relative path is relative to.

    Raises:
        AdapterError: when there is neither.
    """
    given = folder / Path(name).expanduser()
    for place in (given, given.parent, ASSETS / name):
        if (place / METADATA).is_file() and (place != given.parent or given.name == METADATA):
            return place.resolve()
    what = f"is neither a folder with {METADATA} nor a set that ships"
    raise AdapterError(what, name, f"Shipped: {', '.join(sets()) or 'none'}.")


def read_captions(
    folder: Path, split: str | None = None, without: str | None = None, pictures: bool = True
) -> tuple[list[Captioned], str]:
    """A set's captions with their pictures, and a hash of both.

    Args:
        folder: from `captions_folder`.
        split, without: as `backends.rows.read_rows` takes them.
        pictures: whether pictures are needed too.

    Raises:
        AdapterError: when a line is malformed or its caption empty, a picture is missing or outside the folder, or nothing is left.
    """
    keys = ("file_name", "text") if pictures else ("text",)
    rows = read_rows(folder / METADATA, split, without, keys)
    digest, found = hashlib.sha256(rows.sha256.encode()), []
    for row in rows.rows:
        if not row["text"].strip():
            what = f"gives {row['file_name']} an empty caption" if pictures else "holds an empty caption"
            raise AdapterError(what, folder / METADATA, "Write what there is to see.")
        picture = None
        if pictures:
            picture = (folder / row["file_name"]).resolve()
            if not picture.is_relative_to(folder) or not picture.is_file():
                raise AdapterError("is not in the folder", folder / row["file_name"], f"{METADATA} names it.")
            digest.update(hashlib.sha256(picture.read_bytes()).digest())
        found.append(Captioned(row["text"], picture))
    return found, digest.hexdigest()


def open_picture(path: Path, size: tuple[int, int]) -> Image.Image:
    """A picture on white, cropped to the middle and scaled to a size.

    Raises:
        AdapterError: when it is none, or too large.
    """
    from PIL import ImageOps

    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                what = f"has {opened.width} × {opened.height} pixels, which is too many"
                raise AdapterError(what, path, f"A picture may have {MOST_PIXELS / 1e6:.0f} million.")
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise AdapterError("is not a picture that can be read", path, "Use PNG, JPEG or WebP.") from error
    white = Image.new("RGBA", picture.size, "white")
    return ImageOps.fit(Image.alpha_composite(white, picture).convert("RGB"), size, Image.Resampling.LANCZOS)
