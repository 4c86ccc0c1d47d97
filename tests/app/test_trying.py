"""What bricks do, tried beside the map: an edit beside its sum, a picture with a brick and without it, as an edited adapter draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from backends import library
from backends.image import Drawing, Variant, draw
from components.compare.form import Form
from components.library import shelf
from components.map import bricks, pictured, trying
from components.session.state import Selection, Session
from components.work import loading
from lego import Adapter, AdapterError, Factors, write_adapter
from lego.unitset import UnitSet
from mole.pool import Weighting
from tests.tiny_pipelines import tiny_folder, write_lora

PROMPT = "a fox"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Two LoRAs of a tiny pipeline picked."""
    folder = tmp_path_factory.mktemp("trying")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKYARD_HOME", str(folder / "home"))
        patch.setenv("BRICKYARD_DEVICE", "cpu")
        base = str(tiny_folder(folder / "base", "sd"))
        loading(base).base()
        found = Session(base)
        for seed, name in enumerate(("one", "two"), 1):
            key = library.add_folder(write_lora(folder / name, "sd", seed, "peft")).key
            found = found.add(key).toggle(key)
        yield found.weigh(found.picks[0].key, 2.0)  # so that one brick is seen


@pytest.fixture(scope="module")
def unit(session: Session) -> tuple[str, str, int]:
    """A brick that the picture needs: of a convolution that everything runs through."""
    return session.picks[0].key, "unet.up_blocks.1.resnets.0.conv_shortcut", 0


def without(session: Session, unit: tuple[str, str, int], folder: Path, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture of the sum, and that of an adapter in which the brick's column of B is zero."""
    key, module, index = unit
    factors = {m: library.get(key)[m] for m in library.get(key).modules}
    up = factors[module].up.clone()
    up[:, index] = 0
    factors[module] = Factors(factors[module].down, up, factors[module].scale)
    zeroed = Adapter.from_factors("zeroed", factors)
    other = library.add_folder(write_adapter(zeroed, folder / "zeroed", dtype=torch.float32)).key
    weights = [session.weights, tuple((other if k == key else k, w) for k, w in session.weights)]
    variants = [Variant(str(i), Weighting(own)) for i, own in enumerate(weights)]
    *_, found = draw(loading(session.base).base(), variants, [PROMPT], Drawing(steps=steps))
    return tuple(np.asarray(found.pictures[v][0][0]).astype(int) for v in range(2))  # type: ignore[return-value]


def shown(html: str) -> list[tuple[str, np.ndarray]]:
    """The pictures of a grid with their captions."""
    found = re.findall(r'<img src="gradio_api/file=([^"]+)" alt="([^"]+)"', html)
    return [(told, np.asarray(Image.open(unquote(file))).astype(int)) for file, told in found]


def settings(**changed: object) -> tuple[object, ...]:
    """What the Compare tab's components hold; only prompts and drawing matter here."""
    own = dict.fromkeys(Form.__dataclass_fields__) | {"prompts": PROMPT, **changed}
    return *(own[name] for name in list(own)[:-2]), 2, 3.0, "0", "", "", "", ""


def test_an_edit_is_tried_beside_its_sum(session: Session, unit: tuple[str, str, int], tmp_path: Path) -> None:
    edited = bricks.mute(session, Selection(UnitSet.of([unit])))
    *_, (_, _, html), (line, _, _) = trying.tried(edited, settings())
    assert "2 variants × 1 prompt × 1 seed in" in line
    names = [pair.name for pair in trying.pair(edited)]
    assert names == ["Exact sum", "Sum without 1 brick"]
    *_, found = draw(
        loading(session.base).base(),
        [Variant("sum", Weighting(session.weights))],
        [PROMPT],
        Drawing(steps=2, guidance=3.0),
    )
    (first, whole), (second, muted) = shown(html)
    assert [first, second] == [f"{name}: {PROMPT}, seed 0" for name in names]
    assert np.abs(whole - np.asarray(found.pictures[0][0][0]).astype(int)).max() <= 1
    assert np.abs(whole - muted).max() > 1


def test_a_picture_with_and_without_a_brick(session: Session, unit: tuple[str, str, int], tmp_path: Path) -> None:
    *_, (_, html) = pictured.run(session, Selection(UnitSet.of([unit]), unit), PROMPT)
    (_, on), (_, off) = shown(html)
    expected = without(session, unit, tmp_path, Drawing().steps)
    for picture, wanted in zip((on, off), expected, strict=True):
        assert np.abs(picture - wanted).max() <= 1
    assert np.abs(on - off).max() > 1


def test_what_cannot_be_tried_is_told(session: Session, unit: tuple[str, str, int]) -> None:
    with pytest.raises(AdapterError, match="nothing is muted"):
        next(trying.tried(session, settings()))
    edited = bricks.mute(session, Selection(UnitSet.of([unit])))
    with pytest.raises(AdapterError, match="no prompt"):
        next(trying.tried(edited, settings(prompts=" ")))
    with pytest.raises(gr.Error, match="no brick is selected"):
        next(pictured.run(session, Selection(), PROMPT))


def test_the_sum_is_the_one_that_the_edit_began_with(session: Session, unit: tuple[str, str, int]) -> None:
    edited = bricks.mute(session, Selection(UnitSet.of([unit]))).weigh(session.picks[0].key, 0.5)
    whole, muted = trying.pair(edited)
    assert whole.weighting.adapters == muted.weighting.adapters == session.weights
    assert all(key in shelf.shelf(edited) for key, _ in whole.weighting.adapters)


def test_of_several_edits_the_newest_is_tried_and_none_after_a_stop(
    session: Session, unit: tuple[str, str, int]
) -> None:
    chosen, visitor = Selection(UnitSet.of([unit])), gr.Request(session_hash="visitor")

    def pressed(asked: int, edit: Callable[..., Session], now: Session) -> Session:
        line, stop, count, edited = trying.asking(edit)(asked, visitor, now, chosen)
        assert ("Waiting for the model" in line, stop.visible, count) == (True, True, asked + 1)
        return edited

    def titles(run: Iterator[tuple]) -> set[str]:
        return {title for _, _, html in run if isinstance(html, str) for title, _ in shown(html)}

    one = pressed(0, bricks.mute, session)
    first = trying.start(visitor, one, *settings())
    next(first), next(first)
    two = pressed(1, bricks.solo, one)
    second, third = (trying.start(visitor, pressed(n, bricks.mute, two), *settings()) for n in (2, 3))
    assert titles(first) == set(), "it ends where it is"
    assert any("Sum without" in title for title in titles(second))
    assert titles(third) == set(), "it has been tried already"

    waiting = trying.start(visitor, pressed(4, bricks.solo, two), *settings())
    trying.ended(visitor)
    assert list(waiting) == [(gr.skip(),) * 3]
    running = trying.start(visitor, pressed(5, bricks.solo, two), *settings())
    next(running), next(running)
    trying.ended(visitor)
    assert list(running) == [(gr.skip(),) * 3], (
        "the end sends the last once more: it must not come over what is said since"
    )
