"""What gates chose, as numbers for a picture, against loops over the gates' own choices."""

from __future__ import annotations

import math

import pytest
import torch

from mole.gate import GateConfig, Gates
from mole.gated import Route
from mole.sites import Site
from mole.trace import trace

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
