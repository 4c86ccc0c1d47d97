"""Spectra against NumPy's SVD of the dense updates."""

from __future__ import annotations

import numpy as np

from lego.layout import unit_map
from lego.spectrum import spectra
from tests.conftest import mixed_adapters


def test_spectra_are_those_of_the_dense_updates() -> None:
    adapters, weights = mixed_adapters(), [1.0, -0.5, 2.0]
    units = unit_map(adapters, "q_proj", weights)
    for adapter, weight, found in zip(adapters, weights, spectra(units.pools, 3), strict=True):
        rank = max(adapter.modules[module].rank for module in units.modules)
        dense = [np.linalg.svd(weight * adapter[m].delta().double().numpy(), compute_uv=False) for m in units.modules]
        np.testing.assert_allclose(found, np.stack(dense)[:, :rank], rtol=1e-4, atol=1e-7)


def test_an_adapter_that_is_not_there_has_no_spectrum() -> None:
    adapters = mixed_adapters()
    first, second, third = spectra(unit_map(adapters, "up_proj").pools, 3)
    assert (first.size, second.size) == (0, 0)
    assert third.shape == (2, 6)
