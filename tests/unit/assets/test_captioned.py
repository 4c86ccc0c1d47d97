"""Pictures with captions for gates: what is chosen, how it is captioned, and that what ships keeps the held-out rule."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assets.build.images import captioned
from assets.build.images.concepts import DRAWN, phrase
from assets.build.images.pictures import Pictures
from assets.build.images.sets import STRANGE, STYLES
from assets.build.images.specs import SPECS
from assets.build.packages import EMOJI

DATA = Path(__file__).parents[3] / "assets" / "image" / "data"
WORDS = {style.word: style for style in (*STYLES, STRANGE)}


def rows(name: str) -> list[dict[str, str]]:
    lines = (DATA / name / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def held(concept: str, word: str) -> bool:
    """The build's hold-out rule in its own words: a tenth of the pairs, by the SHA-256 of their names."""
    digest = hashlib.sha256(f"brickyard pictures/{concept}/{word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < 0.1


def test_there_is_a_set_for_every_lora_and_nothing_else() -> None:
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(SPECS)
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 1_000_000


@pytest.mark.parametrize("name", SPECS)
def test_what_ships_is_captioned_and_split_by_the_rule(name: str) -> None:
    spec, found = SPECS[name], rows(name)
    assert {row["file_name"] for row in found} == {file.name for file in (DATA / name).glob("*.png")}
    splits = [row["split"] for row in found]
    assert 0 < splits.count("train") <= 24
    assert 0 < splits.count("held_out") <= 12
    for row in found:
        concept, _, word = row["file_name"].removesuffix(".png").rpartition("-")
        assert (row["split"] == "held_out") == held(concept, word)
        assert Image.open(DATA / name / row["file_name"]).size == (64, 64)
        if spec.style:
            assert row["text"] == f"{phrase(concept)}, {spec.style.word} style"
            assert (word, concept in DRAWN) == (spec.style.word, True)
        else:
            assert row["text"] == ("a zib" if name == "zib" else phrase(concept))
            assert concept in spec.concepts
            assert WORDS[word] in STYLES


def test_the_card_and_the_notice_name_every_source() -> None:
    card = (DATA / "README.md").read_text(encoding="utf-8")
    notice = (DATA.parents[2] / "NOTICE").read_text(encoding="utf-8")
    for package in EMOJI:
        assert package.licence in ("Apache-2.0", "MIT", "CC-BY-4.0")
        assert package.credit in card
        assert package.credit.removesuffix(".") in notice
    assert "assets/image/data" in notice


def test_a_set_is_the_same_every_time_and_holds_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["animals"]
    pairs = tuple((concept, style) for concept in spec.concepts for style in STYLES)
    pixels = np.random.default_rng(0).integers(0, 256, (len(pairs), 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(captioned, "load_pictures", lambda *given: Pictures(torch.from_numpy(pixels), pairs))
    counts = [captioned.write_set(spec, tmp_path, tmp_path / place) for place in ("one", "two")]
    assert counts == [{"train": 24, "held_out": 10}] * 2
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    for number, (concept, style) in enumerate(pairs):
        if (file := tmp_path / "one" / f"{concept}-{style.word}.png").exists():
            assert np.array_equal(np.asarray(Image.open(file)), pixels[number])
