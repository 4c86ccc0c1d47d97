"""Gates on a base that draws, as the Gate tab makes and shows them: pictures with captions, guidance, choices step by step, masks."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from backends import captions, library
from backends import gates as store
from backends.bases import ImageBase, load_base
from backends.gated import choices
from backends.image import Drawing, Variant, draw
from backends.training import Training
from components import work
from components.gate import choosing, gate_figures, gating, training, training_data, uploaded_pictures
from components.gate import tab as gate
from components.library import shelf, unpacking
from components.session.state import Gating, Pick, Session, columns
from lego import AdapterError
from mole.gate import GateConfig
from mole.train import TrainConfig
from tests.app.test_gate_logic import VISITOR, Ready, cells
from tests.tiny_pipelines import tiny_folder, write_lora

CAPTIONS = ("a red hat", "a cat", "a blue hat", "a dog")
SHORT = {"steps": 3, "batch": 2, "calibration": 2, "lr": 0.05}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline and two LoRAs for it."""
    folder = tmp_path_factory.mktemp("places")
    tiny_folder(folder / "base", "sd")
    for seed, name in enumerate(("first", "second"), 1):
        write_lora(folder / name, "sd", seed, "peft", only=["unet"])
    return folder


@pytest.fixture(scope="module")
def loaded(places: Path) -> ImageBase:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKYARD_DEVICE", "cpu")
        return load_base(str(places / "base"))  # type: ignore[return-value]


@pytest.fixture
def session(loaded: ImageBase, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRICKYARD_DEVICE", "cpu")
    monkeypatch.setattr(work, "_loadings", {"tiny": Ready(loaded)})  # type: ignore[arg-type]
    monkeypatch.setattr(choosing, "_sheets", type(choosing._sheets)())
    keys = [library.add_folder(places / name).key for name in ("first", "second")]
    return Session("tiny", tuple(Pick(key, 1.0, slot) for slot, key in enumerate(keys)), added=tuple(keys))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Four pictures with captions; the last one is held out."""
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for number, text in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": text, "split": "held_out" if number == 3 else "train"})
    (folder / captions.METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in sorted(folder.iterdir())]


def zipped(files: Sequence[str], place: Path, within: str = "set/") -> str:
    with zipfile.ZipFile(place, "w") as archive:
        for file in files:
            archive.write(file, within + Path(file).name)
    return str(place)


def values(files: Sequence[str] | None = None, sets: Sequence[str] = (), **changed: Any) -> list[Any]:
    """What the section's components hold: their defaults, but for what is changed."""
    with gr.Blocks():
        _, data, fields, *_ = training.create_settings()
    names = (*training.GATES, *training.TRAINING, *training.SELDOM)
    given = [changed.pop(name, field.value) for name, field in zip(names, fields, strict=True)]
    chosen = {data.sets.chosen: list(sets), data.files: files and list(files)}
    chosen |= {getattr(data, name): value for name, value in changed.items()}
    return [*(chosen.get(each, each.value) for each in data.settings), *given]


def trained(session: Session, files: Sequence[str] | None, **changed: Any) -> list[tuple]:
    return list(training.run(session, "ticket", "my gates", *values(files, **{**SHORT, **changed})))


@pytest.fixture
def mine(session: Session, files: list[str]) -> Gating:
    """Gates trained for a moment."""
    made = trained(session, files)[-1][3]
    assert isinstance(made, Gating)
    return made


def test_what_is_set_becomes_the_recipe(session: Session, files: list[str]) -> None:
    recipe = training.read(session, tuple(values(files, ("animals", "ink-style"), pooling="flatten")))
    assert recipe.gates == GateConfig(pooling="flatten")
    assert recipe.training == TrainConfig()
    assert recipe.guidance is None
    assert [data.rows.rsplit("/", 1)[-1] for data in recipe.data] == ["animals", "ink-style", "pictures"]
    guided = training.read(session, tuple(values(files, way=training_data.GUIDED, captions="a fox\n\n a hat ")))
    assert guided.guidance is not None
    assert (guided.guidance.model, guided.guidance.steps, guided.guidance.source) == (None, 8, "")
    own, typed = [captions.read_captions(Path(data.rows), "all", pictures=False)[0] for data in guided.data]
    assert [sample.text for sample in own] == list(CAPTIONS)
    assert [sample.text for sample in typed] == ["a fox", "a hat"]


def test_pooling_is_for_bases_that_draw(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.visible for each in training.turn(session)] == [False, True, True]
    monkeypatch.setattr(work, "_loadings", {})
    monkeypatch.setattr(gating, "task_rows", lambda *given: [{"rows": "sentiment"}])
    texts = training.read(session, tuple(values(pooling="flatten")))
    assert texts.gates.pooling == "mean"
    assert [each.visible for each in training.turn(session)] == [True, False, False]


def test_sets_called_like_the_picked_loras_are_ticked(session: Session, places: Path, tmp_path: Path) -> None:
    animals = library.add_folder(write_lora(tmp_path / "animals", "sd", 3, "peft")).key
    with gr.Blocks():
        _, data, *_ = training.create_settings()
    session = session.add(animals).toggle(animals)
    *_, picked = found = training_data.offer(session, None, data)
    assert found[len(data.tasks.both)].value == ["animals"]
    assert picked == tuple(pick.key for pick in session.picks)
    assert all(each == gr.skip() for each in training_data.offer(session, picked, data)), "what was ticked since stays"


def test_training_streams_and_ends_with_gates_that_draw(session: Session, files: list[str], loaded: ImageBase) -> None:
    states = trained(session, files)
    drawn = [heat for _, _, heat, *_ in states if isinstance(heat, gate_figures.go.Figure)]
    np.testing.assert_allclose(np.asarray(drawn[-1].data[0].z).sum(axis=1), 1, rtol=1e-5)
    assert drawn[-1].data[0].text[0][0].startswith("time")
    made = states[-1][3]
    saved = store.entry(made.key).saved
    assert (saved.steps, saved.base.fingerprint) == (3, loaded.fingerprint)
    assert columns(session.gate(made), shelf.shelf(session))[-1].weighting.gates == made.key
    said = list(training.estimate(session, *values(files, **SHORT)))[-1]
    assert "3 steps of 2 samples" in said
    assert f"{len(saved.sites)} gates" in said


def test_gates_learn_under_guidance(session: Session) -> None:
    made = trained(session, None, way=training_data.GUIDED, captions="a cat\na hat", steps=1)[-1][3]
    saved = store.entry(made.key).saved
    assert saved.recipe.guidance is not None
    assert "captions alone" in gating.described(session, store.entry(made.key), made, shelf.shelf(session))


def test_stop_keeps_what_was_learned(session: Session, files: list[str]) -> None:
    states = training.run(session, "ticket", "", *values(files, **{**SHORT, "steps": 1000}))
    for state in states:
        if "step 1 of" in state[0]:
            training.stopping("ticket")
        last = state
    assert 1 <= store.entry(last[3].key).saved.steps < 1000


def test_a_zip_is_the_same_as_its_files_wherever_the_set_lies_in_it(
    session: Session, files: list[str], tmp_path: Path
) -> None:
    whole = zipped(files, tmp_path / "a set.zip", "some/where/")
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("__MACOSX/some/where/._0.png", b"no")
        archive.writestr("some/notes.txt", b"no")
    place = uploaded_pictures.receive_pictures([whole])
    assert place.name == "a-set"
    found, digest = captions.read_captions(place, "all")
    assert [sample.text for sample in found] == list(CAPTIONS)
    assert captions.read_captions(uploaded_pictures.receive_pictures(files), "all")[1] == digest
    assert uploaded_pictures.receive_pictures([whole]) == place
    assert not list((tmp_path / "home" / "captions").glob(".receiving*"))


Spoil = Callable[[list[str]], list[str]]


def without_captions(files: list[str]) -> list[str]:
    return [file for file in files if file.endswith(".png")]


def with_line(line: str) -> Spoil:
    def spoil(files: list[str]) -> list[str]:
        with open(files[-1], "a") as file:
            file.write(line + "\n")
        return files

    return spoil


def unreadable(files: list[str]) -> list[str]:
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:300])
    return files


def uncaptioned(files: list[str]) -> list[str]:
    other = Path(files[0]).with_name("other.webp")
    Image.new("RGB", (8, 8)).save(other)
    return [*files, str(other)]


def two_sets(files: list[str]) -> list[str]:
    whole = zipped(files, Path(files[0]).parent / "two.zip", "a/")
    with zipfile.ZipFile(whole, "a") as archive:
        archive.write(files[-1], "b/metadata.jsonl")
    return [whole]


def escaping(files: list[str]) -> list[str]:
    whole = zipped(files, Path(files[0]).parent / "out.zip", "a/")
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("../outside.png", b"no")
    return [whole]


def no_zip(files: list[str]) -> list[str]:
    place = Path(files[0]).parent / "no.zip"
    place.write_bytes(b"PK no")
    return [str(place)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_captions, "there is no metadata.jsonl with the captions. Add it: one line for each picture"),
        (with_line('{"file_name": "0.png", "text": "  "}'), "metadata.jsonl: gives 0.png an empty caption"),
        (with_line('{"file_name": "9.png", "text": "a"}'), "9.png: is not in the folder"),
        (with_line('{"file_name": "../../x.png", "text": "a"}'), "x.png: is not in the folder"),
        (with_line('{"text": "a"}'), "metadata.jsonl, line 5: is not a row"),
        (unreadable, "1.png: is not a picture that can be read. Use PNG, JPEG or WebP"),
        (uncaptioned, "other.webp: has no caption"),
        (two_sets, "two.zip: holds 2 files metadata.jsonl"),
        (escaping, "out.zip: names a place outside of it"),
        (no_zip, "no.zip: is not a readable zip"),
    ],
)
def test_bad_data_gives_one_clear_message(session: Session, files: list[str], spoil: Spoil, message: str) -> None:
    given = spoil(files)
    with pytest.raises(gr.Error, match=re.escape(message)) as error:
        trained(session, given)
    assert "home" not in str(error.value)
    said = list(training.estimate(session, *values(given)))
    assert message.split(":")[0] in said[-1]


def test_what_is_too_much_is_refused(session: Session, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploaded_pictures, "PICTURE_BYTES", 100)
    for given in (files, [zipped(files, Path(files[0]).parent / "a.zip")]):
        with pytest.raises(AdapterError, match=r"0.png: is 0 MB large"):
            uploaded_pictures.receive_pictures(given)
    monkeypatch.undo()
    monkeypatch.setenv("BRICKYARD_HOME", str(Path(files[0]).parents[1] / "home"))
    monkeypatch.setattr(unpacking, "MOST_BYTES", 1000)
    with pytest.raises(AdapterError, match=r"b.zip: holds more than \d+ MB"):
        uploaded_pictures.receive_pictures([zipped(files, Path(files[0]).parent / "b.zip")])
    monkeypatch.setattr(captions, "MOST_PIXELS", 64)
    with pytest.raises(AdapterError, match=r"\d.png: has 64 × 64 pixels, which is too many"):
        uploaded_pictures.receive_pictures(files)
    monkeypatch.setattr(uploaded_pictures, "MOST_PICTURES", 3)
    with pytest.raises(AdapterError, match="4 captions are too many"):
        uploaded_pictures.receive_pictures(files)


def test_paths_from_the_browser_are_no_sets_and_no_judges(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(gr.Error, match="there is no set '/etc' of pictures"):
        trained(session, None, sets=("/etc",))
    monkeypatch.setenv("SPACE_ID", "owner/name")
    with pytest.raises(AdapterError, match="cannot be used here"):
        training_data.guidance_of({}, "/etc")
    with pytest.raises(gr.Error, match="nothing to train on"):
        trained(session, None)


def test_a_prompt_is_drawn_masked_and_shown_step_by_step(
    session: Session, mine: Gating, loaded: ImageBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, (first, second) = session.gate(mine), mine.experts
    states = list(gate.look(session, True, None, mine.key, "a cat", "a hat", choosing.BESIDE, [first], 2, 5, VISITOR))
    shown = [state[1:5] for state in states if isinstance(state[1], go.Figure)]
    assert len(shown) == 2, "once they are known, and with the last line"
    for plot in shown[0][:2]:
        np.testing.assert_allclose(cells(plot), [[0, 1]] * len(store.entry(mine.key).saved.sites), atol=1e-6)
    assert None not in shown[0]
    titles = [each["text"] for each in json.loads(shown[0][2].to_json())["layout"]["annotations"]]
    assert [title.rsplit(" ", 1)[-1] for title in titles] == ["first", "second"]

    # The pictures are what the backend draws from the same noise.
    answers = [state[5] for state in states if isinstance(state[5], str)][-1]
    sources = re.findall(r'src="gradio_api/file=([^"]*)" alt="([^"]*)"', answers)
    variants = [Variant("all", mine.weighting()), Variant("masked", mine.weighting((first,)))]
    *_, wanted = draw(loaded, variants, ["a cat", "a hat"], Drawing(steps=2, guidance=loaded.guidance, seeds=(5,)))
    found = {alt: np.asarray(Image.open(file)).astype(int) for file, alt in sources}
    for p, prompt in enumerate(("a cat", "a hat")):
        for v, name in enumerate((choosing.WHOLE, "Without first")):
            assert np.abs(found[f"{name}: {prompt}, seed 5"] - np.asarray(wanted.pictures[v][p][0])).max() <= 1

    # Another view of the same draws nothing anew; the same view does nothing.
    seen = states[-1][6]
    again = gate.look(session, True, seen, mine.key, "a cat", "a hat", choosing.BESIDE, [first], 2, 5, VISITOR)
    assert all(part == gr.skip() for step in again for part in step[1:])
    monkeypatch.setattr(choosing, "draw", None)
    again = list(
        gate.look(session, True, seen, mine.key, "a cat", "a hat", choosing.DIFFERENCE, [first], 2, 5, VISITOR)
    )
    maps, none, course, _ = next(state[1:5] for state in again if isinstance(state[1], go.Figure))
    assert maps is not None
    assert none is None
    assert course is not None
    with pytest.raises(gr.Error, match="everything is masked"):
        list(gate.look(session, True, None, mine.key, "a", "", choosing.BESIDE, [first, second], 2, 5, VISITOR))
    with pytest.raises(gr.Error, match="steps must be a number from 1 to 150"):
        list(gate.look(session, True, None, mine.key, "a", "", choosing.BESIDE, [], 999, 5, VISITOR))


def test_drawing_what_the_gates_choose_stops_where_it_is(session: Session, mine: Gating) -> None:
    given = (session.gate(mine), True, None, mine.key, "a cat", "", choosing.BESIDE, [], 9, 5)
    looking = gate.look(*given, VISITOR)
    lines = [next(looking)[0]]
    gate.stopping(VISITOR)
    *rest, last = looking
    lines += [state[0] for state in rest]
    assert max(int(step) for line in lines for step in re.findall(r"step (\d+) of 9", line)) < 3
    assert "Stopped." in last[0]
    assert (last[6] is None, last[7].visible) == (False, False), "it does not begin again by itself"
    whole = list(gate.look(*given, VISITOR))
    assert whole[-1][6] is not None, "drawn anew, and to the end"


def test_the_command_lines_choices_are_means_over_the_steps(session: Session, mine: Gating, loaded: ImageBase) -> None:
    found = choices(loaded, store.entry(mine.key), ["a cat", "a hat"])
    assert found.choices.shape == (len(found.sites), 2, 2)
    *_, sheet = draw(loaded, [Variant("gates", mine.weighting())], ["a hat"])
    steps = sheet.courses[0][0][0].choices[:, :, 0]
    np.testing.assert_allclose(found.choices[:, 1], steps.numpy().mean(axis=0), atol=1e-5)


def test_the_figure_over_steps_has_a_panel_a_lora(session: Session) -> None:
    shares = np.random.default_rng(0).random((4, 3, 2))
    groups = gating.groups_of(session, [pick.key for pick in session.picks], shelf.shelf(session))
    drawn = gate_figures.gate_course(["down 0", "mid", "up 0"], groups, shares, "a cat")
    assert len(drawn.data) == 2
    for number, panel in enumerate(drawn.data):
        assert np.array_equal(np.asarray(panel.z), shares[:, :, number].T)
        assert list(panel.x) == [1, 2, 3, 4]
    assert list(drawn.layout.yaxis.ticktext) == ["down 0", "mid", "up 0"]
    assert drawn.layout.yaxis.autorange == "reversed"


def test_gates_that_ship_for_pictures_join_where_a_base_draws(
    session: Session, mine: Gating, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = store.entry(mine.key).path
    monkeypatch.setitem(store.ASSETS, "image", shipped.parent)
    monkeypatch.setattr(store, "_entries", {})
    assert [found.key for found in store.builtin("image")] == [mine.key]
    assert store.entry(mine.key).source == "built-in"
    assert shelf.named_gates(shipped.name).key == mine.key
    entries = tuple(library.entry(key) for key in mine.experts)
    monkeypatch.setattr(shelf, "builtin", lambda kind="text": entries if kind == "image" else ())
    assert mine.key not in [each.key for each in Session("tiny").gates]
    joined = shelf.on_base(Session("other"), "tiny")
    assert [each.key for each in joined.gates] == [mine.key]
    assert shelf.on_base(joined, "tiny").gates == joined.gates


def test_a_gate_over_text_encoder_and_denoiser_is_refused_before_it_learns(
    session: Session, files: list[str], tmp_path: Path, loaded: ImageBase
) -> None:
    keys = [library.add_folder(write_lora(tmp_path / str(n), "sd", n, "peft")).key for n in (5, 6)]
    recipe = training.read(session, tuple(values(files, granularity="network")))
    with pytest.raises(AdapterError, match="one gate decides for text encoder and denoiser at once"):
        Training(loaded, keys, recipe)


def test_pictures_that_come_with_a_call_are_kept_like_uploaded_ones(session: Session, files: list[str]) -> None:
    pictures = [Path(file).read_bytes() for file in files[:2]]
    found, _ = captions.read_captions(uploaded_pictures.receive_captions(["one", "two"], pictures))
    assert [sample.text for sample in found] == ["one", "two"]
    assert [Image.open(io.BytesIO(data)).size for data in pictures] == [(64, 64)] * 2
    with pytest.raises(AdapterError, match=r"0001: is not a picture"):
        uploaded_pictures.receive_captions(["one"], [b"no"])
