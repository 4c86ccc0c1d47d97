"""What the Merge tab says of a merge: a name of its own, and whether it is of what is picked now."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.bases import BUILTIN
from components.library import shelf
from components.merge import making, reports, tab
from components.session.state import Made, Session
from tests.serving import fresh_home


def test_merges_never_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tab.kinds, "own", lambda session: session)
    session = Session(BUILTIN)
    for key in "abc":
        session, _ = tab.join(session, Made(key, "LEGO"))
    assert [made.name for made in session.merges] == ["LEGO", "LEGO (2)", "LEGO (3)"]
    again, _ = tab.join(session, Made("b", "LEGO"))  # the same merge again
    assert [(made.key, made.name) for made in again.merges] == [("a", "LEGO"), ("c", "LEGO (3)"), ("b", "LEGO (2)")]


def test_a_report_says_whether_it_is_of_what_is_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(fresh_home(tmp_path / "home")))
    session = shelf.start_session(BUILTIN)
    made = making.first(session.weights, (0, 1, 2))
    session = session.join(made)
    report = making.report_of(made.key)
    first = session.picks[0].key
    assert reports.current(report, session)
    assert not reports.current(report, session.weigh(first, 0.5))
    assert not reports.current(report, session.toggle(first))
    told = "Other adapters or weights are picked now"
    assert told not in tab.show(session, made.key, "rank")[0]
    assert told in tab.show(session.toggle(first), made.key, "rank")[0]
