"""LEGO's geometries: what may not matter does not, and every step equals its plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, Factors
from lego.geometry import align, arrange, balance, best_rank_one, singular
from lego.methods.lego import peak
from lego.units import pool
from tests.conftest import equal_adapters, make_adapter, mixed_adapters

Q = "model.layers.1.self_attn.q_proj"
OTHERS = ["balanced", "singular", "rank-one"]


def distance(one: Adapter, other: Adapter) -> float:
    deltas = [(one[m].delta().double(), other[m].delta().double()) for m in one.modules]
    return float(sum(((x - y) ** 2).sum() for x, y in deltas) / sum((y**2).sum() for _, y in deltas)) ** 0.5


def refactored(adapter: Adapter, change: str) -> Adapter:
    """The same updates by other factors."""
    generator = torch.Generator().manual_seed(9)
    found = {}
    for module in adapter.modules:
        factors = adapter[module]
        if change == "signs":
            mix = torch.diag(torch.randint(0, 2, (factors.rank,), generator=generator) * 2.0 - 1)
        elif change == "scales":
            mix = torch.diag(torch.rand(factors.rank, generator=generator) * 3 + 0.2)
        else:
            mix = torch.randn(factors.rank, factors.rank, generator=generator) + 2 * torch.eye(factors.rank)
        found[module] = Factors(mix @ factors.down, factors.up @ torch.linalg.inv(mix), factors.scale)
    return Adapter.from_factors(adapter.name, found)


@pytest.mark.parametrize(
    ("geometry", "change", "same"),
    [
        ("paper", "signs", False),
        ("paper", "scales", False),
        ("balanced", "signs", True),
        ("balanced", "scales", True),
        ("balanced", "mixing", False),
        ("singular", "signs", True),
        ("singular", "scales", True),
        ("singular", "mixing", True),
        ("rank-one", "signs", True),
        ("rank-one", "scales", True),
        ("rank-one", "mixing", False),
    ],
)
def test_what_a_geometry_does_not_see(geometry: str, change: str, same: bool) -> None:
    adapters = mixed_adapters()
    merged = lego.merge(adapters, geometry=geometry, k=5, weights=[1, 0.6, -1])
    moved = [refactored(adapter, change) for adapter in adapters]
    assert distance(moved[0], adapters[0]) < 1e-5
    again = lego.merge(moved, geometry=geometry, k=5, weights=[1, 0.6, -1])
    assert (distance(again, merged) < 1e-3) == same


@pytest.mark.parametrize("geometry", OTHERS)
def test_every_unit_its_own_cluster_and_copies(geometry: str) -> None:
    """Gold tests 1 to 3 hold in every geometry."""
    adapters = mixed_adapters()
    exact = lego.merge(adapters, method="sum")
    assert distance(lego.merge(adapters, geometry=geometry, k="all", output_reweighting=False), exact) < 1e-5
    one = make_adapter("one", 5)
    assert distance(lego.merge([one, one, one], geometry=geometry, k="r"), one) < 1e-4
    assert distance(lego.merge([one], geometry=geometry, k="r"), one) < 1e-4


@pytest.mark.parametrize("geometry", OTHERS)
def test_arranging_changes_no_update(geometry: str) -> None:
    units = pool(mixed_adapters(), Q, [1, 0.5, -2])
    arranged = arrange(units, geometry)
    torch.testing.assert_close(arranged.up @ arranged.down, units.up @ units.down, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.linalg.vector_norm(arranged.down, dim=2),
        torch.linalg.vector_norm(arranged.up, dim=1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_singular_units_are_the_singular_triplets() -> None:
    adapters = mixed_adapters()
    units = singular(pool(adapters, Q))
    for j, adapter in enumerate(adapters):
        left, values, right = np.linalg.svd(adapter[Q].delta().double().numpy())
        own = units.owner == j
        for i in range(int(own.sum())):
            found = torch.outer(units.up[0][:, own][:, i], units.down[0][own][i]).numpy()
            np.testing.assert_allclose(found, values[i] * np.outer(left[:, i], right[i]), atol=1e-5)


def test_similar_units_point_the_same_way() -> None:
    """Noisy copies with random signs come out with one sign for each group, also where the largest entry of a does not tell it."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 60, generator=generator)
    centres[:, 0], centres[:, 1] = 5, -5
    signs = torch.randint(0, 2, (24,), generator=generator) * 2 - 1
    rows = (centres.repeat(6, 1) + 0.1 * torch.randn(24, 60, generator=generator)) * signs[:, None]
    one = Adapter.from_factors("one", {"m": Factors(rows[:, :30].clone(), rows[:, 30:].T.clone())})
    aligned = align(pool([one], "m"))
    cosine = torch.corrcoef(torch.cat([aligned.down[0], aligned.up[0].T], 1))
    assert all(float(cosine[i, j]) > 0.5 for i in range(24) for j in range(24) if i % 4 == j % 4)


def test_balance_leaves_zeros_alone() -> None:
    zero = Factors(torch.zeros(2, 5), torch.ones(4, 2))
    balanced = balance(pool([Adapter.from_factors("zero", {"m": zero})], "m"))
    assert not balanced.down.any()
    assert not balanced.up.any()


@pytest.mark.parametrize("clusters", [1, 3, 5])
def test_the_representative_is_the_best_rank_one_matrix(clusters: int) -> None:
    units = arrange(pool(mixed_adapters(), [Q, Q.replace("1", "0")], [1, 0.5, -2]), "rank-one")
    generator = torch.Generator().manual_seed(clusters)
    labels = torch.stack([torch.randperm(units.units, generator=generator) % clusters for _ in range(2)])
    member = torch.nn.functional.one_hot(labels, clusters).float()
    left, right = best_rank_one(units, member)
    down, up = left @ units.down, units.up @ right.mT
    for m in range(2):
        for c in range(clusters):
            own = labels[m] == c
            mean = (units.up[m][:, own] @ units.down[m][own] / own.sum()).double().numpy()
            u, s, v = np.linalg.svd(mean)
            found = torch.outer(up[m][:, c], down[m][c]).numpy()
            np.testing.assert_allclose(found, s[0] * np.outer(u[:, 0], v[0]), atol=2e-5 * s[0])
            assert float(down[m][c].norm()) == pytest.approx(float(up[m][:, c].norm()), rel=1e-3)


def test_rank_one_clusters_by_the_distance_of_the_matrices() -> None:
    units = arrange(pool(equal_adapters(), Q), "rank-one")
    matrices = torch.stack([torch.outer(b, a).flatten() for a, b in zip(units.down[0], units.up[0].T, strict=True)])
    torch.testing.assert_close(units.gram[0], matrices @ matrices.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("geometry", OTHERS)
def test_reweighting_works_on_the_arranged_units(geometry: str) -> None:
    """The factor is never below 1 where the representative is a mean, and peaks come out as the members' mean."""
    from lego.cluster import partition
    from lego.methods.lego import lego as lego_method

    units = arrange(pool(mixed_adapters(), Q), geometry)
    labels = partition(units, 5)
    down, up = lego_method(pool(mixed_adapters(), Q), k=5, geometry=geometry, output_reweighting=False)
    peaks, own = peak(down, up)[0], peak(units.down, units.up)[0]
    for cluster in range(5):
        assert float(peaks[cluster]) == pytest.approx(float(own[labels[0] == cluster].mean()), rel=1e-4)
