"""A picture carries its comparison: dropped, it brings the same session back and draws the same pixels, or says what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backends import library
from backends.image import Drawing
from components.compare import export, plan, running, sheet
from components.compare.gallery import Gallery
from components.kinds import IMAGE, of_adapter, of_base, turned
from components.library import shelf
from components.merge import making
from components.session import restore
from components.session.remembered import Remembered, of_gallery
from components.session.state import Edited, Made, Session, columns
from components.work import loading
from lego import AdapterError
from lego.unitset import UnitSet
from tests.tiny_pipelines import tiny_folder, write_lora

PROMPTS, WANTED = ["a fox", "an owl"], Drawing(steps=2, guidance=3.0, seeds=(4, 9))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own."""
    folder = tmp_path_factory.mktemp("restore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKYARD_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def session(home: Path) -> Session:
    """Two LoRAs of a tiny pipeline picked, their sum, a merge, and the sum without a unit."""
    base = str(tiny_folder(home / "tiny-base", "sd"))
    loading(base).base()
    keys = [
        library.add_folder(write_lora(home / name, "sd", i, "peft")).key for i, name in enumerate(("one", "two"), 1)
    ]
    found = Session(base).toggle(keys[0]).toggle(keys[1]).weigh(keys[1], 0.5)
    for key in keys:
        found = found.add(key)
    merged = making.make(found.weights, "lego", {}, 0, "my merge")
    module = next(iter(library.get(keys[0]).modules))
    one, other = UnitSet.of([(keys[0], module, 0)]), UnitSet.of([(keys[1], module, 1)])
    found = found.edit(Edited("quiet", found.weights, one, ((other, 2.5),)))
    return found.join(Made(merged.key, "my merge", (0, 1)))


@pytest.fixture(scope="module")
def drawn(session: Session) -> Gallery:
    """Their comparison, all variants but the average."""
    chosen = [column for column in columns(session, shelf.shelf(session)) if column.id != "average"]
    *_, (_, found) = running.pictures(session.base, plan.side_by_side(chosen, PROMPTS, WANTED.seeds), WANTED, "")
    return found


def carried(file: Path) -> Remembered:
    return Remembered.check(sheet.recipe_in(file), file.name)


def pixels(found: Gallery) -> np.ndarray:
    return np.array([np.asarray(Image.open(found.files[at.variant][at.prompt][at.seed])) for at in found.places()])


def test_a_dropped_sheet_brings_the_same_pixels_back(session: Session, drawn: Gallery) -> None:
    wanted = carried(export.gallery_files(drawn, of_gallery(drawn, session.picks))[0])
    found = restore.restore(Session("another"), wanted, restore.base_of(wanted.base))
    assert found.notes == ()
    assert found.prompts == tuple(PROMPTS)
    assert found.drawing == WANTED
    assert found.session.picks == session.picks
    assert {column.name for column in columns(found.session, shelf.shelf(found.session))} >= set(drawn.names)
    again = [column for column in columns(found.session, shelf.shelf(found.session)) if column.id in found.chosen]
    assert [column.name for column in again] == list(drawn.names)
    *_, (_, redrawn) = running.pictures(
        session.base, plan.side_by_side(again, found.prompts, found.drawing.seeds), found.drawing, ""
    )
    assert np.array_equal(pixels(redrawn), pixels(drawn))
    assert len(np.unique(pixels(drawn)[: len(drawn.names)].reshape(len(drawn.names), -1), axis=0)) == len(drawn.names)


def test_no_folder_of_the_maker_is_told(session: Session, drawn: Gallery, home: Path) -> None:
    for file in export.gallery_files(drawn, of_gallery(drawn, session.picks)):
        if file.suffix == ".png":
            text = json.dumps(sheet.recipe_in(file))
            assert str(home) not in text
            assert drawn.prompts[0] in text


def test_without_the_tick_nothing_is_told(drawn: Gallery) -> None:
    with pytest.raises(AdapterError, match="carries no recipe"):
        sheet.recipe_in(export.gallery_files(drawn, None)[0])


def test_every_missing_file_is_named(session: Session, drawn: Gallery) -> None:
    wanted = carried(export.gallery_files(drawn, of_gallery(drawn, session.picks))[0])
    first = next(each for each in wanted.adapters if each.merge is None)
    gone = first.model_copy(update={"key": "0" * 12, "sha256": "1" * 64})
    other = wanted.model_copy(update={"adapters": [gone, *(each for each in wanted.adapters if each is not first)]})
    with pytest.raises(AdapterError, match=r"needs what is not here: one \(one, SHA-256 111111111111…\)"):
        restore.restore(Session("another"), other, session.base)


def test_a_merge_is_made_again_from_its_sources(
    session: Session, drawn: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = carried(export.gallery_files(drawn, of_gallery(drawn, session.picks))[0])
    merge = next(each for each in wanted.adapters if each.merge is not None)
    assert merge.merge
    told: list[tuple[str, float | None]] = []
    assert restore.again(session, merge.merge, merge.name, lambda *step: told.append(step)) == merge.key
    assert re.fullmatch(rf"Merging {merge.name} again, (\d+) of \1 modules", told[-1][0])
    assert told[-1][1] == 1
    assert len(told) > 1
    stranger = Session("another")
    with pytest.raises(AdapterError, match=r"it was merged from one .*two"):
        restore.again(stranger, merge.merge, merge.name)


def test_another_base_is_told(session: Session, drawn: Gallery) -> None:
    wanted = carried(export.gallery_files(drawn, of_gallery(drawn, session.picks))[0]).base
    assert restore.base_of(wanted) == session.base
    with pytest.raises(AdapterError, match="the base 'tiny-base', which came from a folder"):
        restore.base_of(wanted.model_copy(update={"fingerprint": "0" * 64}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brickyard": "else"}, "brickyard takes comparison"),
        ({"variants": []}, "variants takes"),
        ({"seeds": ["one"]}, "seeds"),
        ({"extra": 1}, "has no field 'extra'"),
    ],
)
def test_a_damaged_recipe_is_told(session: Session, drawn: Gallery, change: dict, message: str) -> None:
    data = carried(export.gallery_files(drawn, of_gallery(drawn, session.picks))[0]).model_dump(mode="json")
    with pytest.raises(AdapterError, match=message):
        Remembered.check({**data, **change}, "dropped.png")


def test_bases_and_adapters_have_kinds(session: Session) -> None:
    assert of_base(session.base) == IMAGE
    assert {of_adapter(key) for key, _ in session.weights} == {IMAGE}
    text = [entry for entry in shelf.builtin() if of_adapter(entry.key) != IMAGE]
    mixed = replace(session, picks=session.picks[:1]).toggle(text[0].key)
    assert [pick.key for pick in turned(mixed).picks] == [session.picks[0].key]
    assert [pick.key for pick in turned(mixed).aside] == [text[0].key]
