"""The parts of the Gate tab that need no model: settings, limits, what is there at first sight, pictures, exports."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from backends import gates as store
from components import figures, kinds, work
from components.compare import comparison
from components.gate import choosing, gate_figures, gating, training
from components.gate import tab as gate
from components.library import shelf
from components.session.state import Column
from lego import AdapterError
from mole.gate import GateConfig
from mole.live import Weighting
from mole.train import TrainConfig
from tests.app.test_gate_logic import VISITOR


def test_every_setting_has_a_control_or_a_reason() -> None:
    shown = {*training.GATES, *training.TRAINING, *training.SELDOM}
    assert {*GateConfig.model_fields, *TrainConfig.model_fields} - shown == {"micro_batch"}


def test_a_path_is_no_task() -> None:
    with pytest.raises(AdapterError, match="there is no task '/etc/passwd'"):
        gating.task_rows(["/etc/passwd"], {})


def test_where_others_wait_trainings_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "owner/name")
    data, training_of = [{"rows": "sentiment"}], {"steps": 1001, "batch": 10}
    with pytest.raises(AdapterError, match="10010 samples are too many here"):
        gating.recipe_of(["a", "b"], data, {}, training_of)


def test_the_page_opens_with_the_gates_that_ship() -> None:
    opened = shelf.start_session("base")
    assert {made.key for made in opened.gates} == {found.key for found in store.builtin()}


def test_gates_that_ship_are_offered_on_their_base_alone() -> None:
    (shipped,) = store.builtin()
    opened = shelf.start_session(shipped.saved.base.id)
    assert [made.key for made in kinds.own(opened).gates] == [shipped.key]
    assert kinds.own(replace(opened, base="a-lab/another")).gates == ()


def test_without_gates_the_tab_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "ASSETS", dict.fromkeys(store.ASSETS, tmp_path))
    opened = shelf.start_session("base")
    assert opened.gates == ()
    assert "No trained gates yet" in gate.refresh(opened, None, [])[1]
    looked = gate.look(opened, True, None, None, "a", "", choosing.BESIDE, [], 2, 0, VISITOR)
    assert all(part == gr.skip() for step in looked for part in step[1:])


def test_an_export_names_gates_and_mask() -> None:
    column = Column("0", "gated", Weighting((("a", 1.0), ("b", 1.0)), gates="g", masked=("b",)))
    told = comparison.begin("base", [column], ["hi"], {}).data()["variants"][0]
    assert (told["gates"], told["masked"]) == ("g", ["b"])
    assert [each["key"] for each in told["adapters"]] == ["a", "b"]


def test_the_heat_map_has_gates_as_rows_and_coloured_loras_as_columns() -> None:
    shares = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    groups = [figures.Group("A <b>", 0), figures.Group("Base", None)]
    drawn = gate_figures.gate_map(["block 0", "block 1", "block 2"], groups, shares)
    assert np.array_equal(drawn.data[0].z, shares)
    assert drawn.layout.yaxis.autorange == "reversed"
    assert list(drawn.layout.yaxis.ticktext) == ["block 0", "block 1", "block 2"]
    first, second = drawn.layout.xaxis.ticktext
    assert groups[0].colour in first
    assert "A &lt;b&gt;" in first
    assert groups[1].colour in second
    assert drawn.data[0].text[1][0].startswith("block 1: A")


@pytest.mark.parametrize(
    ("site", "told"),
    [
        ("", "network"),
        ("model.layers.3", "block 3"),
        ("model.layers.3.self_attn", "block 3 self_attn"),
        ("model.layers.12.self_attn.q_proj", "block 12 q_proj"),
        ("lm_head", "lm_head"),
    ],
)
def test_places_have_short_names(site: str, told: str) -> None:
    assert gating.place_of(site) == told


def test_a_ticket_is_one_flag_until_it_is_forgotten() -> None:
    flag = work.stop_of("one")
    assert isinstance(flag, threading.Event)
    assert work.stop_of("one") is flag
    work.forget("one")
    assert work.stop_of("one") is not flag
    work.forget("one")
