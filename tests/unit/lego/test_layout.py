"""The unit map: its units, PCA against scikit-learn, clusters equal to the merge's, neighbours, UMAP."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from lego import AdapterError
from lego.cluster import partition
from lego.layout import resolve, unit_map
from lego.units import pool
from tests.conftest import make_adapter, mixed_adapters
from tests.reference import dense_sum, units_of

Q = "model.layers.1.self_attn.q_proj"


def vectors(adapters, module: str) -> np.ndarray:
    return np.array([np.concatenate(unit) for unit in units_of(adapters, [1] * len(adapters), module)])


def test_pca_equals_scikit_learn() -> None:
    adapters = mixed_adapters()
    found = unit_map(adapters, Q).pca()
    expected = PCA(2).fit_transform(vectors(adapters, Q))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)


def test_units_are_labelled_as_they_lie() -> None:
    adapters = mixed_adapters()
    units = unit_map(adapters, "q_proj")
    assert len(units) == 2 * (4 + 2 + 6)
    assert units.adapter.tolist() == [0] * 4 + [1] * 2 + [2] * 6 + [0] * 4 + [1] * 2 + [2] * 6
    assert units.rank_index.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5] * 2
    assert units.layer.tolist() == [0] * 12 + [1] * 12
    everything = np.concatenate([vectors(adapters, m) for m in units.modules])
    np.testing.assert_allclose(units.norm, np.linalg.norm(everything, axis=1), rtol=1e-5)
    np.testing.assert_allclose(units.vectors(), everything, atol=1e-6)


def test_clusters_are_those_of_the_merge() -> None:
    adapters, weights = mixed_adapters(), [1.0, -0.5, 2.0]
    units = unit_map(adapters, "q_proj", weights, seed=4)
    labels = units.clusters(5, restarts=3)
    for row, module in enumerate(units.modules):
        expected = partition(pool(adapters, module, weights, seed=4), 5, 3)[0]
        assert labels[units.module == row].tolist() == expected.tolist()


def test_clusters_by_kept_energy_are_those_of_the_merge() -> None:
    """Every module at the rank that NumPy's SVD gives."""
    adapters = mixed_adapters()
    units = unit_map(adapters, "q_proj")
    labels = units.clusters("80%")
    for row, module in enumerate(units.modules):
        energy = np.linalg.svd(dense_sum(adapters, [1, 1, 1], module), compute_uv=False) ** 2
        rank = int((energy.cumsum() / energy.sum() < 0.8).sum()) + 1
        assert labels[units.module == row].tolist() == partition(pool(adapters, module), rank)[0].tolist()


def test_weights_of_zero_leave_no_units() -> None:
    one, other = make_adapter("one", 1), make_adapter("other", 2, kinds=("k_proj",))
    assert len(unit_map([one, other], "k_proj", [0, 1])) == 2 * 4
    with pytest.raises(AdapterError, match=r"q_proj: has weight 0 in every adapter"):
        unit_map([one, other], "q_proj", [0, 1])


def test_neighbours() -> None:
    adapters = mixed_adapters()
    units, x = unit_map(adapters, Q), vectors(adapters, Q)
    distance = np.linalg.norm(x - x[3], axis=1)
    assert units.neighbours(3, 4) == [i for i in np.argsort(distance) if i != 3][:4]


def test_umap_keeps_neighbourhoods_and_repeats() -> None:
    adapters = [make_adapter(f"a{i}", i, rank=16) for i in range(4)]
    units = unit_map(adapters, Q)
    first = units.umap(seed=1)
    assert first.shape == (64, 2)
    assert np.array_equal(first, units.umap(seed=1))
    assert trustworthiness(vectors(adapters, Q), first, n_neighbors=5) > 0.6


def test_few_units() -> None:
    one = make_adapter("one", 1, rank=1)
    units = unit_map([one], Q)
    assert units.pca().shape == units.umap().shape == (1, 2)


def test_what_cannot_be_mapped() -> None:
    adapters = mixed_adapters()
    with pytest.raises(AdapterError, match="different lengths"):
        unit_map(adapters, ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"])
    with pytest.raises(AdapterError, match="no modules are given"):
        unit_map(adapters, [])
    with pytest.raises(AdapterError, match="no picked adapter has"):
        unit_map(adapters, "o_proj")
    assert resolve(adapters, Q) == [Q]


def test_units_are_alike_as_their_rank_one_updates_are() -> None:
    adapters, weights = mixed_adapters(), [1.0, -0.5, 2.0]
    units = unit_map(adapters, "q_proj", weights)
    dense = []
    for module in units.modules:
        for adapter, weight in zip(adapters, weights, strict=True):
            found = adapter[module]
            dense += [weight * np.outer(found.up[:, u], found.down[u]).ravel() for u in range(found.rank)]
    flat = np.array(dense, dtype=float)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    for unit in (0, 5, len(units) - 1):
        np.testing.assert_allclose(units.alike(unit), flat @ flat[unit], atol=1e-5)
