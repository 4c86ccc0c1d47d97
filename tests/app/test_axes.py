"""Axes of a comparison: what may be typed, which columns come out, what is merged once, what lies where; and that they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends import library
from backends.bases import BUILTIN
from backends.image import Drawing
from backends.text import Sampling
from components.compare import axes, comparison, pictures, plan, running
from components.compare.plan import Plan, Wanted
from components.library import shelf
from components.merge import making
from components.session.state import Column, Made, Session, columns
from components.work import loading
from lego import AdapterError
from mole.pool import Weighting
from tests.serving import fresh_home
from tests.tiny_pipelines import tiny_folder, write_lora


def words(part: str) -> str:
    return part


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1, 2, 4", ["1", "2", "4"]),
        ("4..16 | 4", ["4", "8", "12", "16"]),
        ("4..15|4", ["4", "8", "12"]),
        ("0..1 | 0.1", ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        ("-1..1", ["-1", "0", "1"]),
        ("2; 1..3, 2", ["2", "1", "3"]),
    ],
)
def test_lists_and_ranges(text: str, values: list[str]) -> None:
    assert axes.typed(text, words) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no values"),
        (" , ", "has no values"),
        ("4..", "is no range"),
        ("a..b", "is no range"),
        ("1 | 2", "is no range"),
        ("16..4", "goes down"),
        ("1..4 | 0", "step that does not go up"),
        ("0..1000000000", "too many values"),
        ("0..1 | 0.000001", "too many values"),
    ],
)
def test_a_bad_range_is_told(text: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        axes.typed(text, words)


@pytest.mark.parametrize("text", ["hot", "3", "-1", "nan", "1e3"])
def test_values_outside_the_limits_are_told(text: str) -> None:
    with pytest.raises(AdapterError, match=r"temperature"):
        axes.numbers(text, name="the temperature", low=0, high=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("axes")
        patch.setenv("BRICKYARD_HOME", str(fresh_home(folder / "home")))
        yield folder


@pytest.fixture(scope="module")
def session(home: Path) -> Session:
    """Two LoRAs of a tiny pipeline picked, and their LEGO merge."""
    base = str(tiny_folder(home / "tiny-base", "sd"))
    loading(base).base()
    keys = [
        library.add_folder(write_lora(home / name, "sd", i, "peft")).key for i, name in enumerate(("one", "two"), 1)
    ]
    found = Session(base).toggle(keys[0]).toggle(keys[1])
    for key in keys:
        found = found.add(key)
    return found.join(Made(making.make(found.weights, "lego", {}, 0, "mine").key, "mine", (0, 1)))


def made(session: Session, x: Wanted, y: Wanted | None = None, subject: str = "mine", **given: object) -> Plan:
    """A plan of two prompts and one seed."""
    every = columns(session, shelf.shelf(session))
    named = next(column for column in every if column.name == subject)
    chosen = given.pop("chosen", every)
    facts = {"prompts": ["a fox", "an owl"], "seeds": (3,), "settings": {}, **given}
    return plan.of_axes(session, (x, y or Wanted("")), named, chosen, **facts)  # type: ignore[arg-type]


def test_a_grid_of_method_and_k_merges_each_once(session: Session) -> None:
    found = made(session, Wanted("method", "lego, svd"), Wanted("k", "2, 4"))
    assert found.names == ("LoRA-LEGO".join(["Method ", ", k 2"]), "Method LoRA-LEGO, k 4", *found.names[2:])
    expected = [("lego", "k", 2), ("lego", "k", 4), ("svd", "rank", 2), ("svd", "rank", 4)]
    assert [
        (m.method, name, dict(m.parameters)[name]) for m, (_, name, _) in zip(found.merges, expected, strict=True)
    ] == expected
    assert all(merge.weights == session.weights for merge in found.merges)
    assert found.count == 4 * 2


def test_the_values_that_made_the_merge_need_no_other(session: Session) -> None:
    found = made(session, Wanted("k", "2r, 4"))
    assert [cell.merging is None for cell in found.cells] == [True, False]
    assert found.cells[0].weighting == Weighting(((session.merges[0].key, 1.0),))


def test_expensive_axes_are_outermost(session: Session) -> None:
    found = made(session, Wanted("steps", "1, 2"), Wanted("k", "2, 4"))
    assert [
        (merge and dict(merge.parameters)["k"], [dict(run.settings)["steps"] for run in runs])
        for merge, runs in found.groups
    ] == [
        (2, [1, 2]),
        (4, [1, 2]),
    ]


def test_weights_are_rows_of_one_batch_unless_something_is_merged(session: Session) -> None:
    key, other = (pick.key for pick in session.picks)
    summed = made(session, Wanted(f"weight:{key}", "0..1 | 0.5"), subject="Exact sum")
    assert [dict(cell.resolved({}).adapters) for cell in summed.cells] == [{key: w, other: 1.0} for w in (0, 0.5, 1)]
    assert [len(runs) for _, runs in summed.groups] == [1]
    merged = made(session, Wanted(f"weight:{key}", "0.5, 1"))
    assert [cell.merging and dict(cell.merging.weights) for cell in merged.cells] == [{key: 0.5, other: 1.0}, None]
    whole = made(session, Wanted("weight", "0.5, 2"))
    assert [cell.resolved({}) for cell in whole.cells] == [Weighting(((session.merges[0].key, w),)) for w in (0.5, 2)]


def test_prompts_and_seeds_lie_in_their_own_place(session: Session) -> None:
    found = made(session, Wanted("prompt"), Wanted("seed", "5, 7"))
    assert (found.names, found.prompts, found.seeds) == (("mine",), ("a fox", "an owl"), (5, 7))
    assert found.layout
    assert found.layout.place(1, 0) == {"variant": 0, "prompt": 1, "seed": 0}
    across = made(session, Wanted("variant"), Wanted("weight", "1, 2"))
    names = [column.name for column in columns(session, shelf.shelf(session))]
    assert [across.names[across.layout.place(i, 1)["variant"]] for i in range(len(names))] == [  # type: ignore[union-attr]
        f"{name}, Weight of all 2" for name in names
    ]


BAD = [
    ((Wanted(""),), {}, "no axis is chosen"),
    ((Wanted("k", "2"), Wanted("k", "4")), {}, "columns and rows both show k"),
    ((Wanted("colour", "red"),), {}, "colour: this axis is not on offer"),
    ((Wanted("k", "many"),), {}, "axis k: k cannot be 'many'"),
    ((Wanted("k", ""),), {}, "axis k: the axis has no values"),
    ((Wanted("method", "magic"),), {}, "axis Method: there is no merge method 'magic'"),
    ((Wanted("method", "ties"), Wanted("k", "2, 4")), {}, "TIES.* has no k"),
    ((Wanted("steps", "0"),), {}, "axis Steps: steps cannot be 0"),
    ((Wanted("weight", "1, 2"),), {"subject": "Base"}, "Weight of all changes nothing here"),
]


@pytest.mark.parametrize(("wanted", "given", "message"), BAD)
def test_a_bad_axis_is_a_message(session: Session, wanted: tuple, given: dict, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        made(session, *wanted, **given)


def test_a_seed_without_noise_is_told() -> None:
    texts = shelf.start_session(BUILTIN)
    base = Column("base", "Base", Weighting())
    for temperature, fine in ((0.0, False), (0.7, True)):
        settings = {"temperature": temperature, "seed": 0}
        arguments = (texts, (Wanted("seed", "0..3"), Wanted("")), base, [], ["hi"], (), settings)
        if fine:
            assert len(plan.of_axes(*arguments).cells) == 4  # type: ignore[arg-type]
        else:
            with pytest.raises(AdapterError, match="Seed changes nothing"):
                plan.of_axes(*arguments)  # type: ignore[arg-type]


def test_too_much_is_refused(session: Session) -> None:
    with pytest.raises(AdapterError, match="too many"):
        running.check(made(session, Wanted("weight", "0..3 | 0.1"), Wanted("steps", "1..4")), draws=True)


def test_a_grid_of_pictures_shows_what_its_labels_say(session: Session) -> None:
    wanted = Drawing(steps=2, guidance=3.0)
    planned = made(session, Wanted("k", "1, 2r"), Wanted("steps", "1, 2"), prompts=["a fox"])
    *_, (line, found) = running.pictures(session.base, planned, wanted, "")
    assert "1 merge, 4 columns × 1 prompt × 1 seed in" in line
    assert found.finished
    key = making.make(session.weights, "lego", {"k": 1}, 0, "").key
    assert [w.adapters[0][0] for w in found.weightings] == [key, key, session.merges[0].key, session.merges[0].key]
    alone = []
    for weights, steps in ((key, 1), (key, 2), (session.merges[0].key, 1), (session.merges[0].key, 2)):
        side = plan.side_by_side([Column("x", "x", Weighting(((weights, 1.0),)))], ["a fox"], (3,))
        *_, (_, one) = running.pictures(session.base, side, replace(wanted, steps=steps), "")
        alone.append(one.files[0][0][0])
    assert [files[0][0] for files in found.files] == alone
    drawn = pictures.draw(found)
    assert drawn.index("<h3") < drawn.index("Steps 1</h3>") < drawn.index("k 1, Steps 1") < drawn.index("k 2r, Steps 1")
    assert drawn.index("k 2r, Steps 1") < drawn.index("Steps 2</h3>") < drawn.index("k 1, Steps 2")


@pytest.mark.model
def test_a_grid_of_texts_is_what_each_gives_alone() -> None:
    texts = shelf.start_session(BUILTIN)
    every = columns(texts, shelf.shelf(texts))
    total = next(column for column in every if column.id == "sum")
    wanted, prompts = Sampling(max_new_tokens=6, temperature=0.9, seed=5), ["Tell me about rain."]
    sides = Wanted("weight", "0.5, 1"), Wanted("temperature", "0, 0.9")
    planned = plan.of_axes(texts, sides, total, [], prompts, (), {"temperature": 0.9, "seed": 5})
    *_, (_, found) = running.texts(BUILTIN, planned, wanted)
    assert found.names == tuple(f"Weight of all {w}, Temperature {t}" for w in ("0.5", "1") for t in ("0", "0.9"))
    for i, (weight, heat) in enumerate(((0.5, 0), (0.5, 0.9), (1, 0), (1, 0.9))):
        weighting = Weighting(tuple((key, weight) for key, _ in texts.weights))
        side = plan.side_by_side([Column("x", "x", weighting)], prompts)
        *_, (_, one) = running.texts(BUILTIN, side, replace(wanted, temperature=heat))
        assert found.texts[i] == one.texts[0]
    told = found.data()["variants"]
    assert [variant["temperature"] for variant in told] == [0, 0.9, 0, 0.9]
    drawn = comparison.draw(found, marks=True, against=found.names[0])
    assert drawn.index("Temperature 0</h3>") < drawn.index("Temperature 0.9</h3>")
