"""Choices that the session no longer has, which the page may still send."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from components import kinds
from components.compare import axes_box
from components.compare import tab as compare
from components.following import Choice, Ticks, Within
from components.gate import tab as gate
from components.library.shelf import builtin_base, shelf, start_session
from components.merge import making
from components.session.state import Edited, Made, columns
from lego.unitset import UnitSet


def test_what_is_on_offer_is_not_for_gradio_to_say() -> None:
    """Its list may be that of another session than the one whose choices the page sends."""
    ticks, choice = Ticks([("One", "1")]), Choice([("One", "1")])
    assert ticks.preprocess(["1", "of the next session", 3]) == ["1", "of the next session"]
    assert ticks.preprocess(None) == []
    assert [choice.preprocess(value) for value in ("of the next session", None, 3)] == [
        "of the next session",
        None,
        None,
    ]


def test_who_uses_a_choice_leaves_out_what_the_session_does_not_have() -> None:
    session = start_session(builtin_base(kinds.TEXT))
    every = columns(session, shelf(session))
    assert compare.chosen_of(every, ["gone", "base"], [column.id for column in every]) == ["base"]
    assert [column.id for column in compare.chosen_columns(session, ["gone", "base"], 1)] == ["base"]
    columns_show, *_ = axes_box.refresh(session, "gone", "gone", "gone")
    assert columns_show.value == axes_box.FIRST


def test_what_was_made_of_other_adapters_is_not_compared_unless_chosen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path))
    session = start_session(builtin_base(kinds.TEXT))
    first, second, third = (pick.key for pick in session.picks)
    other = next(key for key in shelf(session) if session.pick(key) is None)
    of_all, of_two = (making.make(session.weights[:size], "concat", {}, 0, "").key for size in (3, 2))
    for key, size in ((of_all, 3), (of_two, 2)):
        session = session.join(Made(key, f"of {size}", tuple(pick.slot for pick in session.picks[:size])))
    session = session.edit(Edited("quiet", session.weights, UnitSet.of([(third, "model.layers.0.mlp.up_proj", 0)])))
    known = [column.id for column in columns(session, shelf(session))]
    gates = [each for each in known if each.startswith("gates:")]
    assert gates
    changed = session.toggle(third).toggle(other)
    every = columns(changed, shelf(changed))
    chosen = compare.chosen_of(every, known, known)
    assert set(chosen) == {
        "base",
        f"lora:{first}",
        f"lora:{second}",
        f"lora:{other}",
        "sum",
        "average",
        f"merge:{of_two}",
    }
    now = [column.id for column in every]
    assert compare.chosen_of(every, [*chosen, f"merge:{of_all}"], now) == [
        each for each in now if each in chosen or each == f"merge:{of_all}"
    ], "what is chosen by hand stays, as long as the picks do"


def test_a_value_outside_a_new_range_counts_as_its_end() -> None:
    slider = Within(1, 8, value=4, step=1)
    assert [slider.preprocess(value) for value in (0, 4, 32)] == [1, 4, 8]


def test_the_page_draws_them_as_gradios_own() -> None:
    drawn = [Ticks([]), Choice([]), Within(0, 1)]
    assert [block.get_block_name() for block in drawn] == ["checkboxgroup", "dropdown", "slider"]


@pytest.mark.parametrize("create", [compare.create, axes_box.create, gate.create])
def test_choices_made_of_the_session_follow_it(create) -> None:
    with gr.Blocks() as page:
        create()
    free = [block for block in page.blocks.values() if isinstance(block, gr.CheckboxGroup | gr.Dropdown)]
    follow = {"Variants", "Mask LoRAs", "Columns show", "Rows show", "Variant that is varied", "Mark differences to"}
    found = {block.label for block in free if isinstance(block, Ticks | Choice)}
    assert found == follow & {block.label for block in free}
    assert found
