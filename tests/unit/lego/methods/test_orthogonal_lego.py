"""LEGO with orthogonal bricks: its limits are known methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, Factors
from tests.conftest import make_adapter, mixed_adapters

Q = "model.layers.1.self_attn.q_proj"


def distance(one: Adapter, other: Adapter) -> float:
    deltas = [(one[m].delta().double(), other[m].delta().double()) for m in one.modules]
    return float(sum(((x - y) ** 2).sum() for x, y in deltas) / sum((y**2).sum() for _, y in deltas)) ** 0.5


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0.4, -2]])
def test_every_unit_its_own_cluster_is_task_singular_vectors(weights: list[float]) -> None:
    adapters = mixed_adapters()
    merged = lego.merge(adapters, method="orthogonal_lego", weights=weights, k="all")
    assert distance(merged, lego.merge(adapters, method="tsv", weights=weights)) < 1e-5


def test_copies_add_up() -> None:
    """Like units are one cluster: three copies give three times the adapter, where plain LEGO gives it once."""
    one = make_adapter("one", 5)
    merged = lego.merge([one, one, one], method="orthogonal_lego", k="r")
    assert distance(merged, lego.merge([one], method="sum", weights=[3])) < 1e-4


def test_of_orthogonal_adapters_the_strongest_directions_stay() -> None:
    """Nothing is alike: with k = r the merge is the best of that rank if each cluster holds directions orthogonal on both sides."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(20, 6, generator=generator))[0] for _ in range(2))
    sigma = torch.tensor([9.0, 5, 1, 8, 4, 2])
    parts = [slice(0, 3), slice(3, 6)]
    adapters = [
        Adapter.from_factors(str(j), {"m": Factors(right[:, own].T * sigma[own, None], left[:, own])})
        for j, own in enumerate(parts)
    ]
    merged = lego.merge(adapters, method="orthogonal_lego", k="all")
    exact = lego.merge(adapters, method="sum")
    assert distance(merged, exact) < 1e-5
    values = np.linalg.svd(lego.merge(adapters, method="orthogonal_lego", k=3)["m"].delta().numpy(), compute_uv=False)[
        :3
    ]
    assert all(np.isclose(sigma, value, rtol=1e-4).any() for value in values)


def test_the_merged_directions_are_orthogonal() -> None:
    merged = lego.merge(mixed_adapters(), method="orthogonal_lego", k=5)[Q]
    down, up = merged.down @ merged.down.T, merged.up.T @ merged.up
    for gram in (down, up):
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-4, rtol=1e-3)
