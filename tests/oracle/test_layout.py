"""Maps of many units, which are projected step by step, against scikit-learn's exact PCA and plain UMAP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from umap import UMAP

from lego.projection import EXACT, principal_components, umap


def noise(units: int = EXACT + 400, length: int = EXACT + 100, seed: int = 0) -> torch.Tensor:
    return torch.randn(units, length, generator=torch.Generator().manual_seed(seed))


def groups(count: int = 150, members: int = 8, length: int = EXACT + 1) -> torch.Tensor:
    """Units in groups, as those of adapters of one start."""
    return noise(count, length, 1).repeat_interleave(members, 0) + 0.7 * noise(count * members, length, 2)


@pytest.mark.parametrize("gaps", [(3.0, 2.0), (2.0, 1.9), (1.2, 1.15)])
def test_coordinates_where_components_are_defined(gaps: tuple[float, float]) -> None:
    """Two directions that stand out from noise, much or little, off centre: coordinates to a thousandth of their spread."""
    x = noise() + 5
    directions = torch.linalg.qr(noise(EXACT + 100, 2, 3)).Q.T
    edge = (x - x.mean(0)).svd().S[0] / len(x) ** 0.5
    for strength, direction, seed in zip(gaps, directions, (4, 5), strict=True):
        x += strength * edge * noise(len(x), 1, seed) * direction
    found, expected = principal_components(x, 2), PCA(2, svd_solver="full").fit_transform(x.double().numpy())
    assert np.abs(np.abs(found) - np.abs(expected)).max() < 1e-3 * expected.std(0).max()


@pytest.mark.parametrize("x", [noise(), groups()], ids=["noise", "groups"])
@pytest.mark.parametrize("count", [1, 2])
def test_captured_variance_where_they_are_not(x: torch.Tensor, count: int) -> None:
    """Eigenvalues lie so close that components are not defined; what they capture is, to a thousandth."""
    found = principal_components(x, count).astype(float)
    expected = PCA(count, svd_solver="full").fit(x.double().numpy()).explained_variance_.sum()
    assert (found**2).sum() / (len(x) - 1) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shape", [(EXACT, EXACT + 9), (EXACT + 9, EXACT), (EXACT + 9, 40), (EXACT + 9, EXACT + 9)])
def test_exact_and_iterated_meet(shape: tuple[int, int]) -> None:
    """Where the matrix is still decomposed as a whole, and where it is not any more, scikit-learn's picture."""
    x = noise(*shape) * torch.linspace(3, 1, shape[1]) ** 3
    x[:, :2] *= torch.tensor([3, 2])
    found, expected = principal_components(x, 2), PCA(2, svd_solver="full").fit_transform(x.double().numpy())
    assert np.abs(np.abs(found) - np.abs(expected)).max() < 1e-3 * expected.std(0).max()


@pytest.mark.parametrize("units", [60, EXACT + 9])
@pytest.mark.parametrize("rank", [1, 5, 40])
def test_fewer_components_than_asked(units: int, rank: int) -> None:
    """Units that span few dimensions: all of these are found, and nothing beyond."""
    x = noise(units, rank) @ noise(rank, EXACT + 9, 1)
    spread = np.linalg.norm(principal_components(x, 50).astype(float), axis=0)
    expected = PCA(rank, svd_solver="full").fit(x.double().numpy()).singular_values_
    np.testing.assert_allclose(spread[:rank], expected, rtol=1e-5)
    assert spread[rank:].max() < 1e-5 * spread[0]


@pytest.mark.parametrize("units", [60, EXACT + 9])
def test_copies_lie_on_one_point(units: int) -> None:
    assert not np.any(principal_components(torch.ones(units, EXACT + 9), 2))


def test_sign_and_repetition() -> None:
    """The same picture each time, and but for rounding also with another number of threads, which it leaves as it is."""
    x, threads = noise(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = principal_components(x, 2)
        assert np.array_equal(found, principal_components(x, 2))
        assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()
        torch.set_num_threads(2)
        np.testing.assert_allclose(principal_components(x, 2), found, atol=1e-4 * found.std())  # fp32, by any BLAS
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_umap_keeps_neighbourhoods_as_well_as_plain_umap() -> None:
    x = groups()
    points = principal_components(x, 50)
    ours = umap(points)
    assert np.array_equal(ours, umap(points))
    plain = UMAP(random_state=0, n_jobs=1).fit_transform(x.numpy())
    ours_kept, plain_kept = (trustworthiness(x.numpy(), xy, n_neighbors=15) for xy in (ours, plain))
    assert plain_kept > 0.6
    assert ours_kept >= plain_kept
