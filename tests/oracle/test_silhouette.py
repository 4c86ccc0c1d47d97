"""Silhouettes against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples, silhouette_score

from lego.cluster import partition
from lego.layout import unit_map
from lego.silhouette import silhouette_over, silhouettes
from lego.units import pool
from tests.conftest import mixed_adapters
from tests.reference import units_of

Q = "model.layers.{}.self_attn.q_proj"


def vectors(module: str) -> np.ndarray:
    adapters = mixed_adapters()
    return np.array([np.concatenate(unit) for unit in units_of(adapters, [1] * len(adapters), module)])


@pytest.mark.parametrize("k", [2, 3, 7, 11])
def test_each_unit_is_as_scikit_learn_says(k: int) -> None:
    units = pool(mixed_adapters(), [Q.format(0), Q.format(1)])
    labels = partition(units, k)
    found = silhouettes(units.gram, labels)
    for row in (0, 1):
        expected = silhouette_samples(vectors(Q.format(row)), labels[row].numpy())
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_the_mean_over_modules_for_every_k() -> None:
    units = unit_map(mixed_adapters(), "q_proj")
    expected = []
    for k in (2, 5):
        labels = units.clusters(k)
        each = [silhouette_score(vectors(Q.format(m)), labels[units.module == m]) for m in (0, 1)]
        expected.append(np.mean(each))
    found = silhouette_over(units.pools, [2, 5, 12])
    np.testing.assert_allclose(found[:2], expected, atol=1e-4)
    assert np.isnan(found[2]), "with as many clusters as units there is nothing to compare"
