"""Shares of units against the dense updates."""

from __future__ import annotations

import numpy as np
import pytest

from lego.shares import contributions, energy
from tests.conftest import make_adapter, mixed_adapters


def test_a_contribution_is_the_inner_product_with_the_whole_update() -> None:
    adapter = make_adapter("one", 1)
    for module in adapter.modules:
        factors = adapter[module]
        whole = factors.delta().double().numpy()
        units = [factors.scale * np.outer(factors.up[:, u], factors.down[u]) for u in range(factors.rank)]
        np.testing.assert_allclose(contributions(adapter, module), [(u * whole).sum() for u in units], rtol=1e-4)


@pytest.mark.parametrize("adapter", mixed_adapters(), ids=lambda adapter: adapter.name)
def test_contributions_add_up_to_the_energy(adapter) -> None:
    dense = sum(float(adapter[m].delta().double().square().sum()) for m in adapter.modules)
    assert energy(adapter) == pytest.approx(dense, rel=1e-5)
    assert sum(contributions(adapter, m).sum() for m in adapter.modules) == pytest.approx(dense, rel=1e-5)
