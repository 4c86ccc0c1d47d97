"""Pictures for download: the sheet holds every picture where its caption says, and PNGs carry their recipe and nothing else."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.compare import sheet
from lego import AdapterError


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    """The chunks of a PNG file, read as its specification says."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        found.append((kind.decode(), body))
        at += 12 + length
    return found


def test_a_png_carries_its_recipe_as_text_and_keeps_its_pixels() -> None:
    recipe = {"prompts": ["a fox, näïve ☃"], "n": [1, 2.5]}
    data = sheet.png(noise(1), recipe)
    texts = [body for kind, body in chunks(data) if kind == "tEXt"]
    assert [body.split(b"\0", 1)[0] for body in texts] == [b"brickyard"]
    assert json.loads(texts[0].split(b"\0", 1)[1].decode("latin-1")) == recipe
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(noise(1)))


def test_without_a_recipe_there_is_no_metadata() -> None:
    assert {kind for kind, _ in chunks(sheet.png(noise(1)))} == {"IHDR", "IDAT", "IEND"}


def test_a_recipe_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(sheet.png(noise(1), {"a": "ü"}))
    assert sheet.recipe_in(file) == {"a": "ü"}


def with_text(text: bytes) -> bytes:
    """A PNG file with a chunk of its own making."""
    data, body = sheet.png(noise(1)), b"brickyard\0" + text
    return (
        data[:33]
        + struct.pack(">I", len(body))
        + b"tEXt"
        + body
        + struct.pack(">I", zlib.crc32(b"tEXt" + body))
        + data[33:]
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GIF89a not a picture", "is not a PNG picture"),
        (b"", "is not a PNG picture"),
        (sheet.png(noise(1))[:20], "is not a PNG picture"),
        (sheet.png(noise(1)), "carries no recipe"),
        (with_text(b"{not json"), "not JSON"),
        (with_text(b"[" * 100_000), "not JSON"),
        (with_text(b" " * 9_000_000), "is not a PNG picture|not JSON"),
    ],
)
def test_what_is_no_such_picture_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "dropped.png"
    file.write_bytes(data)
    with pytest.raises(AdapterError, match=f"dropped.png: .*({message})"):
        sheet.recipe_in(file)


def test_every_picture_stands_on_the_sheet_in_its_place() -> None:
    colours = [[[(40 * v, 80 * p, 120 * s) for s in range(2)] for p in range(3)] for v in range(4)]
    pictures = [[[plain(c) for c in seeds] for seeds in prompts] for prompts in colours]
    made = np.asarray(sheet.contact_sheet(pictures, ["one", "two", "three", "four"], ["a", "b", "c"], [5, 6]))
    cell = 2 * 64  # enlarged to be seen
    for v in range(4):
        for p in range(3):
            for s in range(2):
                mask = (made == colours[v][p][s]).all(-1)
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert mask.sum() >= cell * cell
                block = mask[:, columns[0] :]
                assert block.sum(1).max() >= cell
                centre = 24 + v * (cell + 10) + cell // 2
                assert mask[rows, centre].sum() >= cell
    assert made.shape[1] == 2 * 24 + 4 * (cell + 10) - 10


def test_large_pictures_keep_their_size_and_their_pixels() -> None:
    picture = noise(3, 256)
    made = np.asarray(
        sheet.contact_sheet([[[picture]]], ["a name that is far too long for one line of its column"], ["p" * 500], [0])
    )
    found = [y for y in range(made.shape[0] - 255) if np.array_equal(made[y : y + 256, 24:280], np.asarray(picture))]
    assert len(found) == 1
