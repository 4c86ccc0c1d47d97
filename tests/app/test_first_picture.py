"""From texts to pictures in one click, and back: picks, prompts and what is offered follow the kind of base."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import bases, pipelines
from components import header, kinds
from components.compare import drawing
from components.compare import tab as compare
from components.library import cards, shelf
from components.session.state import Made, columns
from tests.tiny_pipelines import tiny_folder

AXES = "weight", "", "sum"
"""What the page sends of the axes: columns, rows, and the variant that is varied."""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in base that draws."""
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pipelines, "ASSETS", tiny_folder(tmp_path / "base", "sd"))


@pytest.mark.usefixtures("shipped")
def test_one_click_leads_to_pictures_and_one_back() -> None:
    start = shelf.start_session(bases.BUILTIN)
    start = start.join(Made(start.picks[0].key, "a merge of texts"))
    there, base, prompts, variants, known, *_ = header.switch(start, *AXES)
    assert there.base == base == bases.IMAGE
    assert 1 <= len(prompts.splitlines()) <= 2
    assert all(kinds.of_adapter(pick.key) == kinds.IMAGE for pick in there.picks)
    assert there.aside == start.picks
    shown = columns(kinds.own(there), shelf.shelf(there))
    assert not any(column.name in ("a merge of texts", *(gating.name for gating in start.gates)) for column in shown)
    for pick in start.picks:
        assert pick.key not in cards.draw(there)
    assert variants.value == [each for each in known if each != "average"]
    back, base, *_ = header.switch(there, *AXES)
    assert back.base == base == bases.BUILTIN
    assert back.picks == start.picks
    assert columns(kinds.own(back), shelf.shelf(back)) == columns(start, shelf.shelf(start))


@pytest.mark.usefixtures("shipped")
def test_settings_follow_the_kind_of_base() -> None:
    start = shelf.start_session(bases.BUILTIN)
    for session, draws in ((start, False), (shelf.on_base(start, bases.IMAGE), True)):
        writing, panel, against, *_ = compare.turn(session, None)
        assert (writing.visible, panel.visible) == (not draws, draws)
        assert against.visible == (not draws)
    assert header.offer(start).visible
    assert header.offer(start).value != header.offer(shelf.on_base(start, bases.IMAGE)).value


def test_the_first_pictures_are_drawn_as_suits_their_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the page does not show these settings yet, and at once where the base is there."""
    monkeypatch.setattr(drawing, "own_guidance", lambda base: 2.0)
    monkeypatch.setattr(drawing.aligning, "usual", lambda base: "judge")
    given = 20, 5.0, "0", "", "", ""
    assert drawing.suiting(bases.IMAGE, None, given, "") == ((20, 2.0, *given[2:]), "judge")
    assert drawing.suiting(bases.IMAGE, bases.IMAGE, given, "") == (given, "")
    monkeypatch.setattr(drawing, "_loaded", lambda base: True)
    start = shelf.start_session(bases.BUILTIN)
    *_, guidance, judge, suited = header.switch(start, *AXES)
    assert (guidance.value, judge, suited) == (2.0, "judge", bases.IMAGE)
