"""What the page decides without a server: sessions, prompts, limits, marks, controls."""

from __future__ import annotations

import zipfile
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from safetensors.torch import save_file

import lego
from backends import bases
from backends import library as lego_library
from components import controls, figures, fragments
from components.compare import comparing, comparison, examples, export
from components.compare import tab as compare
from components.endpoints import adapters as endpoints
from components.library import shelf
from components.library import tab as library
from components.map import unit_figures
from components.map.unit_figures import Marks
from components.merge import making
from components.session.state import MAX_PICKS, Column, Edited, Made, Pick, Session, columns
from lego import AdapterError
from lego.unitset import UnitSet
from mole.live import Weighting
from tests.conftest import half_pair, write_peft


def session(*names: str) -> Session:
    keys = {entry.name: entry.key for entry in shelf.builtin()}
    return Session("base", tuple(Pick(keys[name], 1.0, slot) for slot, name in enumerate(names)))


def test_a_session_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Session("base").base = "other"  # type: ignore[misc]


def test_picking_takes_the_first_free_colour_and_gives_it_back() -> None:
    picked = Session("base").toggle("a").toggle("b").toggle("c")
    assert [(p.key, p.slot) for p in picked.picks] == [("a", 0), ("b", 1), ("c", 2)]
    again = picked.toggle("b").toggle("d")
    assert [(p.key, p.slot) for p in again.picks] == [("a", 0), ("c", 2), ("d", 1)]
    merged = picked.join(Made("m", "merge", (0, 1, 2))).toggle("b").toggle("d")
    assert merged.pick("d") == Pick("d", 1.0, 3), "the merge still has the other's colour"
    every = merged
    for key in "efghij"[: MAX_PICKS - 3]:
        every = every.toggle(key)
    assert {pick.slot for pick in every.picks} == set(range(MAX_PICKS)), "its colour too, where there is no other"


def test_variants_are_weightings_of_one_pool() -> None:
    two = session("past-tense", "sentiment")
    first, second = (pick.key for pick in two.picks)
    two = two.weigh(second, 0.5).join(Made(first, "merge", (0, 1)))
    two = two.edit(
        Edited("quiet", two.weights, UnitSet.of([(first, "m", 3)]), ((UnitSet.of([(second, "m", 0)]), 2.0),))
    )
    found = {column.id: column.weighting for column in columns(two, shelf.shelf(two))}
    assert found["base"] == Weighting(())
    assert found[f"lora:{second}"] == Weighting(((second, 1.0),))
    assert found["sum"] == Weighting(((first, 1.0), (second, 0.5)))
    assert found["average"] == Weighting(((first, 1 / 1.5), (second, 0.5 / 1.5)))
    assert found[f"merge:{first}"] == Weighting(((first, 1.0),))
    assert found["edited:quiet"].muted == {(first, "m", 3)}
    assert found["edited:quiet"].scaled == ((frozenset({(second, "m", 0)}), 2.0),)


def test_columns_of_one_name_are_told_apart() -> None:
    same = Session("base", merges=(Made(session("sentiment").picks[0].key, "Base"),))
    assert [column.name for column in columns(same, shelf.shelf(same))] == ["Base", "Base (2)"]


def test_the_page_opens_with_three_adapters() -> None:
    opened = shelf.start_session("base")
    assert len(opened.picks) == 3
    assert [pick.slot for pick in opened.picks] == [0, 1, 2]


def test_another_visitors_adapter_is_not_on_my_shelf() -> None:
    mine = session("past-tense")
    with pytest.raises(AdapterError, match="not in your library"):
        shelf.entry_of(mine, "ffffffffffff")
    with pytest.raises(AdapterError, match="not in your library"):
        shelf.entry_of(mine, {"key": 1})


def test_no_more_picks_than_colours() -> None:
    full = Session("base", tuple(Pick(f"k{i}", 1.0, i) for i in range(MAX_PICKS)))
    event = gr.EventData(None, {"key": session("sentiment").picks[0].key})
    with pytest.raises(gr.Error, match="picked already"):
        library.pick(full, event)


@pytest.mark.parametrize("weight", [None, "1", float("nan"), float("inf")])
def test_a_weight_must_be_a_number(weight: object) -> None:
    one = session("sentiment")
    with pytest.raises(gr.Error, match="not a number"):
        library.weigh(one, gr.EventData(None, {"key": one.picks[0].key, "weight": weight}))


def test_prompts_are_lines_and_may_break_inside() -> None:
    assert compare.read_prompts("one\n\n two\\nlines \n") == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("text", "message"), [("  \n", "no prompt"), ("x\n" * 17, "17 prompts"), ("y" * 2001, "2001 characters")]
)
def test_prompts_have_limits(text: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        compare.read_prompts(text)


def test_too_many_texts_are_refused() -> None:
    with pytest.raises(AdapterError, match="too many"):
        compare.chosen_columns(session("past-tense", "sentiment"), ["base", "sum", "average"], 40)


def test_sampling_stays_inside_the_limits() -> None:
    wanted = compare.sampling(10_000, -3, None, "raw")
    assert (wanted.max_new_tokens, wanted.temperature, wanted.seed, wanted.chat) == (512, 0.0, 0, False)


def test_marks_are_what_the_base_does_not_say() -> None:
    marked = fragments.mark_differences("the <cat> sat down", "the dog sat")
    assert marked == "the <mark>&lt;cat&gt;</mark> sat<mark> down</mark>"
    assert fragments.mark_differences("same words", "same words") == "same words"
    assert fragments.mark_differences("mice", "It is 'mice'.") == "mice"
    assert fragments.mark_differences("It is 'mice'!", "mice don't") == "<mark>It is &#x27;</mark>mice&#x27;!"


def test_a_comparison_escapes_what_people_and_models_write() -> None:
    column = Column("0", "<b>name</b>", Weighting(()))
    found = comparison.begin("base", [column], ["<script>alert(1)</script>"], {"length": 4})
    for drawn in (comparison.draw(found, marks=True), comparison.to_html(found, "")):
        assert "<script>" not in drawn
        assert "<b>name</b>" not in drawn


@pytest.mark.parametrize("name", list(lego.methods()))
def test_every_method_has_a_control_for_every_parameter(name: str) -> None:
    method = lego.methods()[name]
    with gr.Blocks():
        _, made = controls.group(method, visible=True)
    assert controls.read(method, [component.value for component in made]) == method.validate({})


def test_values_of_the_chosen_method_are_found_among_all() -> None:
    values = [p.default for found in lego.methods().values() for p in found.parameters]
    start = sum(len(lego.methods()[n].parameters) for n in lego.methods() if n < "svd")
    names = [p.name for p in lego.methods()["svd"].parameters]
    values[start + names.index("strength")] = 0.25
    assert controls.read_one("svd", values)["strength"] == 0.25
    assert controls.read_one("lego", values)["strength"] == 1.0


def test_an_emptied_number_is_told() -> None:
    lego_method = lego.methods()["lego"]
    values = [None if p.name == "restarts" else p.default for p in lego_method.parameters]
    with pytest.raises(AdapterError, match="restarts"):
        controls.read(lego_method, values)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "näme ü", "x" * 500])
def test_names_become_harmless_file_names(name: str) -> None:
    made = making.slug(name)
    assert "/" not in made
    assert not made.startswith(".")
    assert len(made) <= making.NAME_LIMIT


def downloaded(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def test_a_single_file_can_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    down, up = half_pair("m").values()
    style = tmp_path / "loras" / "style.safetensors"
    style.parent.mkdir()
    save_file({"unet.conv_in.lora_A.weight": down, "unet.conv_in.lora_B.weight": up}, style)
    (tmp_path / "loras" / "another.safetensors").write_bytes(b"not this one")
    entry = lego_library.entry(library.open_folder(str(style)))
    file = export.adapter_zip(entry.key, "My style")
    assert downloaded(file) == {"My-style/style.safetensors"}
    with zipfile.ZipFile(file) as archive:
        assert archive.read("My-style/style.safetensors") == style.read_bytes()


def test_only_the_adapters_own_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    folder = write_peft(tmp_path / "mine", half_pair("m", seed=3))
    (folder / "README.md").write_text("# Mine")
    (folder / "optimizer.pt").write_bytes(b"large")
    (folder / "secret.txt").symlink_to("/etc/passwd")
    file = export.adapter_zip(library.open_folder(str(folder)), "mine")
    wanted = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert downloaded(file) == {f"mine/{name}" for name in wanted}


def test_the_library_says_what_it_takes() -> None:
    with gr.Blocks() as page:
        tab = library.create()
    told = [str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML)]
    hint = next(text for text in told if "adapter_model.safetensors" in text)
    assert all("diffusers or kohya" in text for text in (tab.hub.id.info, tab.folder.info, hint))


def test_local_folders_are_closed_on_a_space(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SPACE_ID", "owner/name")
    with pytest.raises(gr.Error, match="not opened here"):
        library.open_folder(str(tmp_path))
    with pytest.raises(gr.Error, match="there is no adapter"):
        endpoints.inspect(str(tmp_path))
    with pytest.raises(AdapterError, match="cannot be used here"):
        shelf.checked_base(str(tmp_path))


def points() -> unit_figures.Points:
    """Two modules; cluster 0 of layer 0 mixes both adapters, everything else is pure."""
    return unit_figures.Points(
        xy=np.zeros((5, 2)),
        owner=np.array([0, 1, 1, 0, 1]),
        module=np.array([0, 0, 0, 1, 1]),
        modules=["m.0", "m.1"],
        layer=np.array([0, 0, 0, 1, 1]),
        rank_index=np.array([0, 0, 1, 0, 0]),
        norm=np.ones(5),
        cluster=np.array([0, 0, 1, 0, 1]),
    )


GROUPS = [figures.Group("A", 0), figures.Group("B", 1)]


def test_clusters_by_layer_counts_pure_and_mixed_ones() -> None:
    bars = {bar.name: list(bar.y) for bar in unit_figures.clusters_by_layer(points(), GROUPS).data}
    assert bars == {"A only": [0, 1], "B only": [1, 1], "2 mixed": [1, 0]}


def test_clusters_of_a_module_counts_units() -> None:
    figure = unit_figures.clusters_of_module(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]), GROUPS)
    assert {bar.name: list(bar.y) for bar in figure.data} == {"A": [1, 0], "B": [1, 2]}


def test_selected_units_grey_the_others_out() -> None:
    figure = unit_figures.unit_map(points(), GROUPS, "adapter", Marks(np.array([1, 4]), rings=(1,), links=((1, 4),)))
    assert [list(trace.selectedpoints) for trace in figure.data[:2]] == [[], [0, 2]]
    assert unit_figures.unit_map(points(), GROUPS, "adapter").data[0].selectedpoints is None


def test_the_map_knows_each_adapters_colour() -> None:
    figure = unit_figures.unit_map(points(), GROUPS, "adapter")
    assert [trace.marker.color for trace in figure.data[:2]] == [group.colour for group in GROUPS]


def test_a_page_that_lost_its_session_is_told_so() -> None:
    with pytest.raises(gr.Error, match="Reload"):
        library.pick(None, gr.EventData(None, {"key": "x"}))
    with pytest.raises(gr.Error, match="Reload"):
        next(comparing.start(None, [], None))


def test_a_dropped_lora_takes_its_examples_along() -> None:
    three = replace(session("past-tense", "sentiment", "language"), base=bases.BUILTIN)
    known = [column.id for column in columns(three, shelf.shelf(three))]
    past, sentiment, language = (pick.key for pick in three.picks)
    first, second, third = examples.first(three).splitlines()
    two = three.toggle(sentiment)
    assert examples.kept(two, known, f"{first}\n{second}\nmy own\n{third}") == f"{first}\nmy own\n{third}"
    assert examples.kept(two, known, "my own") == gr.skip()
    assert examples.kept(two, known, second) == f"{first}\n{third}", "what stood alone gives way to the others'"
    later = [column.id for column in columns(two, shelf.shelf(two))]
    assert examples.kept(two, later, second) == gr.skip(), "it was put there since"
    assert examples.kept(three, later, second) == gr.skip()
    none = two.toggle(past).toggle(language)
    assert examples.kept(none, later, f"{first}\n{third}") == ""
