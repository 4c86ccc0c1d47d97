"""What the Gate tab decides without a server: recipes from controls, training and stopping, masks, added gates, pictures."""

from __future__ import annotations

import base64
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import pytest

from backends import gates as store
from backends import library
from backends.bases import TextBase
from components import figures, work
from components.compare import export
from components.gate import adding, choosing, gating, training
from components.gate import tab as gate
from components.library import shelf, uploads
from components.session.state import Gating, Pick, Session, columns
from mole import checkpoint
from mole.gate import BASE, GateConfig
from mole.live import Weighting
from mole.train import TrainConfig, Trainer
from tests.tiny import tiny_base, tiny_entry

ROWS = [{"prompt": f"what is {word}?", "answer": word[::-1]} for word in ("one", "two", "three", "four", "five", "six")]


class Ready:
    """A base that is loaded already."""

    done, error = True, None

    def __init__(self, base: TextBase) -> None:
        self._base = base

    def base(self) -> TextBase:
        return self._base

    def watch(self) -> list[None]:
        return []


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextBase:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    made = tiny_base()
    made.fingerprint = "a" * 64
    monkeypatch.setattr(work, "_loadings", {"tiny": Ready(made)})
    return made


@pytest.fixture
def session(base: TextBase, tmp_path: Path) -> Session:
    keys = [tiny_entry(tmp_path / name, seed).key for seed, name in enumerate(("first", "second"))]
    return Session("tiny", tuple(Pick(key, 1.0, slot) for slot, key in enumerate(keys)), added=tuple(keys))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def values(file: Path | None = None, tasks: tuple[str, ...] = (), **changed: Any) -> list[Any]:
    """What the section's components hold: their defaults, but for what is changed."""
    with gr.Blocks():
        _, data, fields, *_ = training.create_settings()
    names = (*training.GATES, *training.TRAINING, *training.SELDOM)
    given = [changed.get(name, field.value) for name, field in zip(names, fields, strict=True)]
    assert set(changed) <= set(names)
    chosen = {data.tasks.chosen: list(tasks), data.rows: file and str(file)}
    return [*(chosen.get(each, each.value) for each in data.settings), *given]


SHORT = {"steps": 3, "batch": 2, "calibration": 2, "lr": 0.01}
VISITOR = gr.Request(session_hash="visitor")


def trained(session: Session, file: Path, **changed: Any) -> list[tuple]:
    return list(training.run(session, "ticket", "my gates", *values(file, **{**SHORT, **changed})))


@pytest.fixture
def mine(session: Session, file: Path) -> Gating:
    """Gates trained for a moment."""
    made = trained(session, file)[-1][3]
    assert isinstance(made, Gating)
    return made


def cells(figure: go.Figure) -> np.ndarray:
    """The numbers of a heat map as they go to the browser."""
    z = json.loads(figure.to_json())["data"][0]["z"]
    if isinstance(z, list):
        return np.array(z)
    shape = tuple(int(size) for size in z["shape"].split(","))
    return np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).reshape(shape)


def test_untouched_controls_are_the_configs_defaults(session: Session, file: Path) -> None:
    recipe = training.read(session, tuple(values(file, ("sentiment", "language"))))
    assert recipe.gates == GateConfig()
    assert recipe.training == TrainConfig()
    assert [(data.rows.rsplit("/", 1)[-1], data.share) for data in recipe.data] == [
        ("sentiment", 1.0),
        ("language", 1.0),
        ("mine.jsonl", 1.0),
    ]


def test_training_streams_and_ends_with_gates_of_the_session(session: Session, file: Path) -> None:
    states = trained(session, file)
    drawn = [(curves, choices) for _, curves, choices, *_ in states if isinstance(choices, figures.go.Figure)]
    assert drawn
    assert [list(trace.x) for trace in drawn[-1][0].data] == [[1, 2, 3]] * 3
    np.testing.assert_allclose(np.asarray(drawn[-1][1].data[0].z).sum(axis=1), 1, rtol=1e-5)
    made = states[-1][3]
    assert (made.name, made.base, made.experts) == ("my gates", "tiny", tuple(p.key for p in session.picks))
    assert store.entry(made.key).saved.steps == 3
    assert columns(session.gate(made), shelf.shelf(session))[-1].weighting.gates == made.key


def test_stop_keeps_what_was_learned(session: Session, file: Path) -> None:
    states = training.run(session, "ticket", "", *values(file, **{**SHORT, "steps": 1000}))
    for state in states:
        if "step 1 of" in state[0]:
            training.stopping("ticket")
        last = state
    assert 1 <= store.entry(last[3].key).saved.steps < 1000
    assert "of 1000 steps" in last[0]
    assert "ticket" not in work._stops


def test_stopped_before_the_first_step_there_is_nothing_to_keep(session: Session, file: Path) -> None:
    training.stopping("early")
    with pytest.raises(gr.Error, match="nothing was learned"):
        list(training.run(session, "early", "", *values(file, **SHORT)))


def test_a_loss_that_is_not_finite_is_told_and_the_last_good_gates_are_kept(
    session: Session, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.backward

    def broken(self: Trainer, *given: Any, **named: Any) -> Any:
        return plain(self, *given, **named) * (float("nan") if self.step == 2 else 1.0)

    monkeypatch.setattr(Trainer, "backward", broken)
    last = trained(session, file, steps=5)[-1]
    assert "Training ended early" in last[0]
    assert "nan" in last[0]
    kept = store.entry(last[3].key).saved.steps
    assert 1 <= kept <= 2
    assert f"those of step {kept}" in last[0]


def test_one_lora_is_told(session: Session, file: Path) -> None:
    one = session.toggle(session.picks[0].key)
    with pytest.raises(gr.Error, match="one LoRA leaves nothing to choose"):
        trained(one, file)
    assert list(training.run(one, "t", "", *values(file, base_expert=True, **SHORT)))[-1][3]
    with pytest.raises(gr.Error, match="no LoRAs are picked"):
        trained(Session("tiny"), file)


def test_a_bad_line_is_told_by_its_number_without_the_servers_paths(session: Session, file: Path) -> None:
    file.write_text(file.read_text() + '{"prompt": 3}\n')
    with pytest.raises(gr.Error, match=r"mine\.jsonl, line 7: is not a row") as error:
        trained(session, file)
    assert str(file.parent) not in str(error.value)
    said = list(training.estimate(session, *values(file)))
    assert "line 7" in said[-1]


def test_settings_out_of_range_are_told(session: Session, file: Path) -> None:
    with pytest.raises(gr.Error, match=r"training\.steps"):
        trained(session, file, steps=0)
    with pytest.raises(gr.Error, match="nothing to train on"):
        list(training.run(session, "t", "", *values(None)))


def test_the_estimate_is_told_before_starting(session: Session, file: Path) -> None:
    few, many = (
        gating.cost("tiny", tuple(p.key for p in session.picks), training.read(session, tuple(values(file, steps=n))))
        for n in (1, 10_000)
    )
    assert many.seconds > 100 * few.seconds
    assert many.gates == few.gates == 2
    text = list(training.estimate(session, *values(file, **SHORT)))[-1]
    assert "3 steps of 2 samples; 2 gates" in text
    assert f"{few.parameters:,} trained parameters" in text


def test_gates_join_once_and_keep_their_masks(session: Session) -> None:
    keys = tuple(pick.key for pick in session.picks)
    made = Gating("g", "gates", "tiny", keys)
    joined = session.gate(made).mask("g", keys[:1]).mask("g", keys[:1]).gate(Gating("g", "renamed", "tiny", keys))
    found = columns(joined, shelf.shelf(joined))[-2:]
    title = library.entry(keys[0]).title
    assert [column.name for column in found] == ["renamed", f"renamed without {title}"]
    assert found[0].weighting == Weighting(tuple((key, 1.0) for key in keys), gates="g")
    assert found[1].weighting == Weighting(tuple((key, 1.0) for key in keys), gates="g", masked=keys[:1])
    assert [column.slots for column in found] == [(0, 1), (1,)]


def test_gates_of_another_base_are_no_variant(session: Session) -> None:
    keys = tuple(pick.key for pick in session.picks)
    other = session.gate(Gating("g", "gates", "other", keys))
    assert not any(column.weighting.gates for column in columns(other, shelf.shelf(other)))


def test_a_prompt_is_shown_answered_and_masked(session: Session, mine: Gating) -> None:
    session, (first, second) = session.gate(mine), mine.experts
    states = list(
        gate.look(session, True, None, mine.key, "what is one?", "two", choosing.BESIDE, [first], 2, 0, VISITOR)
    )
    shown = [state[1:5] for state in states if isinstance(state[1], go.Figure)]
    assert len(shown) == 1
    plots, steps = [shown[0][:2]], shown[0][2:]
    assert steps == (None, None)
    np.testing.assert_allclose([cells(plot) for plot in plots[0]], [[[0, 1]] * 2] * 2, atol=1e-6)
    answers = [state[5] for state in states if isinstance(state[5], str)][-1]
    assert "With all" in answers
    assert f"Without {library.entry(first).title}" in answers
    seen = states[-1][6]
    again = list(
        gate.look(session, True, seen, mine.key, "what is one?", "two", choosing.BESIDE, [first], 2, 0, VISITOR)
    )
    assert [len(step) for step in again] == [len(states[-1])], (
        "yields, since one that yields nothing empties what is shown"
    )
    assert all(part == gr.skip() for step in again for part in step[1:])
    with pytest.raises(gr.Error, match="everything is masked"):
        list(gate.look(session, True, None, mine.key, "a", "", choosing.BESIDE, [first, second], 2, 0, VISITOR))


def test_a_look_stops_where_it_is_and_may_be_asked_for_again(session: Session, mine: Gating) -> None:
    given = (session.gate(mine), True, None, mine.key, "what is one?", "", choosing.BESIDE, [], 2, 0)
    gate.stopping(VISITOR)  # too late for what it was meant for: it stops nothing that comes after
    looking, states = gate.look(*given, VISITOR), []
    for state in looking:
        states.append(state)
        if isinstance(state[5], str):  # the first tokens are there
            gate.stopping(VISITOR)
    whole = list(gate.look(*given, VISITOR))
    assert "Stopped." in states[-1][0]
    assert "Stopped." not in whole[-1][0]
    assert len(states) < len(whole)
    assert [states[-1][6] is None, states[-1][7].visible] == [False, False], "it does not begin again by itself"
    assert [whole[-1][6] is None, whole[-1][7].visible] == [False, False]
    assert all(state[7].visible for state in states[:-1])


def test_a_mask_joins_the_variants(session: Session, mine: Gating) -> None:
    kept = gate.keep(session.gate(mine), mine.key, [mine.experts[1]])
    assert kept.gates[0].masks == ((mine.experts[1],),)
    with pytest.raises(gr.Error, match="nothing is masked"):
        gate.keep(kept, mine.key, [])
    with pytest.raises(gr.Error, match="not among your gates"):
        gate.keep(session, mine.key, [mine.experts[1]])


def test_the_base_can_be_masked_where_it_is_an_expert(session: Session, file: Path) -> None:
    made = trained(session, file, base_expert=True)[-1][3]
    _, _, _, masks, _ = gate.refresh(session.gate(made), made.key, [])
    assert [key for _, key in masks.choices] == [*made.experts, BASE]
    kept = gate.keep(session.gate(made), made.key, [BASE])
    assert columns(kept, shelf.shelf(kept))[-1].name == "my gates without the base"


def test_a_download_can_be_added_again(session: Session, mine: Gating) -> None:
    file = export.gates_zip(store.entry(mine.key), mine.name)
    with zipfile.ZipFile(file) as archive:
        assert set(archive.namelist()) == {f"my-gates/{name}" for name in uploads.GATE_FILES}
    added, made = adding.admit(session, adding.open_files([str(file)]))
    assert (made.key, made.base, made.experts) == (mine.key, "tiny", mine.experts)
    folder = store.entry(mine.key).path
    pair = [str(folder / name) for name in (checkpoint.WEIGHTS, checkpoint.CONFIG)]
    assert adding.open_files(pair)[0] == adding.open_folder(added, str(folder))[0] == mine.key


def test_gates_whose_loras_are_missing_say_which(session: Session, mine: Gating) -> None:
    less = Session("tiny", session.picks[:1], added=(session.picks[0].key,))
    with pytest.raises(gr.Error, match=r"LoRAs that are not in your library: second \([0-9a-f]{12}\)"):
        adding.admit(less, (mine.key, ()))


def test_a_folders_recipe_finds_its_loras(session: Session, mine: Gating) -> None:
    nobody = Session("tiny")
    opened = adding.open_folder(nobody, str(store.entry(mine.key).path))
    added, made = adding.admit(nobody, opened)
    assert set(added.added) == set(mine.experts) == set(made.experts)


def test_gates_of_another_base_say_so_when_added(session: Session, mine: Gating, base: TextBase) -> None:
    base.fingerprint = "b" * 64
    elsewhere = Session("other", session.picks, added=session.added)
    _, made = adding.admit(elsewhere, (mine.key, ()))
    assert made.base == "tiny"
    (state,) = gate.look(elsewhere.gate(made), True, None, mine.key, "a", "", choosing.BESIDE, [], 2, 0, VISITOR)
    assert "These gates need the base tiny" in state[0]
    with pytest.raises(gr.Error, match="was trained on the base tiny"):
        list(gate.look(session.gate(made), True, None, mine.key, "a", "", choosing.BESIDE, [], 2, 0, VISITOR))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["other"], "holds no trained gates"),
        ([checkpoint.CONFIG], "readable"),
        (["a/x", "b/x"], "there twice"),
        (["../../x"], "names a place outside of it"),
    ],
)
def test_zips_that_hold_no_gates_are_refused(
    base: TextBase, mine: Gating, tmp_path: Path, names: list[str], message: str
) -> None:
    source = store.entry(mine.key).path
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for name in names:
            target = name.replace("x", checkpoint.CONFIG)
            archive.writestr(target, (source / checkpoint.CONFIG).read_bytes())
    with pytest.raises(gr.Error, match=message):
        adding.open_files([str(tmp_path / "made.zip")])
    (tmp_path / "no.zip").write_bytes(b"PK no")
    with pytest.raises(gr.Error, match="not a readable zip"):
        adding.open_files([str(tmp_path / "no.zip")])
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source / checkpoint.CONFIG, checkpoint.CONFIG)
    packed = bytearray((tmp_path / "packed.zip").read_bytes())
    packed[60:90] = b"\xff" * 30
    (tmp_path / "packed.zip").write_bytes(packed)
    with pytest.raises(gr.Error, match="not a readable zip"):
        adding.open_files([str(tmp_path / "packed.zip")])


def test_local_folders_of_gates_are_closed_on_a_space(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "owner/name")
    with pytest.raises(gr.Error, match="not opened here"):
        adding.open_folder(session, "/tmp")


def test_the_difference_is_the_other_prompt_less_the_first(session: Session, mine: Gating) -> None:
    chosen = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]])
    mask, prompts, view = mine.experts[:1], ["one", "two"], choosing.DIFFERENCE
    asked = choosing.Asked(session.gate(mine), mine, store.entry(mine.key), mask, prompts, view, threading.Event())
    shown = choosing.columns(asked)
    plot, *hidden = choosing.plots(asked, shown, chosen)
    assert json.loads(plot.to_json())["layout"]["xaxis"]["title"]["text"].endswith(f"<br>{shown[-1].name}")
    np.testing.assert_allclose(cells(plot), [[-0.7, 0.7], [0, 0]], atol=1e-12)
    assert hidden == [None] * 3
