"""k-means from Gram matrices against scikit-learn's on the vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from lego.cluster import lloyd, partition, squared_distances
from tests.reference import kmeans_inertia
from tests.unit.lego.test_cluster import points, pool_of


@pytest.mark.parametrize("seed", range(8))
def test_same_start_same_clusters(seed: int) -> None:
    """Lloyd from the same units as first centroids ends at scikit-learn's partition."""
    x = points(batch=1, units=60, width=10, seed=seed)
    centres = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:7]
    labels, inertia = lloyd(squared_distances(x @ x.mT), centres[None, None])
    theirs = KMeans(7, init=x[0, centres].numpy(), n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(x[0].numpy())
    assert adjusted_rand_score(theirs.labels_, labels[0, 0].numpy()) == 1.0
    assert float(inertia) == pytest.approx(theirs.inertia_, rel=1e-4)


@pytest.mark.parametrize("width", [12, 300])
@pytest.mark.parametrize("k", [8, 16, 32])
def test_seeding_and_restarts_are_as_good(k: int, width: int) -> None:
    """Inertia of the whole procedure, over 20 data sets, within 0.5 % of scikit-learn's with as many restarts."""
    x = points(batch=20, units=48, width=width, seed=9)
    labels = partition(pool_of(x), k, restarts=8).numpy()
    ours = [kmeans_inertia(row, label) for row, label in zip(x.numpy(), labels, strict=True)]
    theirs = [KMeans(k, n_init=8, random_state=0).fit(row).inertia_ for row in x.numpy()]
    assert np.mean(ours) <= 1.005 * np.mean(theirs)
