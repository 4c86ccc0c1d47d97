"""One matrix over every registered method: a new method is tested by being there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, AdapterError, Factors
from tests.conftest import equal_adapters, make_adapter, mixed_adapters
from tests.reference import dense_sum

METHODS = sorted(lego.methods())
# Parameters under which a method loses nothing, where its defaults cut or drop.
LOSSLESS = {
    method.name: {"density": 1.0}
    for method in lego.methods().values()
    if any(parameter.name == "density" for parameter in method.parameters)
}
# Parameters under which the seed shows.
RANDOM = {"lego": {"k": "r", "restarts": 1}, "core": {"rule": "dare_ties"}, "ctm": {"rule": "dare_ties"}}
every_method = pytest.mark.parametrize("method", METHODS)


def distance(one: Adapter, other: Adapter) -> float:
    """Relative distance of two adapters' updates, over all modules of either."""
    zero = {m: np.zeros((s.d_out, s.d_in)) for a in (one, other) for m, s in a.modules.items()}
    pairs = [[a[m].delta().double().numpy() if m in a.modules else zero[m] for a in (one, other)] for m in zero]
    return (sum(((x - y) ** 2).sum() for x, y in pairs) / max(sum((y**2).sum() for _, y in pairs), 1e-30)) ** 0.5


@every_method
def test_shapes_and_finiteness_on_mixed_adapters(method: str) -> None:
    adapters = mixed_adapters()
    merged = lego.merge(adapters, method=method, weights=[1, 0.5, -1])
    assert set(merged.modules) == {m for a in adapters for m in a.modules}
    for module, spec in merged.modules.items():
        source = next(a.modules[module] for a in adapters if module in a.modules)
        assert (spec.d_in, spec.d_out) == (source.d_in, source.d_out)
        assert torch.isfinite(merged[module].delta()).all()
    assert merged.report is not None
    assert merged.recipe is not None


@every_method
def test_one_adapter_gives_itself(method: str) -> None:
    one = make_adapter("one", 5, alpha=6)
    assert distance(lego.merge([one], method=method, **LOSSLESS.get(method, {})), one) < 1e-5


@every_method
def test_weight_zero_takes_an_adapter_out(method: str) -> None:
    one, other = mixed_adapters()[0], make_adapter("other", 9)
    only = lego.merge([one], method=method)
    assert distance(lego.merge([one, other], method=method, weights=[1, 0]), only) < 1e-6
    assert distance(lego.merge([one, other], method=method, weights=[1, 0], **LOSSLESS.get(method, {})), one) < 1e-5


@every_method
def test_one_minus_itself(method: str) -> None:
    """[1, −1] of one adapter: the exact sum is zero, and the methods that promise the sum give it."""
    one = make_adapter("one", 5)
    merged = lego.merge([one, one], method=method, weights=[1, -1])
    assert all(torch.isfinite(merged[m].delta()).all() for m in merged.modules)
    if method != "lego" and "dare" not in method:
        assert max(float(merged[m].delta().abs().max()) for m in merged.modules) < 1e-6


# DARE draws its drops for each source in turn, so there the order is part of the seed.
@pytest.mark.parametrize("method", [method for method in METHODS if "dare" not in method])
def test_order_of_the_adapters(method: str) -> None:
    adapters = mixed_adapters()
    merged = lego.merge(adapters, method=method, weights=[1, 2, 3])
    assert distance(lego.merge(adapters[::-1], method=method, weights=[3, 2, 1]), merged) < 1e-5


@every_method
def test_order_of_the_units_matters_as_declared(method: str) -> None:
    adapters = equal_adapters()
    flipped = {m: adapters[0][m] for m in adapters[0].modules}
    flipped = {m: Factors(f.down.flip(0), f.up.flip(1), f.scale) for m, f in flipped.items()}
    moved = [Adapter.from_factors("flipped", flipped), *adapters[1:]]
    apart = distance(lego.merge(moved, method=method), lego.merge(adapters, method=method))
    assert (apart < 1e-5) == lego.method(method).unit_invariant


@every_method
def test_strength_scales_the_update(method: str) -> None:
    adapters = mixed_adapters()
    one, double = (lego.merge(adapters, method=method, strength=strength) for strength in (1.0, -2.0))
    for module in one.modules:
        torch.testing.assert_close(double[module].delta(), -2 * one[module].delta(), rtol=1e-4, atol=1e-6)


@every_method
def test_seed_decides_where_declared(method: str) -> None:
    adapters = [make_adapter(f"a{i}", i, rank=8) for i in range(4)]
    parameters = RANDOM.get(method, {})
    first, again, other = (lego.merge(adapters, method=method, seed=seed, **parameters) for seed in (0, 0, 1))
    assert distance(first, again) == 0
    assert (distance(other, first) > 1e-6) == lego.method(method).random


@every_method
def test_writes_and_reads_back(method: str, tmp_path) -> None:
    merged = lego.merge(mixed_adapters(), method=method, weights=[1, 0.5, -1])
    back = lego.read_adapter(lego.write_adapter(merged, tmp_path / "out", torch.float32))
    assert distance(back, merged) < 1e-6
    assert all(spec.scale == 1 for spec in back.modules.values())


@every_method
def test_grouping_changes_nothing(method: str, monkeypatch) -> None:
    """Modules go through in batches; one at a time gives the same adapter."""
    adapters = mixed_adapters()
    together = lego.merge(adapters, method=method)
    monkeypatch.setattr("lego.units.GROUP_BYTES", 1)
    assert distance(lego.merge(adapters, method=method), together) < 1e-6


@pytest.mark.parametrize("method", ["sum", "concat", "svd"])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.3, -2, 1.5], [1, 0, 0]])
def test_exact_methods_are_exact(method: str, weights: list[float]) -> None:
    parameters = {"rank": "all"} if method == "svd" else {}
    adapters = mixed_adapters()
    merged = lego.merge(adapters, method=method, weights=weights, **parameters)
    for module in merged.modules:
        np.testing.assert_allclose(merged[module].delta(), dense_sum(adapters, weights, module), atol=2e-6)


def test_average_divides_by_the_weights() -> None:
    adapters, weights = mixed_adapters(), [3.0, 0.5, -1.5]
    merged = lego.merge(adapters, method="average", weights=weights)
    for module in merged.modules:
        expected = dense_sum(adapters, [w / 5 for w in weights], module)
        np.testing.assert_allclose(merged[module].delta(), expected, atol=2e-6)


def test_sum_keeps_only_the_rank_it_needs() -> None:
    one = make_adapter("one", 5)
    assert lego.merge([one, one, one], method="sum").ranks == (4,)
    assert lego.merge([one, one, one], method="concat").ranks == (12,)


def test_svd_is_the_best_of_its_rank() -> None:
    adapters = mixed_adapters()
    merged = lego.merge(adapters, method="svd", rank=3)
    for module in merged.modules:
        left, values, right = np.linalg.svd(dense_sum(adapters, [1, 1, 1], module))
        best = left[:, :3] * values[:3] @ right[:3]
        np.testing.assert_allclose(merged[module].delta(), best, atol=5e-6)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"method": "nope"}, "no merge method 'nope'"),
        ({"method": "lego", "q": 3}, "no parameter 'q'"),
        ({"method": "lego", "k": "2q"}, "multiple of the sources' rank"),
        ({"method": "lego", "k": 0}, "number of units"),
        ({"method": "lego", "restarts": 0}, "greater than or equal to 1"),
        ({"method": "lego", "restarts": True}, "yes and no are no int"),
        ({"method": "svd", "rank": True}, "yes and no are no rank"),
        ({"strength": True}, "yes and no are no float"),
        ({"method": "ties", "density": 1.5}, "less than or equal to 1"),
        ({"method": "ties", "majority": "loudest"}, "total"),
        ({"strength": float("nan")}, "finite"),
        ({"weights": [1]}, "1 weights for 3 adapters"),
        ({"weights": [0, 0, 0]}, "all weights are 0"),
        ({"weights": [1, float("inf"), 1]}, "finite"),
    ],
)
def test_bad_input_is_one_clear_error(call: dict, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        lego.merge(mixed_adapters(), **call)


def test_adapters_that_do_not_belong_together() -> None:
    one = make_adapter("one", 1)
    wide = {m: Factors(torch.ones(2, 30), torch.ones(24, 2)) for m in one.modules}
    with pytest.raises(AdapterError, match="disagree about its shape"):
        lego.merge([one, Adapter.from_factors("one", wide)])
    with pytest.raises(AdapterError, match="no adapter given"):
        lego.merge([])
    one, other = make_adapter("one", 1), make_adapter("other", 2)
    one.config, other.config = {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}
    with pytest.raises(AdapterError, match="task_type"):
        lego.merge([one, other])
