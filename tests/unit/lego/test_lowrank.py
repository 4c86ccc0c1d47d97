"""Truncation from Gram matrices against NumPy's SVD of the dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lego.lowrank import core_of, core_svd, truncate


def factors(units: int, d_in: int = 40, d_out: int = 30, modules: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(units)
    return torch.randn(modules, units, d_in, generator=generator), torch.randn(
        modules, d_out, units, generator=generator
    )


@pytest.mark.parametrize("units", [1, 7, 30, 50])
def test_equals_the_dense_svd(units: int) -> None:
    down, up = factors(units)
    left, values, right = core_svd(down, up)
    for m in range(3):
        dense = up[m].double().numpy() @ down[m].double().numpy()
        expected = np.linalg.svd(dense, compute_uv=False)[: values.shape[1]]
        np.testing.assert_allclose(values[m], expected, rtol=1e-5)
        np.testing.assert_allclose((left[m] * values[m]) @ right[m], dense, atol=1e-4)
        np.testing.assert_allclose(left[m].T @ left[m], np.eye(len(values[m])), atol=1e-5)
        np.testing.assert_allclose(right[m] @ right[m].T, np.eye(len(values[m])), atol=1e-5)


def test_a_wide_spectrum_keeps_its_small_values() -> None:
    """σ over five orders of magnitude, as trained adapters have them: squaring in the Gram matrix loses none of it."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(60, 6, generator=generator))[0] for _ in range(2))
    sigma = torch.tensor([1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    down, up = (sigma[:, None] * right.T)[None], left[None]
    mixing = torch.randn(6, 6, generator=generator) + 3 * torch.eye(6)
    core = core_of(mixing @ down, up @ torch.linalg.inv(mixing))
    np.testing.assert_allclose(core.values[0], sigma, rtol=2e-2)
    kept, lost = truncate(mixing @ down, up @ torch.linalg.inv(mixing), 4)
    best = (left[:, :4] * sigma[:4]) @ right[:, :4].T
    assert float(torch.linalg.norm(lost[0] @ kept[0] - best)) < 2e-5


def test_repeated_units_have_the_rank_they_have() -> None:
    down, up = factors(4)
    down, up = down.repeat(1, 3, 1), up.repeat(1, 1, 3)
    assert core_of(down, up).ranks == [4, 4, 4]
    small, wide = truncate(down, up)
    assert small.shape[1] == 4
    torch.testing.assert_close(wide @ small, up @ down, rtol=1e-4, atol=1e-4)


def test_units_that_cancel_leave_nothing() -> None:
    down, up = factors(5)
    core = core_of(torch.cat([down, down], 1), torch.cat([up, -up], 2))
    assert not core.values.any()
    assert core.ranks == [1, 1, 1]
    assert torch.isfinite(core.left).all()
    assert torch.isfinite(core.right).all()
