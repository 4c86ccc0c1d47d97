"""Folders of pictures with captions: what is read, how a picture becomes pixels, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backends.captions import captions_folder, open_picture, read_captions
from lego import AdapterError


def write(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write(
        tmp_path / "set", [{"file_name": f"{n}.png", "text": f"thing {n}", "split": "train"} for n in range(3)]
    )
    with (made / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "3.png", "text": "thing 3", "split": "held_out"}) + "\n")
    for n in range(4):
        Image.new("RGB", (8, 8), (60 * n, 0, 0)).save(made / f"{n}.png")
    return made


def test_a_set_is_found_by_its_folder_and_by_its_file(folder: Path) -> None:
    assert captions_folder(str(folder), Path()) == folder
    assert captions_folder("set", folder.parent) == folder
    assert captions_folder("set/metadata.jsonl", folder.parent) == folder
    with pytest.raises(AdapterError, match=r"^nowhere: is neither a folder with metadata.jsonl nor a set that ships"):
        captions_folder("nowhere", folder.parent)
    with pytest.raises(AdapterError, match="is neither a folder"):
        captions_folder("set/0.png", folder.parent)


def test_captions_come_with_their_pictures_and_held_out_ones_stay_away(folder: Path) -> None:
    found, _ = read_captions(folder, without="held_out")
    assert [(sample.text, sample.picture) for sample in found] == [
        (f"thing {n}", folder / f"{n}.png") for n in range(3)
    ]
    held, _ = read_captions(folder, split="held_out", pictures=False)
    assert [(sample.text, sample.picture) for sample in held] == [("thing 3", None)]


def test_the_hash_sees_captions_and_pixels(folder: Path) -> None:
    first = read_captions(folder, "all")[1]
    assert read_captions(folder, "all")[1] == first
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "1.png")
    second = read_captions(folder, "all")[1]
    write(folder, [{"file_name": "1.png", "text": "another"}])
    assert len({first, second, read_captions(folder, "all")[1]}) == 3


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"file_name": "0.png", "text": " "}, "gives 0.png an empty caption. Write what there is to see"),
        ({"text": "a"}, r'line 1: is not a row: it takes \{"file_name": "…", "text": "…"\}'),
        ({"file_name": "gone.png", "text": "a"}, "gone.png: is not in the folder"),
        ({"file_name": "../outside.png", "text": "a"}, "outside.png: is not in the folder"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path: Path, row: dict[str, str], what: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    with pytest.raises(AdapterError, match=what):
        read_captions(write(tmp_path / "set", [row]))


def test_a_picture_is_cropped_to_its_middle_and_laid_on_white(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 4), np.uint8)
    wide[:, 8:16] = (255, 0, 0, 255)  # the middle is red, the rest transparent black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(np.asarray(open_picture(tmp_path / "wide.png", (8, 8))), np.tile([255, 0, 0], (8, 8, 1)))
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (np.asarray(open_picture(tmp_path / "clear.png", (8, 8))) == 255).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(AdapterError, match=r"x.png: is not a picture that can be read\. Use PNG, JPEG or WebP"):
        open_picture(tmp_path / "x.png", (8, 8))
