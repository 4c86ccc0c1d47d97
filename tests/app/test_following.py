"""Choices that the session no longer has, which the page may still send."""

from __future__ import annotations

import gradio as gr
import pytest

from components.compare import axes_box
from components.compare import tab as compare
from components.following import Choice, Ticks, Within
from components.gate import tab as gate


def test_what_is_no_longer_on_offer_counts_as_not_chosen() -> None:
    ticks, choice = Ticks([("One", "1"), ("Two", "2")]), Choice([("One", "1"), ("Two", "2")])
    assert ticks.preprocess(["2", "gone"]) == ["2"]
    assert [choice.preprocess(value) for value in ("2", "gone", None)] == ["2", None, None]


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
