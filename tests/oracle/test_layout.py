"""Maps of many units, which are projected step by step, against scikit-learn's exact PCA and plain UMAP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from umap import UMAP

from lego.projection import EXACT, principal_components, umap


def noise(units: int = EXACT + 500, length: int = 600, seed: int = 0) -> torch.Tensor:
    return torch.randn(units, length, generator=torch.Generator().manual_seed(seed))


def groups(count: int = 150, members: int = 8, length: int = 300) -> torch.Tensor:
    """Units in groups, as those of adapters of one start."""
    return noise(count, length, 1).repeat_interleave(members, 0) + 0.7 * noise(count * members, length, 2)


@pytest.mark.parametrize("gaps", [(3.0, 2.0), (2.0, 1.9), (1.2, 1.15)])
def test_coordinates_where_components_are_defined(gaps: tuple[float, float]) -> None:
    """Two directions that stand out from noise, much or little, off centre: coordinates to a thousandth of their spread."""
    x = noise() + 5
    directions = torch.linalg.qr(noise(600, 2, 3)).Q.T
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


@pytest.mark.parametrize("length", [40, 300])
def test_exact_and_iterated_meet(length: int) -> None:
    """At the last number of units that is decomposed as a whole, and at the next, scikit-learn's picture."""
    x = noise(EXACT + 1, length) * torch.linspace(3, 1, length) ** 3
    for units in (x[:-1], x):
        expected = PCA(2, svd_solver="full").fit_transform(units.double().numpy())
        difference = np.abs(principal_components(units, 2)) - np.abs(expected)
        assert np.abs(difference).max() < 1e-3 * expected.std(0).max()


@pytest.mark.parametrize("units", [EXACT, EXACT + 1])
def test_fewer_components_than_asked(units: int) -> None:
    x = noise(units, 1) @ noise(1, 30)  # all on one line
    found = principal_components(x, 40)
    assert found.shape == (units, 40)
    assert np.abs(found[:, 1:]).max() < 1e-3 * np.abs(found[:, 0]).max()
    assert not np.any(principal_components(torch.ones(units, 30), 2))


def test_sign_and_repetition() -> None:
    x = noise()
    found = principal_components(x, 2)
    assert np.array_equal(found, principal_components(x, 2))
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()


def test_umap_keeps_neighbourhoods_as_well_as_plain_umap() -> None:
    x = groups()
    points = principal_components(x, 50)
    ours = umap(points)
    assert np.array_equal(ours, umap(points))
    plain = UMAP(random_state=0, n_jobs=1).fit_transform(x.numpy())
    ours_kept, plain_kept = (trustworthiness(x.numpy(), xy, n_neighbors=15) for xy in (ours, plain))
    assert plain_kept > 0.6
    assert ours_kept >= plain_kept
