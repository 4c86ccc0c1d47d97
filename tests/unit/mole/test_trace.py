"""What gates chose, as numbers for a picture, against loops over the gates' own choices."""

from __future__ import annotations

import math

import pytest
import torch

from lego import AdapterError
from mole.gate import GateConfig, Gates
from mole.gated import Route
from mole.sites import Site
from mole.trace import row_courses, trace

SITES = (Site("a", ("m",), ("m",)), Site("b", ("n",), ("n",)))


def test_choices_of_several_passes_side_by_side() -> None:
    gates = Gates(GateConfig(base_expert=True), ["x", "y"], SITES, [3, 3])
    first, second = Route(gates, [0, 1]), Route(gates, [0])
    # In an order of no meaning: the sites' own counts.
    first.chosen = {
        "b": torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]),
        "a": torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]),
    }
    second.chosen = {"a": torch.tensor([[0.25, 0.25, 0.5]]), "b": torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)}
    found = trace([first, second])
    assert found.sites == ("a", "b")
    assert found.experts == ("x", "y", "base")
    wanted = [[[1, 0, 0], [0, 1, 0], [0.25, 0.25, 0.5]], [[0.5, 0.5, 0], [0.2, 0.2, 0.6], [0, 0, 1]]]
    assert torch.equal(found.choices, torch.tensor(wanted))
    assert not found.choices.requires_grad
    assert found.shares.tolist() == [
        pytest.approx([sum(row[i] for row in gate) / 3 for i in range(3)], abs=1e-6) for gate in wanted
    ]
    each = [-sum(g * math.log(g) for g in row if g) for gate in wanted for row in gate]
    assert found.entropy == pytest.approx(sum(each) / 6, abs=1e-6)
    assert found.largest == pytest.approx(sum(max(row) for gate in wanted for row in gate) / 6, abs=1e-6)


def test_each_row_has_a_course_of_its_own_from_the_last_part_of_a_batch() -> None:
    gates = Gates(GateConfig(), ["x", "y"], SITES, [3, 3])
    rows, steps, parts = [1, 4], 3, 2
    torch.manual_seed(0)
    chosen = torch.rand(steps, parts * len(rows), 2)
    passes = [{"b": each} for each in chosen]
    route = Route(gates, rows, earlier=passes[:-1], chosen=passes[-1])
    before = {row: {"a": torch.rand(2)} for row in rows}
    found = row_courses(route, before)
    assert list(found) == rows
    for place, row in enumerate(rows):
        assert found[row].sites == ("a", "b")
        assert found[row].choices.shape == (steps, 2, 1, 2)
        for step in range(steps):
            assert torch.equal(found[row].choices[step, 0, 0], before[row]["a"])
            assert torch.equal(found[row].choices[step, 1, 0], chosen[step, len(rows) + place])
    with pytest.raises(AdapterError, match=r"^a: this gate has chosen nothing yet"):
        row_courses(route, {})
    only = row_courses(Route(gates, rows), {row: {"a": torch.ones(2), "b": torch.zeros(2)} for row in rows})
    assert only[4].choices.tolist() == [[[[1, 1]], [[0, 0]]]]
