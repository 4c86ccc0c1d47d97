"""The grid of pictures, the settings of a drawing, and a comparison that comes back from its recipe."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backends.image import Drawing, Sheet
from components.compare import drawing, gallery, pictures
from components.compare.gallery import Gallery, Score
from components.session.state import Column
from lego import AdapterError
from mole.live import Weighting


def columns(*names: str) -> list[Column]:
    return [
        Column(f"lora:{name}" if i else "base", name, Weighting(((name, 1.0),)), (i,)) for i, name in enumerate(names)
    ]


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def begun(*names: str, prompts: tuple[str, ...] = ("a fox",), seeds: tuple[int, ...] = (0,)) -> Gallery:
    return gallery.begin("base", columns(*names), list(prompts), seeds, {"steps": 2})


def cells(html: str) -> list[str]:
    return re.findall(r"<figure.*?</figure>", html)


def test_every_cell_says_variant_prompt_and_seed() -> None:
    found = begun("Base", "one", "two", prompts=("a fox", "a house"), seeds=(3, 7))
    drawn = cells(pictures.draw(found))
    assert len(drawn) == 12
    expected = [(n, p, s) for p in ("a fox", "a house") for s in (3, 7) for n in ("Base", "one", "two")]
    for cell, (name, prompt, seed) in zip(drawn, expected, strict=True):
        caption = re.search(r"<figcaption>(.*)</figcaption>", cell)[1]
        assert name in caption
        assert prompt in caption
        assert f"seed {seed}<" in caption


def test_what_people_write_is_escaped() -> None:
    found = begun('<b>"name"</b>', prompts=("<script>alert(1)</script>",))
    drawn = pictures.draw(replace(found, shots=((("/x/<i>.png",),),)))
    assert "<script>" not in drawn
    assert '<b>"name' not in drawn
    assert "/x/<i>" not in drawn


def test_previews_are_small_and_show_the_picture() -> None:
    shown = pictures.preview(noise(1, 512))
    kind, _, data = shown.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/webp"
    assert picture.size == (160, 160)
    assert len(data) < 20_000


def sheet_of(found: Gallery, finished: bool) -> Sheet:
    table = tuple(
        tuple(tuple(noise(100 * v + 10 * p + s) for s in range(len(found.seeds))) for p in range(len(found.prompts)))
        for v in range(len(found.names))
    )
    return Sheet(table, 2, 2, finished, 1.0, not finished)


def test_finished_pictures_are_files_under_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path))
    found = begun("Base", "one", seeds=(0, 1))
    underway = drawing.filled(found, sheet_of(found, finished=False))
    assert not underway.files
    assert all(shot.startswith("data:") for rows in underway.shots for row in rows for shot in row)
    done = drawing.filled(found, sheet_of(found, finished=True))
    for at in done.places():
        file = Path(done.files[at.variant][at.prompt][at.seed])
        assert tmp_path in file.parents
        assert re.fullmatch(r"[0-9a-f]{64}\.png", file.name)
        assert np.array_equal(
            np.asarray(Image.open(file)), np.asarray(noise(100 * at.variant + 10 * at.prompt + at.seed))
        )
        assert pictures.address(str(file)) in pictures.draw(done)


def test_scores_stand_under_their_pictures() -> None:
    found = replace(begun("Base", "one"), shots=((("a",),), (("b",),)))
    base, one = cells(pictures.draw(found.judged((((Score(0.256, ((1, 0.5),)),),), ((Score(0.75),),)))))
    assert "0.26" in base
    assert "Image alignment with one" in base
    assert "0.75" in one
    assert "Image alignment" not in one


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", (0,)), (" 3, 1,3 ", (3, 1)), ("0-3", (0, 1, 2, 3)), ("5;7 9", (5, 7, 9)), ("0-15", tuple(range(16)))],
)
def test_seeds_are_numbers_or_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert drawing.read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no seed"),
        ("one", "is no seed"),
        ("-1", "is no seed"),
        ("3-1", "is no seed"),
        ("0-16", "too many"),
        ("0-9999999999", "too many"),
    ],
)
def test_seeds_have_limits(text: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        drawing.read_seeds(text)


USUAL = (20, 5.0, "0", "", "", "")


def test_settings_are_read_and_shown_alike() -> None:
    for chosen in (Drawing(guidance=5.0), Drawing(7, 2.5, (1, 2), "ddim", "blurry", (64, 128))):
        assert drawing.read(*drawing.shown(chosen)) == chosen


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, None, "steps must be a number"),
        (0, 2.5, "whole number"),
        (0, 151, "from 1 to 150"),
        (1, 21, "guidance must be"),
        (1, float("nan"), "guidance must be"),
        (3, "magic", "no scheduler 'magic'"),
        (5, "512", "is no size"),
        (5, "512 x 9999", "height must be"),
    ],
)
def test_settings_have_limits(place: int, value: object, message: str) -> None:
    given = [*USUAL[:place], value, *USUAL[place + 1 :]]
    with pytest.raises(AdapterError, match=message):
        drawing.read(*given)


def test_too_many_pictures_are_refused() -> None:
    drawing.check_count(6, 4, 4)
    with pytest.raises(AdapterError, match="One run takes 96"):
        drawing.check_count(6, 4, 5)
