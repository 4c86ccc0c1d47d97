"""k-means on Gram matrices: distances, inertia, empty clusters, order independence."""

from __future__ import annotations

import pytest
import torch

from lego.cluster import fill_empty, first_rows, lloyd, partition, plus_plus, squared_distances, to_centroids
from lego.units import Pool
from tests.reference import kmeans_inertia


def points(batch: int = 3, units: int = 20, width: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, units, width, generator=torch.Generator().manual_seed(seed))


def pool_of(x: torch.Tensor, seed: int = 0) -> Pool:
    """A pool whose units are the given points (b = 0)."""
    batch, units, _ = x.shape
    names = tuple(f"layers.{i}.q" for i in range(batch))
    return Pool(
        names,
        down=x,
        up=torch.zeros(batch, 1, units),
        weight=torch.ones(batch, units),
        scale=torch.ones(batch, units),
        owner=torch.zeros(units, dtype=torch.long),
        total_weight=torch.ones(batch),
        seed=seed,
    )


def squares(x: torch.Tensor) -> torch.Tensor:
    """Squared distances of the points, from their differences."""
    return (x[:, :, None] - x[:, None]).square().sum(3)


def test_distances_from_inner_products() -> None:
    x = points()
    torch.testing.assert_close(squared_distances(x @ x.mT), squares(x), rtol=1e-4, atol=1e-4)
    copies = 1000 * x[:, :1].expand(-1, 3, -1) * (1 + 1e-8)
    assert not squared_distances(copies @ copies.mT).any()


def test_distances_to_centroids() -> None:
    """Two restarts of three modules, each with its own clusters."""
    x = points()
    generator = torch.Generator().manual_seed(2)
    labels = torch.stack([torch.randperm(20, generator=generator).remainder(4) for _ in range(6)])
    found = to_centroids(squares(x).flatten(0, 1), first_rows(3, 2, 20, x.device), labels, 4)
    for row, label in enumerate(labels):
        module = x[row // 2]
        centroids = torch.stack([module[label == c].mean(0) for c in range(4)])
        torch.testing.assert_close(found[row], torch.cdist(centroids, module) ** 2, rtol=1e-4, atol=1e-4)


def test_lloyd_stops_at_a_fixed_point_without_empty_clusters() -> None:
    """Whatever converges first, each run ends where no unit is nearer to another centroid, with its own inertia."""
    x = points(batch=5)
    centres = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(s))[:5] for s in range(15)])
    labels, inertia = lloyd(squares(x), centres.view(5, 3, 5))
    for module, runs, values in zip(x, labels, inertia, strict=True):
        for label, value in zip(runs, values, strict=True):
            centroids = torch.stack([module[label == c].mean(0) for c in range(5)])
            assert torch.equal(torch.cdist(module, centroids).argmin(1), label)
            assert float(value) == pytest.approx(kmeans_inertia(module.numpy(), label.numpy()), rel=1e-4)


def test_empty_clusters_take_the_farthest_unit() -> None:
    distance = torch.tensor([[[1.0, 5, 2, 9], [9, 9, 9, 0.5], [9, 9, 9, 9]]])
    filled = fill_empty(distance.argmin(1), distance)
    assert filled.tolist() == [[0, 2, 0, 1]]


def test_seeding_never_takes_a_copy_while_others_are_left() -> None:
    x = points(batch=1, units=4).repeat(1, 3, 1)
    uniform = torch.rand(1, 50, 4, 1, generator=torch.Generator().manual_seed(1))
    centres = plus_plus(squared_distances(x @ x.mT), uniform)
    assert all(len({c % 4 for c in row}) == 4 for row in centres[0].tolist())


def test_seeding_draws_in_proportion_to_squared_distance() -> None:
    """Points 0, 1 and 3 on a line, the first centre at 0: the second is 1 with probability 1/10, else 3."""
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    uniform = torch.zeros(1, 1000, 2, 1)
    uniform[0, :, 1, 0] = torch.arange(0.5, 1000) / 1000
    centres = plus_plus(squares(x), uniform)[0]
    assert centres[:, 0].tolist() == [0] * 1000
    assert (centres[:, 1] == 1).sum() == 100
    assert (centres[:, 1] == 2).sum() == 900


def test_seeding_keeps_the_best_trial() -> None:
    """Of a far pair and a single point, the pair leaves less distance: it wins whichever trial drew it."""
    x = torch.tensor([[[0.0], [10.0], [10.1], [-9.0]]])
    middle, single = 0.5, 0.99
    uniform = torch.tensor([[[[0.0, 0.0], [middle, single]], [[0.0, 0.0], [single, middle]]]])
    assert (plus_plus(squares(x), uniform)[0, :, 1] != 3).all()


def test_more_clusters_than_distinct_units() -> None:
    x = torch.ones(1, 6, 3)
    labels = partition(pool_of(x), 4)
    assert len(labels.unique()) == 4


def test_k_at_least_the_number_of_units() -> None:
    assert partition(pool_of(points(units=5)), 9).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_seeded_and_independent_of_order_and_company() -> None:
    x = points(batch=2)
    first = partition(pool_of(x), 5)
    assert torch.equal(first, partition(pool_of(x), 5))
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first[:, shuffled], partition(pool_of(x[:, shuffled]), 5))
    assert torch.equal(first[:1], partition(pool_of(x[:1]), 5))
    assert not torch.equal(first, partition(pool_of(x, seed=1), 5))


def test_restarts_never_make_it_worse() -> None:
    x = points(batch=6, units=30, seed=5)
    one, many = (
        [
            kmeans_inertia(row, label)
            for row, label in zip(x.numpy(), partition(pool_of(x), 6, runs).numpy(), strict=True)
        ]
        for runs in (1, 16)
    )
    assert all(b <= a + 1e-4 for a, b in zip(one, many, strict=True))
    assert any(b < a - 1e-4 for a, b in zip(one, many, strict=True))
