"""Rules on whole updates in blocks, and the truncated SVD of what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lego import dense
from lego.dense import merged_update, truncated_svd
from lego.rules import Rule, drop_and_rescale, threshold
from lego.units import pool
from tests.conftest import mixed_adapters
from tests.reference import by_rule, updates

Q = "model.layers.1.self_attn.q_proj"
generator = torch.Generator().manual_seed(0)


def orthogonal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q


SPECTRA = {
    "flat": torch.ones(600),
    "noise": None,
    "slow": 1 / (1 + torch.arange(600.0)) ** 0.5,
    "steep": 0.7 ** torch.arange(600.0),
    "low rank": (torch.arange(600) < 20).float(),
    "zero": torch.zeros(600),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("turned", [False, True])
def test_the_error_is_the_least(spectrum: str, turned: bool) -> None:
    values = SPECTRA[spectrum]
    matrix = torch.randn(700, 600, generator=generator)
    if values is not None:
        matrix = orthogonal(700, 600) * values @ orthogonal(600, 600)
    matrix = matrix.T.contiguous() if turned else matrix
    down, up = truncated_svd(matrix, 24)
    assert down.shape == (24, matrix.shape[1])
    assert up.shape == (matrix.shape[0], 24)
    least = np.linalg.norm(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[24:])
    error = np.linalg.norm((matrix.double() - up.double() @ down.double()).numpy())
    assert error <= least * (1 + 1e-5) + 2e-6 * float(matrix.norm())


def test_a_gap_gives_the_matrix_itself() -> None:
    values = torch.where(torch.arange(600) < 24, 1.0, 0.5)
    left, right = orthogonal(700, 600), orthogonal(600, 600)
    down, up = truncated_svd(left * values @ right, 24)
    best = left[:, :24] @ right[:24]
    assert float((up @ down - best).norm() / best.norm()) < 1e-5


@pytest.mark.parametrize("entries", [1, 100, 2**16])
@pytest.mark.parametrize(("rule", "density"), [("ties", 0.4), ("magnitude_prune", 0.3), ("ties", 0.001), ("sum", 0.5)])
def test_blocks_of_rows_are_the_rule_on_the_whole(
    entries: int, rule: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "BLOCK", entries)
    adapters, weights = mixed_adapters(), [1.0, 0.5, -2.0]
    merged = merged_update(pool(adapters, Q, weights), Rule(rule, density))
    expected = by_rule(rule, updates(adapters, weights, Q), weights, density, draw=None)
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_each_block_drops_by_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK", 24 * 10)
    adapters = mixed_adapters()
    units = pool(adapters, Q, seed=5)
    draw = [
        torch.cat([units.uniform(n, 24, stream=f"{j}/{i}")[0] for i, n in ((0, 10), (10, 10), (20, 4))])
        for j in range(3)
    ]
    expected = by_rule("dare_linear", updates(adapters, [1, 1, 1], Q), [1, 1, 1], 0.5, lambda j, shape: draw[j].numpy())
    np.testing.assert_allclose(merged_update(units, Rule("dare_linear", 0.5)), expected, atol=1e-6)


def test_the_threshold_is_the_last_that_stays() -> None:
    tensor = torch.randn(3, 20, 30, generator=generator)
    for density in (0.0, 0.001, 0.25, 0.999, 1.0):
        kept = (tensor.abs() >= threshold(tensor, density)).sum((1, 2))
        assert kept.tolist() == [int(density * 600)] * 3


def test_drops_are_exact_at_the_edge() -> None:
    uniform = torch.tensor([[[0.0, 0.25, 0.2499999, 0.2500001, 0.9]]])
    assert drop_and_rescale(torch.ones(1, 1, 5), 0.25, uniform).flatten().tolist() == [4, 0, 4, 0, 0]
