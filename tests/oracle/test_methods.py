"""The methods that PEFT does not have, against their own definitions on dense matrices (tests/reference.py)."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

import lego
from lego import Adapter, Factors
from lego.methods import ctm
from lego.rules import RULES, RuleName
from lego.units import pool
from tests.conftest import make_adapter, mixed_adapters
from tests.reference import Draw, core_merge, ctm_merge, dense_sum, knots_merge, ties_entries, tsv_merge, updates

SETS = {
    "mixed": mixed_adapters(),  # ranks 4, 2 and 6, targets and scales differ
    "crowded": [make_adapter(f"a{i}", 20 + i, rank=6) for i in range(3)],  # 18 units, k_proj has 12 outputs
    "rslora": [make_adapter(f"a{i}", 30 + i, rank=r, alpha=5 * r**0.5) for i, r in enumerate((4, 3))],
    "one": [make_adapter("one", 40)],
    "copies": [make_adapter("one", 50), make_adapter("one", 50), make_adapter("other", 51)],
}
WEIGHTS = [[1.0, 1.0, 1.0], [1.0, 0.3, -2.0], [1.0, 0.0, 0.0]]
everywhere = pytest.mark.parametrize(
    ("adapters", "weights"),
    [(adapters, weights[: len(adapters)]) for adapters in SETS.values() for weights in WEIGHTS],
    ids=[f"{name}-{weights[: len(adapters)]}" for name, adapters in SETS.items() for weights in WEIGHTS],
)


def close(found: Adapter, module: str, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    error = np.linalg.norm(found[module].delta().double().numpy() - expected)
    assert error <= tolerance * max(np.linalg.norm(expected), 1e-3), (module, error / np.linalg.norm(expected))


def drops(adapters: list[Adapter], weights: list[float], module: str, seed: int = 3) -> Draw:
    """The random numbers of a merge of this seed."""
    units = pool(adapters, module, weights, seed)
    return lambda source, shape: units.uniform(*shape, stream=source)[0].numpy()


def test_the_table_and_the_names_of_rules_agree() -> None:
    assert set(RULES) == set(get_args(RuleName))


@everywhere
@pytest.mark.parametrize("orthogonal", ["both", "outputs", "inputs"])
@pytest.mark.parametrize("rank", ["all", 5])
def test_tsv(adapters: list[Adapter], weights: list[float], orthogonal: str, rank: int | str) -> None:
    merged = lego.merge(adapters, method="tsv", weights=weights, orthogonal=orthogonal, rank=rank)
    for module in merged.modules:
        count = 5 if rank == 5 else 1000
        close(merged, module, tsv_merge(updates(adapters, weights, module), weights, count, orthogonal))


def test_tsv_of_copies_is_the_original_and_of_orthogonal_adapters_the_sum() -> None:
    one = make_adapter("one", 1)
    merged = lego.merge([one, one, one], method="tsv")
    for module in merged.modules:
        close(merged, module, dense_sum([one], [1], module))
    parts = {m: one[m] for m in one.modules}
    halves = [
        Adapter.from_factors(f"half{i}", {m: orthonormal(f, slice(2 * i, 2 * i + 2)) for m, f in parts.items()})
        for i in range(2)
    ]
    merged = lego.merge(halves, method="tsv", weights=[1.5, -1])
    for module in merged.modules:
        close(merged, module, dense_sum(halves, [1.5, -1], module))


def orthonormal(factors: Factors, units: slice) -> Factors:
    """Some of a LoRA's units after all were made orthonormal."""
    return Factors(torch.linalg.qr(factors.down.T)[0].T[units], torch.linalg.qr(factors.up)[0][:, units], factors.scale)


@everywhere
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("method", "rule"), [("knots_ties", "ties"), ("knots_dare", "dare_ties")])
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_knots(
    adapters: list[Adapter], weights: list[float], method: str, rule: str, density: float, scaled: bool
) -> None:
    merged = lego.merge(adapters, method=method, weights=weights, density=density, scaled=scaled, seed=3)
    for module in merged.modules:
        tensors, draw = updates(adapters, weights, module), drops(adapters, weights, module)
        close(merged, module, knots_merge(rule, tensors, weights, density, scaled, draw), 1e-4)


@everywhere
@pytest.mark.parametrize("weighted", [True, False])
def test_the_vote_counts_weights_where_asked(adapters: list[Adapter], weights: list[float], weighted: bool) -> None:
    """TIES on weighted updates has them in its election; trimming does not see them."""
    merged = lego.merge(adapters, method="ties_svd", weights=weights, density=0.5, weighted_vote=weighted, rank="all")
    for module in merged.modules:
        tensors = updates(adapters, weights, module)
        own, ones = [weights[j] for j in tensors], [1.0] * len(tensors)
        weighted_tensors = [weights[j] * tensor for j, tensor in tensors.items()]
        expected = (
            ties_entries(weighted_tensors, ones, 0.5) if weighted else ties_entries(list(tensors.values()), own, 0.5)
        )
        left, values, right = np.linalg.svd(expected)
        rank = pool(adapters, module, weights).units
        close(merged, module, left[:, :rank] * values[:rank] @ right[:rank] if rank < len(values) else expected, 1e-4)


@everywhere
@pytest.mark.parametrize("method", ["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_factors_of_any_ranks(adapters: list[Adapter], weights: list[float], method: str) -> None:
    """A with A and B with B where PEFT refuses: each trimmed or dropped by itself, then padded with zero units."""
    parameters = {} if method == "linear" else {"density": 0.6}
    merged = lego.merge(adapters, method=method, weights=weights, seed=3, **parameters)
    for module in merged.modules:
        draw, halves = drops(adapters, weights, module), []
        used = {j: adapters[j][module] for j in updates(adapters, weights, module)}
        strengths = {j: weights[j] * factors.scale for j, factors in used.items()}
        for half in "AB":
            sparse = {j: (f.down if half == "A" else f.up).double().numpy() for j, f in used.items()}
            for j, tensor in sparse.items():
                if "dare" in method:
                    tensor = tensor * (draw(f"{half}{j}", tensor.shape) < 0.6) / 0.6
                elif method != "linear":
                    tensor = ties_entries([tensor], [1.0], 0.6)
                more = max(f.rank for f in used.values()) - used[j].rank
                sparse[j] = np.pad(tensor, ((0, more), (0, 0)) if half == "A" else ((0, 0), (0, more)))
            roots = {j: abs(s) ** 0.5 * (np.sign(s) if half == "A" else 1) for j, s in strengths.items()}
            rule = ties_entries if method.endswith("ties") else weighted_sum
            halves.append(rule(list(sparse.values()), list(roots.values()), 1.0))
        close(merged, module, halves[1] @ halves[0], 1e-4)


def weighted_sum(tensors: list[np.ndarray], weights: list[float], _: float) -> np.ndarray:
    return np.sum([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)], axis=0)


@everywhere
@pytest.mark.parametrize("rule", sorted(RULES))
def test_core(adapters: list[Adapter], weights: list[float], rule: str) -> None:
    merged = lego.merge(adapters, method="core", weights=weights, rule=rule, density=0.6, seed=3)
    for module in merged.modules:
        draw = drops(adapters, weights, module)
        close(merged, module, core_merge(rule, adapters, weights, module, 0.6, draw), 1e-4)
        if rule == "sum":
            close(merged, module, dense_sum(adapters, weights, module))


@pytest.mark.parametrize("rule", ["tsv", "magnitude_prune"])
def test_core_space_loses_nothing(rule: str) -> None:
    """TSV in Core Space is TSV, and a rule that trims nothing is the sum."""
    adapters, weights = mixed_adapters(), [1.0, 0.5, -1.0]
    merged = lego.merge(adapters, method="core", weights=weights, rule=rule, density=1.0)
    other = lego.merge(adapters, method="tsv" if rule == "tsv" else "sum", weights=weights)
    for module in merged.modules:
        close(merged, module, other[module].delta().double().numpy())


@everywhere
@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize(("rank", "beta"), [(2, 0.0), (4, 0.25), (3, 1.0)])
def test_ctm(
    adapters: list[Adapter], weights: list[float], rule: str, rank: int, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctm, "TOLERANCE", 1e-14)  # two alternations that stop early need not stop at the same place
    parameters = {"rule": rule, "rank": rank, "beta": beta, "density": 0.6}
    merged = lego.merge(adapters, method="ctm", weights=weights, seed=3, **parameters)
    assert max(merged.ranks) <= rank
    for module in merged.modules:
        tensors, draw = updates(adapters, weights, module), drops(adapters, weights, module)
        here = min(rank, pool(adapters, module, weights).units)
        close(merged, module, ctm_merge(rule, tensors, weights, here, 0.6, beta, draw), 1e-4)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("sum", {}),
        ("svd", {"rank": "all"}),
        ("magnitude_prune_svd", {"density": 1.0}),
        ("core", {"rule": "sum"}),
        ("ctm", {"rule": "sum", "rank": "all"}),
        ("lego", {"k": "all", "geometry": "rank-one", "output_reweighting": False}),
    ],
)
def test_how_an_update_is_spread_over_its_halves_loses_nothing(method: str, parameters: dict) -> None:
    """One adapter large in A and small in B, another the other way round, of updates as strong as each other."""
    one, other = make_adapter("one", 1), make_adapter("other", 2)
    adapters = [
        Adapter.from_factors(a.name, {m: Factors(c * a[m].down, a[m].up / c, a[m].scale) for m in a.modules})
        for a, c in ((one, 1e4), (other, 1e-4))
    ]
    merged = lego.merge(adapters, method=method, **parameters)
    for module in merged.modules:
        close(merged, module, dense_sum([one, other], [1, 1], module))


def test_ctm_of_full_rank_loses_nothing() -> None:
    adapters, weights = mixed_adapters(), [1.0, 0.5, -1.0]
    merged = lego.merge(adapters, method="ctm", weights=weights, rule="sum", rank="all")
    for module in merged.modules:
        close(merged, module, dense_sum(adapters, weights, module))


@everywhere
@pytest.mark.parametrize(("method", "parameters"), [("core", {}), ("ctm", {"rank": "all"})])
def test_no_more_units_than_the_update_has_dimensions(
    adapters: list[Adapter], weights: list[float], method: str, parameters: dict
) -> None:
    merged = lego.merge(adapters, method=method, weights=weights, **parameters)
    assert all(spec.rank <= min(spec.d_in, spec.d_out) for spec in merged.modules.values())


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("tsv", {}),
        ("knots_ties", {}),
        *((m, {"rule": rule}) for m in ("core", "ctm") for rule in RULES if "dare" not in rule),
    ],
)
def test_one_minus_itself_is_nothing(method: str, parameters: dict) -> None:
    one = make_adapter("one", 5)
    merged = lego.merge([one, one], method=method, weights=[1, -1], **parameters)
    assert max(float(merged[module].delta().abs().max()) for module in merged.modules) < 1e-6
