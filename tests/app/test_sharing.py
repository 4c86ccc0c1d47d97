"""A session as a recipe: in an address, in YAML, in exported files, opened again; what is damaged or endless is told; undo."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.bases import BUILTIN, IMAGE
from components import kinds
from components.compare import aligning, comparing, comparison, document, export
from components.compare.form import Form
from components.compare.votes import Vote
from components.library import shelf
from components.merge import making
from components.session import history, opening, restore, sharing
from components.session.history import History, Moment
from components.session.remembered import Remembered
from components.session.state import Column, Edited, Made, Named, Pick, Session, columns
from components.theme import css
from lego import AdapterError
from lego.unitset import UnitSet
from mole.pool import Weighting
from tests.serving import fresh_home

DRAWN = (20, 5.0, "0", "", "", "", "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own."""
    folder = tmp_path_factory.mktemp("sharing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKYARD_HOME", str(fresh_home(folder / "home")))
        yield folder


@pytest.fixture(scope="module")
def session(home: Path) -> Session:
    """A session with everything that one can have, on the built-in base."""
    start = shelf.start_session(BUILTIN)
    first, second, *_ = (pick.key for pick in start.picks)
    found = start.weigh(second, 0.5)
    merged = making.make(found.weights, "svd", {"rank": 4}, 0, "my merge")
    found = found.join(Made(merged.key, "my merge", (0, 1, 2)))
    module = "model.layers.3.self_attn.q_proj"
    muted, scaled = UnitSet.of([(first, module, 0), (first, module, 2)]), UnitSet.of([(second, module, 4)])
    found = found.edit(Edited("quiet", found.weights, muted, ((scaled, 0.5),)))
    found = found.mask(found.gates[0].key, (found.gates[0].experts[0],)) if found.gates else found
    return found.keep(Named("two", UnitSet.of([(second, module, 1), (second, module, 3)])))


def values(session: Session, mode: str = "variants", **changed: object) -> tuple[object, ...]:
    """What the Compare tab's components hold."""
    ids = [column.id for column in columns(session, shelf.shelf(session)) if column.id != "average"]
    own = {
        "mode": mode,
        "ids": ids,
        "x": f"weight:{session.picks[0].key}",
        "x_values": "0..1 | 0.5",
        "y": "temperature",
        "y_values": "0, 1",
        "subject": f"merge:{session.merges[0].key}",
        "prompts": "What?\nTwo\\nlines",
        "length": 12,
        "temperature": 0.5,
        "seed": 3,
        "format": "raw",
        "against": "Base",
        "blind": False,
        "scores": (),
        **changed,
    }
    return *own.values(), *DRAWN


@pytest.fixture(scope="module")
def recipe(session: Session) -> Remembered:
    """Its recipe, with axes."""
    return Form.of(values(session, "axes")).recipe(session, draws=False)


def test_the_same_session_comes_back_everywhere(session: Session, recipe: Remembered, tmp_path: Path) -> None:
    column = Column("base", "Base", Weighting())
    found = comparison.begin(BUILTIN, [column], ["</script><b>"], {"length": 4})
    as_json, as_page = export.comparison_files(found, recipe)
    report = export.report_file(document.page(session, recipe, found, (), (), css()))
    files = [export.session_file(recipe), as_json, as_page, report]
    for told in [opening.from_link(opening.to_link(recipe)), *(opening.recipe_in(file) for file in files)]:
        assert told == recipe


def test_a_stranger_finds_the_same_session(session: Session, recipe: Remembered) -> None:
    stranger = shelf.start_session(BUILTIN)
    found = restore.restore(stranger, recipe, restore.base_of(recipe.base))
    assert found.notes == ()
    for name in ("base", "picks", "merges", "edited", "named", "gates"):
        assert getattr(found.session, name) == getattr(session, name), name
    assert found.prompts == ("What?", "Two\nlines")
    assert (found.writing.length, found.writing.temperature, found.writing.seed, found.writing.format) == (
        12,
        0.5,
        3,
        "raw",
    )
    assert found.subject == f"merge:{session.merges[0].key}"
    *told, _ = sharing.bring_back(stranger, recipe), None
    last = list(told[0])[-1]
    assert len(last) == sharing.OUTPUTS
    assert all(len(step) == sharing.OUTPUTS for step in sharing.bring_back(stranger, recipe))


def test_a_plain_comparison_has_no_axes(session: Session) -> None:
    told = Form.of(values(session)).recipe(session, draws=False)
    assert told.axes is None
    assert [variant.name for variant in told.variants] == [
        column.name for column in columns(session, shelf.shelf(session)) if column.id != "average"
    ]


def test_who_judges_pictures_comes_back(session: Session, tmp_path: Path) -> None:
    drawing = shelf.start_session(IMAGE)
    form = replace(Form.of(values(session)), ids=("base",), prompts="a cat")
    usual, clip = aligning.usual(IMAGE), "openai/clip-vit-base-patch32"
    assert usual
    for judge, told, shown in ((usual, None, usual), ("", "", ""), (clip, clip, clip), (str(tmp_path), None, usual)):
        wanted = replace(form, judge=judge).recipe(drawing, draws=True)
        assert opening.from_link(opening.to_link(wanted)).judge == told
        *_, filled, _ = sharing.bring_back(drawing, wanted)
        assert filled[-1] == shown


def test_an_address_is_short(recipe: Remembered) -> None:
    link = opening.to_link(recipe)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", link)
    assert len(link) < 3000


def test_nothing_of_this_machine_is_told(recipe: Remembered, home: Path) -> None:
    assert str(home) not in recipe.to_yaml()


def packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(data)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("", "cut off"),
        ("ä", "carries no session"),
        ("abcd", "carries no session"),
        (packed(b"not json"), "carries no session"),
        (packed(b"[" * 100_000), "carries no session"),
        (packed(b"[]"), "is not a recipe"),
        (packed(b"{}"), "lacks"),
        (packed(b" " * 50_000_000)[:7000], "is cut off|unpacks to too much|carries no session"),
        (packed(b" " * 3_000_000), "unpacks to too much"),
        ("x" * 9000, "too long"),
    ],
)
def test_a_bad_address_is_told(link: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        opening.from_link(link)


def test_a_cut_address_is_told(recipe: Remembered) -> None:
    with pytest.raises(AdapterError, match=r"cut off|carries no session"):
        opening.from_link(opening.to_link(recipe)[:-40])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.yaml", "a: [", "is not YAML"),
        ("x.yaml", "method: lego\nsources: [a]\n", "lacks brickyard"),
        ("x.yaml", "!!python/object/apply:os.system ['true']", "is not YAML"),
        ("x.yaml", "brickyard: comparison\nbrickyard: comparison\n", "stands twice"),
        ("x.json", "{broken", "is not readable JSON"),
        ("x.html", "<!doctype html><html>nothing</html>", "carries no recipe"),
        ("x.html", f'<html><script type="application/json" id="{opening.PLACE}">{{</script>', "is not readable JSON"),
        ("x.png", "no picture", "is not a PNG picture"),
        ("x.yaml", "a" * (opening.MOST_BYTES + 1), "larger than any recipe"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=message):
        opening.recipe_in(file)


@pytest.mark.parametrize("weight", ["NaN", "Infinity", '"1; drop"', "true"])
def test_numbers_are_numbers(recipe: Remembered, weight: str) -> None:
    text = json.dumps(recipe.model_dump(mode="json")).replace('"weight": 0.5', f'"weight": {weight}')
    with pytest.raises(AdapterError, match="weight"):
        Remembered.check(json.loads(text), "dropped")


def test_every_missing_file_is_named(recipe: Remembered) -> None:
    gone = [
        each.model_copy(update={"key": "0" * 11 + str(i), "builtin": False})
        for i, each in enumerate(recipe.adapters[:2])
    ]
    other = recipe.model_copy(update={"adapters": [*gone, *recipe.adapters[2:]]})
    with pytest.raises(AdapterError) as told:
        restore.restore(shelf.start_session(BUILTIN), other, BUILTIN)
    assert all(each.name in str(told.value) and each.sha256[:12] in str(told.value) for each in gone)


def test_a_report_needs_nothing_else(session: Session, recipe: Remembered) -> None:
    found = comparison.begin(BUILTIN, columns(session, shelf.shelf(session)), ["Hi <b>"], {"length": 4})
    cast = (Vote("Hi", 0, "Base", "my merge", "right"),)
    told = document.page(session, recipe, replace(found, finished=True), (), cast, css())
    for part in ("Map", "Fidelity", "Comparison", "Votes", "Recipe"):
        assert f'aria-label="{part}"' in told
    assert "<b>" not in told.split('aria-label="Comparison"')[1].split("<header>")[0].replace("<b><", "<")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', told.replace('xmlns="http', ""))
    assert "@import" not in told
    assert "url(" not in told.replace("url(data:", "")
    drawn = len(re.findall("<circle", told)) - len(session.picks)
    assert drawn == int(re.search(r"(\d+) of \d+ units", told)[1]) > 100  # type: ignore[index]
    assert len(told) < 2_000_000


def test_making_a_report_says_how_far_it_is(session: Session, recipe: Remembered) -> None:
    found = comparison.begin(BUILTIN, columns(session, shelf.shelf(session)), ["Hi"], {"length": 4})
    given = session, recipe, replace(found, finished=True), (), None, *values(session, against="Base")
    *told, (line, button) = comparing.report(*given)
    assert [re.search("Making the report: ([A-Z][a-z]+)", each)[1] for each, _ in told] == [  # type: ignore[index]
        "Map", "Fidelity", "Comparison", "Scores", "Votes", "Recipe"
    ]  # fmt: skip
    assert all("data-halt" in each for each, _ in told), "its Stop"
    assert "aria-valuenow" in told[2][0]
    assert line == ""
    assert opening.recipe_in(Path(button.value["path"])) == recipe
    stopped = comparing.report(*given)
    next(stopped)
    stopped.close()


def start() -> Session:
    return Session("base", (Pick("a" * 12),))


FORM = Form("variants", ["base"], "", "", "", "", "base", "Hi", 32, 0.0, 0, "chat", "", False, (), DRAWN[:-1], "")


def moment(session: Session, **changed: object) -> Moment:
    return Moment(session, replace(FORM, **changed))  # type: ignore[arg-type]


def test_undo_and_redo_walk_through_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "turned", lambda session: session)
    states = [moment(start())]
    held = History(present=states[0])
    for i in range(5):
        session = states[-1].session.weigh("a" * 12, float(i))
        states += [moment(session), moment(session, length=i + 1)]
        held = held.record(states[-2], 10.0 * i).enter(states[-1], 10.0 * i + 1)
    assert held.record(states[-1], 99) == held.enter(states[-1], 99) == held
    for state in reversed(states[:-1]):
        held = held.undo(0)
        assert held.present == state
    assert held.undo(0) == held
    for state in states[1:]:
        held = held.redo(0)
        assert held.present == state
    assert held.redo(0) == held
    held = held.undo(0).record(other := moment(start().weigh("a" * 12, 9.0)), 0)
    assert (held.present, held.future, held.past[-1]) == (other, (), states[-2])


def test_a_burst_of_typing_is_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "turned", lambda session: session)
    held = History(present=moment(start()))
    for i, text in enumerate(("a", "a c", "a cat")):
        held = held.enter(moment(start(), prompts=text), 10 + i)
    assert (len(held.past), held.present) == (1, moment(start(), prompts="a cat"))
    held = held.enter(moment(start(), prompts="a cat", length=8), 12.5)  # another setting
    held = held.enter(moment(start(), prompts="a dog", length=8), 13)
    held = held.enter(moment(start(), prompts="a dog!", length=8), 13 + 2 * history.TYPING)  # later
    assert [each.form.prompts for each in held.past] == ["Hi", "a cat", "a cat", "a dog"]


def test_what_follows_a_change_by_itself_belongs_to_it() -> None:
    held = History(present=moment(start()))
    session = start().weigh("a" * 12, 2.0)
    held = held.record(moment(session), 0).follow(moment(session, ids=["base", "new"]))
    assert (held.past, held.present) == ((moment(start()),), moment(session, ids=["base", "new"]))
    assert held.undo(1).follow(moment(start(), ids=[])).future == (held.present,)
    assert held.follow(moment(start())) == held  # of a session that is not there any more
    followed = held.undo(1).follow(moment(start(), ids=[]))
    again = followed.record(moment(start(), ids=[]), 1)  # the page tells of the session that undo brought back
    assert (again.past, again.future) == ((), (held.present,))


def test_a_change_counts_in_whichever_order_the_page_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "turned", lambda session: session)
    before, after = moment(start()), moment(start(), length=64)
    one = History(present=before).enter(after, 1).follow(after)
    other = History(present=before).follow(after).enter(after, 1)
    assert one == other == History((before,), after, since=1)
    assert one.undo(2).follow(before).redo(3).present == after


def test_history_is_bounded_and_a_base_puts_picks_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kinds, "turned", lambda session: replace(session, picks=()) if session.base == "other" else session
    )
    held = History(present=moment(start()))
    for i in range(3 * history.MOST):
        held = held.record(moment(start().weigh("a" * 12, float(i + 2))), i)
    assert len(held.past) == history.MOST
    before = held.present
    held = held.record(moment(replace(start(), base="other")), 0)
    held = held.record(moment(replace(start(), base="other", picks=())), 0)  # by itself: the pick does not fit
    assert held.undo(0).present == before
    assert History().undo(0) == History()


def test_a_box_of_an_axis_that_was_never_shown_is_no_error(session: Session) -> None:
    assert sharing.link_of(session, *values(session, "axes", y=None, y_values=None))


def test_undone_settings_are_shown_as_they_were(session: Session) -> None:
    told = values(session, "axes")
    held, undo, redo = history.begin(session, *told)
    assert (undo.interactive, redo.interactive) == (False, False)
    held, undo, redo = history.enter(session, held, *values(session, "variants", prompts="else", length=40))
    assert (undo.interactive, redo.interactive) == (True, False)
    found, undo, redo, moved, base, variants, known, prompts, mode, *rest = history.back(held)
    assert (undo.interactive, redo.interactive) == (False, True)
    assert found.present == Moment.of(session, told)
    assert isinstance(hash(found), int)  # the page tells by it whether the history has changed
    assert {"__type__"} == set(moved) == set(base)  # neither has changed
    assert (prompts, mode, rest[5:9]) == (told[7], "axes", [12, 0.5, 3, "raw"])
    assert variants.value == told[1]
    assert set(told[1]) < set(known)
    assert [rest[1].value, rest[3].value] == ["0..1 | 0.5", "0, 1"]
    assert tuple(rest[9:]) == DRAWN[:-1]
    assert len(history.back(held)) == 5 + history.SETTINGS == len(history.back(None))


def test_marks_follow_the_chosen_column() -> None:
    told = [Column(name, name, Weighting()) for name in ("Base", "one", "two")]
    found = comparison.begin(BUILTIN, told, ["Hi"], {})
    found = replace(found, texts=(("a cat",), ("a dog",), ("a big dog",)), ended=((True,),) * 3, finished=True)
    assert comparing.redraw(found, "Base").count("<mark>") == 2
    assert "a <mark>big </mark>dog" in comparing.redraw(found, "one")
    assert "<mark>" not in comparing.redraw(found, "")
