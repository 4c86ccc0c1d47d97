"""Scores stand above the columns that weigh what was scored, and in the table."""

from __future__ import annotations

from dataclasses import replace

from backends.score import Scores
from components.compare import comparison, scoring
from components.compare.layout import VARIANT, Layout, Side
from components.session.state import Column
from mole.pool import Weighting

ONE, TWO = Weighting((("a", 1.0),)), Weighting((("a", 0.5),))


def columns() -> list[Column]:
    return [Column("0", "cold", ONE, (0,)), Column("1", "warm", ONE, (0,)), Column("2", "half", TWO, (1,))]


def test_scores_stand_above_what_weighs_the_same() -> None:
    side = Side("Column", ("cold", "warm", "half"), VARIANT)
    found = comparison.begin("base", columns(), ["Hi"], {}, layout=Layout(side))
    chosen = scoring.distinct(found)
    assert [(column.name, column.weighting) for column in chosen] == [("cold", ONE), ("half", TWO)]
    hits = (True, True, True, False), (True, False, True, False)
    state = Scores(("cold", "half"), (0.75, 0.5), (1.25, 2.5), hits, 8, 8, finished=True, seconds=1.0)
    scores = scoring.scored(chosen, {"<task>": state})
    drawn = comparison.draw(replace(found, finished=True), marks=False, scores=scores)
    sections = drawn.split("<section")[1:]
    assert ["75%" in section for section in sections] == [True, True, False]
    assert ["50%" in section for section in sections] == [False, False, True]
    assert "&lt;task&gt;" in drawn
    assert "<task>" not in drawn
    low, high = state.interval(0)
    assert f"{low:.0%}–{high:.0%}" in sections[0]
    told = scoring.table(scores)
    assert told.index("75%") < told.index("1.25 nats") < told.index("50%") < told.index("2.50 nats")
