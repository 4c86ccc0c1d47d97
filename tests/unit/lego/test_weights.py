"""Weights by patterns, ranks by energy, biases and forms of modules: what every method shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, AdapterError, Factors
from lego.units import pool
from lego.weights import weight_at
from tests.conftest import equal_adapters, make_adapter, mixed_adapters
from tests.reference import dense_sum

LAYER_0, LAYER_1 = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
ONE_BY_ONE = {"q_proj": 0.5, "*.layers.1.*": -2.0, LAYER_1: 3.0}


def test_the_last_pattern_that_matches_decides() -> None:
    assert weight_at(ONE_BY_ONE, LAYER_0) == 0.5
    assert weight_at(ONE_BY_ONE, LAYER_1) == 3
    assert weight_at(ONE_BY_ONE, "model.layers.1.self_attn.k_proj") == -2
    assert weight_at(ONE_BY_ONE, "model.layers.0.self_attn.k_proj") == 1
    assert weight_at({"*": 0.0, "q_proj": 2.0}, LAYER_0) == 2
    assert weight_at({"q_proj": 2.0, "*": 0.0}, LAYER_0) == 0
    assert weight_at(0.25, LAYER_0) == 0.25


@pytest.mark.parametrize("method", ["sum", "concat", "average", "svd"])
def test_weights_by_layer_and_kind(method: str) -> None:
    """Equal to merging each module with the numbers that its patterns give."""
    adapters = mixed_adapters()
    weights: list = [ONE_BY_ONE, 0.7, {"*": 0.0, "up_proj": 1.5, "k_proj": -1.0}]
    merged = lego.merge(adapters, method=method, weights=weights, **({"rank": "all"} if method == "svd" else {}))
    for module in merged.modules:
        numbers = [weight_at(weight, module) for weight in weights]
        total = sum(abs(number) for number in numbers) if method == "average" else 1
        expected = dense_sum(adapters, numbers, module) / total
        np.testing.assert_allclose(merged[module].delta(), expected, atol=3e-6)


def test_a_pattern_of_zero_takes_modules_out() -> None:
    one = make_adapter("one", 1)
    merged = lego.merge([one], method="lego", weights=[{"k_proj": 0}])
    assert merged.kinds == ("q_proj",)
    assert merged.recipe.sources[0].weight == {"k_proj": 0}
    assert lego.Recipe.from_yaml(merged.recipe.to_yaml()) == merged.recipe
    assert "(k_proj +0)" in merged.report.text()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([{"v_proj": 1.0}, 1], "pattern 'v_proj' matches none of its modules"),
        ([{"q_proj": float("nan")}, 1], "finite number"),
        ([True, 1], "finite number"),
        (["1", 1], "finite number"),
        ([{"*": 0}, 0], "all weights are 0"),
    ],
)
def test_bad_weights(weights: list, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        lego.merge(equal_adapters(2), weights=weights)


@pytest.mark.parametrize("share", [50, 90, 99.5, 100])
@pytest.mark.parametrize("method", ["svd", "lego"])
def test_rank_by_kept_energy(method: str, share: float) -> None:
    """Each module gets the least rank whose singular values keep the share of ‖D‖², as NumPy's SVD tells."""
    adapters = mixed_adapters()
    name = "rank" if method == "svd" else "k"
    merged = lego.merge(adapters, method=method, **{name: f"{share}%"})
    for module, spec in merged.modules.items():
        energy = np.linalg.svd(dense_sum(adapters, [1, 1, 1], module), compute_uv=False) ** 2
        kept = energy.cumsum() / energy.sum()
        assert spec.rank == int((kept < share / 100 - 1e-9).sum()) + 1
    assert merged.recipe.parameters[name] == f"{share}%"


def test_energy_is_the_same_whatever_is_merged_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = mixed_adapters()
    together = lego.merge(adapters, k="80%")
    monkeypatch.setattr("lego.units.GROUP_BYTES", 1)
    alone = lego.merge(adapters, k="80%")
    for module in together.modules:
        torch.testing.assert_close(together[module].delta(), alone[module].delta())


@pytest.mark.parametrize("rank", ["0%", "101%", "%", "r%", "2r%", "nan%", "1.5", "-2r", "inf"])
def test_bad_ranks(rank: str) -> None:
    with pytest.raises(AdapterError, match="kept energy such as 95%"):
        lego.merge(equal_adapters(2), method="svd", rank=rank)


@pytest.mark.parametrize("weight", [1e-50, -1e30, 1e39, 10**400, float("inf")])
@pytest.mark.parametrize("method", ["sum", "ties_svd", "linear"])
def test_weights_that_fp32_cannot_compute_with(method: str, weight: float) -> None:
    with pytest.raises(AdapterError, match="a weight must be a finite number, 0 or 1e-25 to"):
        lego.merge(equal_adapters(2), method=method, weights=[weight, 1])


@pytest.mark.parametrize("scale", [0.0, 1e-40, float("nan"), 1e30])
@pytest.mark.parametrize("method", ["sum", "ties", "linear", "dare_ties_svd"])
def test_scales_that_fp32_cannot_compute_with(method: str, scale: float) -> None:
    one, other = equal_adapters(2)
    bad = Adapter.from_factors("bad", {m: Factors(other[m].down, other[m].up, scale) for m in other.modules})
    with pytest.raises(AdapterError, match=r"bad, model.*_proj: its scale .* times its weight"):
        lego.merge([one, bad], method=method)


@pytest.mark.parametrize(
    ("down", "up", "bias", "reason"),
    [
        ((4, 8), (6, 3), None, r"down \(4, 8\) and up \(6, 3\) are no LoRA"),
        ((0, 8), (6, 0), None, "are no LoRA"),
        ((4, 8, 1), (6, 4), None, "are no LoRA"),
        ((4, 8), (6, 4), (5,), r"bias \(5,\) does not belong to 6 outputs"),
    ],
)
def test_factors_that_do_not_belong_together(down: tuple, up: tuple, bias: tuple | None, reason: str) -> None:
    factors = Factors(torch.ones(down), torch.ones(up), bias=None if bias is None else torch.ones(bias))
    with pytest.raises(AdapterError, match=f"x, m: .*{reason}"):
        Adapter.from_factors("x", {"m": factors})


def test_hashes_in_memory_tell_scales_and_biases_apart() -> None:
    down, up = torch.ones(1, 2), torch.ones(3, 1)
    several = [Factors(down, up), Factors(down, up, 2.0), Factors(down, up, bias=torch.ones(3))]
    assert len({Adapter.from_factors("x", {"m": factors}).sha256 for factors in several}) == 3


def test_a_pool_where_every_weight_is_zero() -> None:
    one = make_adapter("one", 1)
    with pytest.raises(AdapterError, match=r"q_proj: has weight 0 in every adapter"):
        pool([one, make_adapter("other", 2, kinds=("k_proj",))], LAYER_0, [0, 1])


def biased(name: str, seed: int, scale: float) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Adapter.from_factors(name, {"m": Factors(new(3, 8), new(6, 3), scale, bias=new(6))})


def test_biases_are_summed_with_weight_and_scale() -> None:
    one, other = biased("one", 1, 2.0), biased("other", 2, 0.5)
    expected = 0.3 * 2.0 * one["m"].bias - 4 * 0.5 * other["m"].bias
    for method, factor in (("sum", 1), ("lego", 1), ("ties", 1), ("average", 1 / 4.3)):
        merged = lego.merge([one, other], method=method, weights=[0.3, -4], strength=1.5)
        torch.testing.assert_close(merged["m"].bias, 1.5 * factor * expected)
        assert merged.modules["m"].bias
    assert lego.merge([one, make_adapter("plain", 1)], method="sum")["m"].bias is not None


def test_forms_survive_and_must_agree() -> None:
    down, up = torch.randn(2, 27), torch.randn(4, 2)
    conv = Adapter.from_factors("conv", {"m": Factors(down, up, kernel=(3, 3))})
    merged = lego.merge([conv, conv], method="svd")
    assert merged.modules["m"].kernel == (3, 3)
    linear = Adapter.from_factors("linear", {"m": Factors(down, up)})
    with pytest.raises(AdapterError, match=r"conv: 27 → 4, kernel 3×3, linear: 27 → 4"):
        lego.merge([conv, linear])
    tokens = Adapter.from_factors("tokens", {"m": Factors(down, up, embedding=True)})
    assert lego.merge([tokens], method="sum").modules["m"].embedding


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(AdapterError, match=f"no device '{device}'"):
        lego.merge(equal_adapters(2), device=device)


def test_a_device_without_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, **__: object) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(AdapterError, match="no device 'cpu' here that computes in fp64"):
        lego.merge(equal_adapters(2), device="cpu")


def test_what_weighs_nothing_names_nothing() -> None:
    """Neither its base nor its config, which then need not agree with those of the others."""
    one, other = equal_adapters(2)
    one.base_model, other.base_model = "one/base", "other/base"
    one.config, other.config = {"task_type": "SEQ_CLS"}, {"task_type": "CAUSAL_LM"}
    merged = lego.merge([one, other], weights=[{"*": 0}, 1])
    assert (merged.base_model, merged.config) == ("other/base", other.config)
    assert merged.report.warnings == ["weight 0, so not in the merge: adapter0"]
    assert "weight 0" in lego.merge([one, one], weights=[1, 0]).report.warnings[0]


def test_numpys_seeds_are_seeds() -> None:
    assert lego.merge(equal_adapters(2), seed=np.int64(3)).recipe.seed == 3


@pytest.mark.parametrize("seed", ["x", 1.5, None, True])
def test_seeds_that_are_none(seed: object) -> None:
    with pytest.raises(AdapterError, match="the seed must be a whole number"):
        lego.merge(equal_adapters(2), seed=seed)


def test_the_source_that_is_not_finite_is_named() -> None:
    one, other = equal_adapters(2)
    bad = Adapter.from_factors("bad", {m: Factors(other[m].down * torch.nan, other[m].up) for m in other.modules})
    for method in ("lego", "sum", "ties", "concat"):
        with pytest.raises(AdapterError, match=r"bad, .*_proj: holds NaN or infinite"):
            lego.merge([one, bad], method=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_biases_are_looked_at(value: float) -> None:
    one = biased("one", 1, 2.0)
    bad = Adapter.from_factors("bad", {"m": Factors(one["m"].down, one["m"].up, bias=torch.full((6,), value))})
    with pytest.raises(AdapterError, match="bad, m: holds NaN or infinite"):
        lego.merge([one, bad], method="sum")
