"""Interference, effective weights and comparisons against dense numpy definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lego
from lego import Adapter, AdapterError, Factors
from lego.compare import compare
from lego.effective import effective_weights
from lego.interference import Interference, interference
from tests.conftest import equal_adapters, make_adapter, mixed_adapters

SETS = {
    "equal": (equal_adapters(), None),
    "mixed": (mixed_adapters(), [1.0, 0.5, -2.0]),  # ranks 4, 2, 6; other scales; modules that one or two of them lack
    "dependent": (
        [make_adapter("wide", 1, rank=20), make_adapter("small", 2, rank=1)],
        [0.3, -1.0],
    ),  # 20 of 12 directions
    "patterns": (mixed_adapters(), [{"k_proj": 0.0}, 1.0, {"*.layers.1.*": -0.5}]),
}


def weight_in(weight: object, module: str) -> float:
    """The patterns above by hand."""
    if not isinstance(weight, dict):
        return float(weight)
    if "k_proj" in weight:
        return 0.0 if module.endswith("k_proj") else 1.0
    return -0.5 if ".layers.1." in module else 1.0


class Dense:
    """w_j D_j of every adapter, its units and its bases, dense, in one module; zeros where it has none."""

    def __init__(self, adapters: list[Adapter], weights: list | None, module: str) -> None:
        found = [1.0] * len(adapters) if weights is None else [weight_in(w, module) for w in weights]
        d_in, d_out = next((a.modules[module].d_in, a.modules[module].d_out) for a in adapters if module in a.modules)
        self.down, self.up = [], []
        for adapter, weight in zip(adapters, found, strict=True):
            if module in adapter.modules and weight:
                factors = adapter[module]
                self.down.append(factors.down.double().numpy())
                self.up.append(weight * factors.scale * factors.up.double().numpy())
            else:
                self.down.append(np.zeros((0, d_in)))
                self.up.append(np.zeros((d_out, 0)))
        self.delta = [b @ a for a, b in zip(self.down, self.up, strict=True)]
        self.rows = [basis(a.T) for a in self.down]
        self.columns = [basis(b) for b in self.up]

    def cosine(self, i: int, j: int) -> float:
        return over((self.delta[i] * self.delta[j]).sum(), norm(self.delta[i]) * norm(self.delta[j]))

    def units(self, i: int, j: int) -> list[float]:
        """|cosine| of every unit of i with every unit of j, from the dense rank-one matrices."""
        found = []
        for x in range(len(self.down[i])):
            one = np.outer(self.up[i][:, x], self.down[i][x])
            for y in range(len(self.down[j])):
                other = np.outer(self.up[j][:, y], self.down[j][y])
                found.append(abs((one * other).sum()) / norm(one) / norm(other))
        return found or [0.0]

    def overlap(self, bases: list[np.ndarray], i: int, j: int) -> float:
        """Mean squared cosine of the principal angles."""
        angles = np.linalg.svd(bases[i].T @ bases[j], compute_uv=False)
        return over((angles**2).sum(), min(bases[i].shape[1], bases[j].shape[1]))

    def conflict(self, i: int, j: int) -> tuple[float, float]:
        opposed = shared = 0.0
        for x, y in zip(self.delta[i].ravel(), self.delta[j].ravel(), strict=True):
            shared += min(abs(x), abs(y))
            opposed += min(abs(x), abs(y)) if x * y < 0 else 0
        return opposed, shared

    def on_inputs(self, i: int, update: np.ndarray) -> float:
        """‖X P_i‖², P_i = Q_i Q_iᵀ."""
        return norm(update @ self.rows[i] @ self.rows[i].T) ** 2

    def others(self, i: int) -> np.ndarray:
        return sum((d for j, d in enumerate(self.delta) if j != i), np.zeros_like(self.delta[i]))


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def over(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0


def basis(x: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of x."""
    if not x.size:
        return np.zeros((len(x), 0))
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def measured(name: str) -> tuple[Interference, dict[str, Dense]]:
    adapters, weights = SETS[name]
    found = interference(adapters, weights)
    return found, {module: Dense(adapters, weights, module) for module in found.modules}


@pytest.mark.parametrize("name", SETS)
def test_pairs_equal_dense_definitions(name: str) -> None:
    found, dense = measured(name)
    close = {"rel": 1e-5, "abs": 1e-6}
    for m, module in enumerate(found.modules):
        here = dense[module]
        for i, j in np.ndindex(len(found.adapters), len(found.adapters)):
            assert found.norms[m, i] == pytest.approx(norm(here.delta[i]), **close)
            assert found.cosine[m, i, j] == pytest.approx(here.cosine(i, j), **close)
            assert found.unit_max[m, i, j] == pytest.approx(max(here.units(i, j)), **close)
            assert found.unit_mean[m, i, j] == pytest.approx(np.mean(here.units(i, j)), **close)
            assert found.overlap_in[m, i, j] == pytest.approx(here.overlap(here.rows, i, j), **close)
            assert found.overlap_out[m, i, j] == pytest.approx(here.overlap(here.columns, i, j), **close)
            assert found.sign_conflict[m, i, j] == pytest.approx(
                over(*here.conflict(i, j)), **close
            )  # d_out ≤ 64: exact
            reached = here.on_inputs(i, here.delta[j])
            assert found.hit[m, i, j] == pytest.approx(over(reached, norm(here.delta[j]) ** 2), **close)
            assert found.change[m, i, j] == pytest.approx(over(reached**0.5, norm(here.delta[i])), **close)


@pytest.mark.parametrize("name", SETS)
def test_scores_equal_dense_definitions(name: str) -> None:
    found, dense = measured(name)
    for m, module in enumerate(found.modules):
        here, scores = dense[module], []
        for i in range(len(found.adapters)):
            reached, there = here.on_inputs(i, here.others(i)), norm(here.delta[i]) > 0
            scores.append(over(reached, norm(here.others(i)) ** 2) if there else 0.0)
            assert found.scores[m, i] == pytest.approx(scores[-1], rel=1e-5, abs=1e-6)
            assert found.change_by_others[m, i] == pytest.approx(over(reached**0.5, norm(here.delta[i])), rel=1e-5)
        present = sum(norm(delta) > 0 for delta in here.delta)
        assert found.score[m] == pytest.approx(sum(scores) / present, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_total_is_all_modules_as_one_vector(name: str) -> None:
    found, dense = measured(name)
    every, count = found.total(), len(found.adapters)
    flat = [np.concatenate([here.delta[i].ravel() for here in dense.values()]) for i in range(count)]
    for i, j in np.ndindex(count, count):
        assert every.norms[0, i] == pytest.approx(norm(flat[i]), rel=1e-5)
        assert every.cosine[0, i, j] == pytest.approx(
            flat[i] @ flat[j] / norm(flat[i]) / norm(flat[j]), rel=1e-4, abs=1e-6
        )
        conflicts = np.sum([here.conflict(i, j) for here in dense.values()], axis=0)
        assert every.sign_conflict[0, i, j] == pytest.approx(over(*conflicts), rel=1e-5, abs=1e-6)
        both = [here for here in dense.values() if norm(here.delta[i]) and norm(here.delta[j])]
        overlaps = [here.overlap(here.rows, i, j) for here in both]
        assert every.overlap_in[0, i, j] == pytest.approx(np.mean(overlaps) if both else 0, rel=1e-5)
        reached = sum(here.on_inputs(i, here.delta[j]) for here in dense.values())
        assert every.hit[0, i, j] == pytest.approx(reached / norm(flat[j]) ** 2, rel=1e-5, abs=1e-6)
    reached = [sum(here.on_inputs(i, here.others(i)) for here in dense.values()) for i in range(count)]
    scores = [r / norm(sum(f for j, f in enumerate(flat) if j != i)) ** 2 for i, r in enumerate(reached)]
    assert every.scores[0] == pytest.approx(scores, rel=1e-5)
    assert every.score[0] == pytest.approx(np.mean(scores), rel=1e-5)


def test_sign_conflicts_of_a_large_module_are_estimated() -> None:
    """200 outputs, 64 looked at: near the exact share, which differs a lot between the halves of the outputs."""
    generator = np.random.default_rng(0)
    one, other = (generator.standard_normal(s) for s in ((200, 3), (200, 3)))
    other[:100] = one[:100] + 0.1 * other[:100]
    down = generator.standard_normal((3, 30))
    adapters = [lego_adapter(name, down, up) for name, up in (("one", one), ("other", other))]
    here = Dense(adapters, None, "fc")
    opposed, shared = here.conflict(0, 1)
    found = interference(adapters)
    assert found.sign_conflict[0, 0, 1] == pytest.approx(opposed / shared, abs=0.06)
    assert found.sign_conflict[0, 0, 1] != pytest.approx(opposed / shared, abs=1e-6)
    assert found.shared[0, 0, 1] == pytest.approx(shared, rel=0.15)
    exact = interference(adapters, rows=200)
    assert exact.sign_conflict[0, 0, 1] == pytest.approx(opposed / shared, rel=1e-5)


def lego_adapter(name: str, down: np.ndarray, up: np.ndarray) -> Adapter:
    import torch

    return Adapter.from_factors(name, {"fc": Factors(torch.tensor(down).float(), torch.tensor(up).float())})


@pytest.mark.parametrize("method", ["sum", "svd", "ties", "lego"])
def test_effective_weights_equal_least_squares(method: str) -> None:
    sources, weights = mixed_adapters(), [1.0, 0.5, -1.0]
    merged = lego.merge(sources, method=method, weights=weights)
    found = effective_weights(merged, sources)
    blocks, targets = [], []
    for m, module in enumerate(found.modules):
        columns = np.stack([d.ravel() for d in Dense(sources, None, module).delta], 1)
        target = merged[module].delta().double().numpy().ravel()
        expected = np.linalg.lstsq(columns, target, rcond=1e-9)[0]
        assert found.weights[m] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        rest = norm(target - columns @ expected) ** 2
        assert found.explained[m] == pytest.approx(1 - rest / norm(target) ** 2, abs=1e-5)
        blocks.append(columns)
        targets.append(target)
    columns, target = np.concatenate(blocks), np.concatenate(targets)
    expected = np.linalg.lstsq(columns, target, rcond=None)[0]
    assert found.overall == pytest.approx(expected, rel=1e-4, abs=1e-5)
    rest = norm(target - columns @ expected) ** 2
    assert found.overall_explained == pytest.approx(1 - rest / norm(target) ** 2, abs=1e-5)
    if method == "sum":
        assert found.overall == pytest.approx(weights, rel=1e-5)


def test_a_comparison_equals_dense_arithmetic() -> None:
    sources, weights = mixed_adapters(), [1.0, {"q_proj": 0.5}, -1.0]
    merged = lego.merge(sources, method="ties", weights=weights, name="merged")
    adapters = [*sources, merged]
    found = compare(adapters)
    modules = found.products.modules
    flat = [np.concatenate([Dense(adapters, None, m).delta[i].ravel() for m in modules]) for i in range(4)]
    for i, j in np.ndindex(4, 4):
        error = norm(flat[j] - flat[i]) / norm(flat[i])
        assert found.table("relative_error")[i, j] == pytest.approx(error, rel=1e-5, abs=1e-6)
        assert found.table("norm_ratio")[i, j] == pytest.approx(norm(flat[j]) / norm(flat[i]), rel=1e-5)
        cosine = flat[i] @ flat[j] / norm(flat[i]) / norm(flat[j])
        assert found.table("cosine")[i, j] == pytest.approx(cosine, rel=1e-4, abs=1e-6)
    exact = flat[0] + 0.5 * flat[1] - flat[2]  # the second adapts q_proj only
    (check,) = found.merges
    every = check.fidelity.total()
    assert float(every.relative_error) == pytest.approx(norm(flat[3] - exact) / norm(exact), rel=1e-5)
    assert float(every.norm_ratio) == pytest.approx(norm(flat[3]) / norm(exact), rel=1e-5)
    assert found.interference is not None
    assert found.interference.adapters == ("first", "second", "third")
    # On a module that only the third has, the first is zero, and the third infinitely far from it.
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    lonely = next(line for line in told["modules"] if "up_proj" in line["module"])
    assert lonely["relative_error"][0][2] is None
    assert lonely["relative_error"][2][0] == pytest.approx(1)


def test_too_few() -> None:
    one = make_adapter("one", 1)
    for call in (lambda: interference([one]), lambda: compare([one]), lambda: effective_weights(one, [])):
        with pytest.raises(AdapterError):
            call()
