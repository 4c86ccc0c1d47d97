"""What the page opens with is what it would compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components import kinds, work
from components.compare import ahead, comparing, drawing, examples
from components.compare import tab as compare
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.library import shelf
from components.map import maps
from components.session.state import Session, columns
from tests.serving import fresh_home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(fresh_home(tmp_path / "home")))


def known(kind: str) -> tuple[Session, Comparison | Gallery]:
    """The session that the page opens with, and its comparison as it was computed ahead."""
    session = ahead.first_session(kind)
    work.loading(session.base).base()
    planned, wanted = ahead.first_plan(session), compare.sampling(compare.LENGTH, 0, 0, "chat")
    if kind == kinds.IMAGE:
        wanted = drawing.read(20, drawing.own_guidance(session.base), "0", "", "", "")
        planned = replace(planned, seeds=wanted.seeds)
    found = ahead.found(session, planned, wanted)
    assert found is not None, f"something has changed since: python -m assets.build first --kind {kind}"
    return session, found


def test_the_texts_are_those_that_come_now() -> None:
    session, found = known(kinds.TEXT)
    _, now = ahead.compute(kinds.TEXT)
    assert isinstance(found, Comparison)
    assert isinstance(now, Comparison)
    assert (found.names, found.prompts, found.texts, found.tokens) == (now.names, now.prompts, now.texts, now.tokens)
    changed = session.weigh(session.picks[0].key, 0.5)
    planned = ahead.first_plan(changed)
    assert ahead.found(changed, planned, compare.sampling(compare.LENGTH, 0, 0, "chat")) is None


def test_the_pictures_are_those_that_are_drawn_now() -> None:
    _, found = known(kinds.IMAGE)
    _, now = ahead.compute(kinds.IMAGE)
    assert isinstance(found, Gallery)
    assert isinstance(now, Gallery)
    assert (found.names, found.prompts, found.seeds, found.settings) == (
        now.names,
        now.prompts,
        now.seeds,
        now.settings,
    )
    for at in now.places():
        pair = (each.files[at.variant][at.prompt][at.seed] for each in (found, now))
        ours, theirs = (np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in pair)
        assert np.abs(ours - theirs).mean() < 2, now.caption(at)


@pytest.mark.parametrize("kind", [kinds.TEXT, kinds.IMAGE])
def test_umap_is_there_at_once(kind: str) -> None:
    session = ahead.first_session(kind)
    for each in maps.kinds(session):
        view = maps.view(session, each, 1)
        laid = view.mapped.umap.ready
        assert laid is not None, f"{each}: python -m assets.build first --kind {kind}"
        assert laid.shape == (len(view.units), 2)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("kind", "guidance"), [(kinds.TEXT, 5), (kinds.IMAGE, 5)])
def test_it_is_shown_also_before_the_page_has_followed(kind: str, guidance: float, early: bool) -> None:
    """Asked for while its settings do not suit the base yet; and ``early`` also while the merge is not offered yet."""
    session, _ = known(kind)
    every = [column.id for column in columns(session, shelf.shelf(session))]
    offered = [each for each in every if not (early and each.startswith("merge:"))]
    assert (len(offered) < len(every)) == early
    chosen = [cell.id for cell in ahead.first_plan(session).cells if cell.id in offered]
    texts = [
        "variants",
        chosen,
        "",
        "",
        "",
        "",
        "",
        examples.first(session),
        compare.LENGTH,
        0,
        0,
        "chat",
        "Base",
        False,
        (),
    ]
    line, shown, found, *_, asked = comparing.at_once(
        session, 0, offered, None, *texts, 20, guidance, "0", "", "", "", ""
    )
    assert "Computed ahead" in line
    assert found.finished
    assert found.names[-1] in shown
    assert asked == 0
    texts[7] = "Something else"
    *_, asked = comparing.at_once(session, 0, offered, None, *texts, 20, guidance, "0", "", "", "", "")
    assert asked == 1
