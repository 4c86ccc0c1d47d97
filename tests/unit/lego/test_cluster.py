"""k-means on Gram matrices: distances, inertia, empty clusters, order independence."""

from __future__ import annotations

import torch

from lego.cluster import fill_empty, inertia, lloyd, partition, plus_plus, to_centroids
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
        x,
        torch.zeros(batch, 1, units),
        torch.ones(batch, units),
        torch.zeros(units, dtype=torch.long),
        1.0,
        seed,
    )


def test_distances_and_inertia_from_inner_products() -> None:
    x = points()
    labels = torch.arange(20).remainder(4).expand(3, 20)
    centroids = torch.stack([x[:, labels[0] == c].mean(1) for c in range(4)], 1)
    expected = torch.cdist(x, centroids) ** 2
    torch.testing.assert_close(to_centroids(x @ x.mT, labels, 4), expected, rtol=1e-4, atol=1e-4)
    for row, value in enumerate(inertia(x @ x.mT, labels, 4).tolist()):
        assert abs(value - kmeans_inertia(x[row].numpy(), labels[row].numpy())) < 1e-3


def test_lloyd_stops_at_a_fixed_point_without_empty_clusters() -> None:
    x = points(batch=5)
    gram = x @ x.mT
    labels, _ = lloyd(gram, torch.tensor([[0, 1, 2, 3, 4]]).expand(5, 5))
    assert torch.equal(to_centroids(gram, labels, 5).argmin(2), labels)
    assert all(len(row.unique()) == 5 for row in labels)


def test_empty_clusters_take_the_farthest_unit() -> None:
    distance = torch.tensor([[[1.0, 9, 9], [5.0, 9, 9], [2.0, 9, 9], [9, 0.5, 9]]])
    filled = fill_empty(distance.argmin(2), distance)
    assert filled.tolist() == [[0, 2, 0, 1]]


def test_seeding_never_takes_a_copy_while_others_are_left() -> None:
    x = points(batch=1, units=4).repeat(1, 3, 1)
    gram = (x @ x.mT).expand(50, -1, -1)
    centres = plus_plus(gram, torch.rand(50, 4, 1, generator=torch.Generator().manual_seed(1)))
    assert all(len({c % 4 for c in row}) == 4 for row in centres.tolist())


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


def test_restarts_never_make_it_worse() -> None:
    x = points(batch=6, units=30, seed=5)
    gram = x @ x.mT
    one, many = (inertia(gram, partition(pool_of(x), 6, restarts), 6) for restarts in (1, 16))
    assert bool((many <= one + 1e-4).all())
    assert bool((many < one - 1e-4).any())
