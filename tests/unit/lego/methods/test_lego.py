"""LoRA-LEGO's gold tests (arXiv 2409.16167)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, Factors
from lego.cluster import partition
from lego.methods.lego import lego as lego_method
from lego.methods.lego import peak
from lego.registry import resolve_rank
from lego.units import pool
from tests.conftest import equal_adapters, make_adapter, mixed_adapters
from tests.reference import dense_sum, lego_merge, units_of

Q = "model.layers.1.self_attn.q_proj"


def delta(adapter: Adapter, module: str = Q) -> np.ndarray:
    return adapter[module].delta().double().numpy()


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.linalg.norm(found - expected) <= tolerance * max(np.linalg.norm(expected), 1e-12)


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0.5, -2]])
def test_every_unit_its_own_cluster(weights: list[float]) -> None:
    """Gold 1: the concatenation, times sqrt(r/Σr) with output reweighting."""
    adapters = mixed_adapters()
    target = dense_sum(adapters, weights, Q)
    plain = lego.merge(adapters, weights=weights, k="all", output_reweighting=False)
    close(delta(plain), target)
    full = lego.merge(adapters, weights=weights, k="all")
    close(delta(full), (4 / 12) ** 0.5 * target)  # r = mean(4, 2, 6), Σr = 12


def test_copies_merge_to_the_original() -> None:
    """Gold 2."""
    one = make_adapter("one", 5)
    merged = lego.merge([one, one, one], k="r")
    close(delta(merged), delta(one))
    assert merged.ranks == (4,)


def test_one_adapter_at_its_rank_is_itself_and_below_it_is_pruned() -> None:
    """Gold 3."""
    one = make_adapter("one", 5)
    close(delta(lego.merge([one], k="r")), delta(one))
    close(delta(lego.merge([one], k="2r")), delta(one))
    full, half = (lego.merge([one], k=2, output_reweighting=on) for on in (True, False))
    assert full.ranks == (2,)
    assert np.linalg.matrix_rank(delta(full), tol=1e-5) <= 2
    close(delta(full), 2**0.5 * delta(half))


def test_order_of_units_and_adapters_means_nothing() -> None:
    """Gold 4, and stronger: the partition itself does not depend on the order."""
    adapters = mixed_adapters()
    shuffled = []
    for adapter in adapters:
        order = torch.randperm(adapter[Q].rank, generator=torch.Generator().manual_seed(1))
        parts = {m: adapter[m] for m in adapter.modules}
        moved = {m: Factors(f.down[order], f.up[:, order], f.scale) for m, f in parts.items()}
        shuffled.append(Adapter.from_factors(adapter.name, moved))
    expected = delta(lego.merge(adapters, k=5))
    close(delta(lego.merge(shuffled, k=5)), expected)
    close(delta(lego.merge(adapters[::-1], k=5)), expected)


def test_peak_of_a_centroid_is_the_mean_of_its_members_peaks() -> None:
    """Gold 5."""
    units = pool(mixed_adapters(), Q)
    labels = partition(units, 5)
    down, up = lego_method(units, k=5, output_reweighting=False)
    peaks, own = peak(down, up)[0], peak(units.down, units.up)[0]
    for cluster in range(5):
        assert float(peaks[cluster]) == pytest.approx(float(own[labels[0] == cluster].mean()), rel=1e-5)


@pytest.mark.parametrize("parameter", [True, False])
@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize(
    ("k", "r", "rank"), [("2r", "mean", 4.0), (3, "max", 6.0), ("r", "min", 2.0), ("0.5r", "mean", 4.0)]
)
def test_equals_the_naive_reference(parameter: bool, output: bool, k: object, r: str, rank: float) -> None:
    """Gold 7: plain loops over the same partition, all options, mixed ranks and scales, a negative weight."""
    adapters, weights = mixed_adapters(), [1.0, 0.7, -0.4]
    merged = lego.merge(
        adapters, weights=weights, k=k, r=r, parameter_reweighting=parameter, output_reweighting=output, seed=3
    )
    for module in merged.modules:
        units = pool(adapters, module, weights, seed=3)
        present = sorted({4: 4, 2: 2, 6: 6}[a.modules[module].rank] for a in adapters if module in a.modules)
        here = {"mean": sum(present) / len(present), "max": max(present), "min": min(present)}[r]
        labels = partition(units, resolve_rank(k, units, r)).tolist()[0]
        expected = lego_merge(units_of(adapters, weights, module), labels, here, parameter, output)
        close(delta(merged, module), expected, 1e-4)
        if module == Q:
            assert here == rank


def test_seed_matters_and_repeats() -> None:
    adapters = [make_adapter(f"a{i}", i, rank=8, alpha=8) for i in range(4)]
    first, again, other = (delta(lego.merge(adapters, k="r", restarts=1, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_scale_is_folded_evenly() -> None:
    """One s for all: the literal paper result on raw units, times s; with it inside, no cluster moves."""
    scaled = equal_adapters()
    raw = [Adapter.from_factors(a.name, {m: Factors(a[m].down, a[m].up, 1.0) for m in a.modules}) for a in scaled]
    close(delta(lego.merge(scaled, k="r")), 2 * delta(lego.merge(raw, k="r")))
