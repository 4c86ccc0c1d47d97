"""Trimming over a whole adapter, against one long vector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import lego
from lego import Adapter
from lego.trimming import kth_largest
from tests.conftest import equal_adapters, mixed_adapters
from tests.reference import ties_entries


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 1.0])
def test_the_limit_is_the_sorted_one(density: float) -> None:
    """Values over many orders of magnitude, zeros and equals, in pieces."""
    chance = np.random.default_rng(0)
    values = np.abs(chance.standard_normal(5000) * 10.0 ** chance.integers(-9, 9, 5000)).astype(np.float32)
    values[:600], values[600:900] = 0, 0.25

    def pieces() -> Iterator[np.ndarray]:
        yield from np.array_split(values, 7)

    expected = np.sort(values)[::-1][int(density * 5000) - 1]
    assert kth_largest(pieces, density) == expected


def test_nothing_kept_is_an_infinite_limit() -> None:
    assert kth_largest(lambda: iter([np.ones(3, dtype=np.float32)]), 0.1) == float("inf")


def whole(adapters: list[Adapter], density: float, weights: list[float], halves: bool) -> dict[str, np.ndarray]:
    """TIES on one long vector for each adapter: of its factors, or of its updates; 0 where it lacks a module."""
    modules = sorted({m for a in adapters for m in a.modules})
    shapes = {m: next(a[m].delta().shape for a in adapters if m in a.modules) for m in modules}
    found = {}
    if halves:
        vectors = [
            np.concatenate([np.r_[a[m].down.numpy().ravel(), a[m].up.numpy().ravel()] for m in modules])
            for a in adapters
        ]
        scales = [w * a[modules[0]].scale for w, a in zip(weights, adapters, strict=True)]
        down = ties_entries(vectors, [abs(s) ** 0.5 * np.sign(s) for s in scales], density)
        up = ties_entries(vectors, [abs(s) ** 0.5 for s in scales], density)
        start = 0
        for m in modules:
            a, b = adapters[0][m].down.shape, adapters[0][m].up.shape
            middle, end = start + a.numel(), start + a.numel() + b.numel()
            found[m] = up[middle:end].reshape(b) @ down[start:middle].reshape(a)
            start = end
        return found
    vectors = [
        np.concatenate([(a[m].delta().numpy() if m in a.modules else np.zeros(shapes[m])).ravel() for m in modules])
        for a in adapters
    ]
    counted = [sum(a[m].delta().numel() for m in a.modules) for a in adapters]
    shares = [density * count / len(vectors[0]) for count in counted]  # the share of the entries that the adapter has
    trimmed = [ties_entries([v], [1.0], share) for v, share in zip(vectors, shares, strict=True)]
    merged, start = ties_entries(trimmed, weights, 1.0), 0
    for m in modules:
        end = start + shapes[m].numel()
        found[m] = merged[start:end].reshape(shapes[m])
        start = end
    return found


@pytest.mark.parametrize("group", [1, 2**30])
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_over_the_adapter(density: float, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lego.units.GROUP_BYTES", group)
    weights = [1.0, 0.5, -0.8]
    adapters = equal_adapters()
    merged = lego.merge(adapters, method="ties", weights=weights, density=density, trim_over="adapter")
    for module, expected in whole(adapters, density, weights, halves=True).items():
        np.testing.assert_allclose(merged[module].delta(), expected, atol=1e-5)
    mixed = mixed_adapters()
    merged = lego.merge(mixed, method="ties_svd", weights=weights, density=density, trim_over="adapter", rank=3)
    for module, expected in whole(mixed, density, weights, halves=False).items():
        left, values, right = np.linalg.svd(expected)
        np.testing.assert_allclose(merged[module].delta(), left[:, :3] * values[:3] @ right[:3], atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"])
def test_it_differs_from_trimming_each_matrix(method: str) -> None:
    one, other = (
        lego.merge(mixed_adapters(), method=method, density=0.3, trim_over=over) for over in ("module", "adapter")
    )
    assert any(not np.allclose(one[m].delta(), other[m].delta(), atol=1e-4) for m in one.modules)
