"""What holds of every method whatever the adapters are: shapes, ranks, scales, weights and types as hypothesis finds them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lego
from lego import Adapter, Factors
from tests.reference import dense_sum
from tests.unit.lego.methods.test_matrix import LOSSLESS, METHODS

few = settings(derandomize=True, deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
sides = st.sampled_from([1, 2, 3, 5, 8, 17])
scales = st.sampled_from([1.0, 0.25, 2.0, 16.0, -1.5, 1e-8, 3000.0])
weights = st.sampled_from([1.0, 0.5, -1.0, 3.0, 0.01, -0.3, 40.0, 1e-7, -1e5])
MODULES = ["layers.0.q", "layers.0.k", "layers.10.q"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_method = pytest.mark.parametrize("method", METHODS)


@st.composite
def adapters(draw: st.DrawFn, least: int = 1, most: int = 3, degenerate: bool = True) -> list[Adapter]:
    """Adapters of one base: ranks up to beyond the dimensions, modules missing, some of zero, copies or opposites of others."""
    shapes = {module: (draw(sides), draw(sides)) for module in MODULES}
    found: list[Adapter] = []
    for number in range(draw(st.integers(least, most))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
        own = draw(st.sets(st.sampled_from(MODULES), min_size=1))
        kind = draw(st.sampled_from(["usual"] * 4 + ["untrained", "copy", "opposite", "one direction"] * degenerate))
        factors = {}
        for module in sorted(own):
            d_in, d_out = shapes[module]
            rank = draw(st.integers(1, 12))
            down, up = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
            if kind == "untrained":  # as PEFT initialises it
                up = torch.zeros_like(up)
            if kind == "one direction":
                down = down[:1].expand(rank, d_in).clone()
            factors[module] = Factors(down, up, draw(scales))
        if found and kind in ("copy", "opposite"):
            sign = 1 if kind == "copy" else -1
            factors = {m: Factors(found[0][m].down, sign * found[0][m].up, found[0][m].scale) for m in found[0].modules}
        found.append(Adapter.from_factors(f"a{number}", factors))
    return found


def dense(adapter: Adapter) -> dict[str, np.ndarray]:
    return {module: dense_sum([adapter], [1.0], module) for module in adapter.modules}


def size(sources: list[Adapter], given: list[float]) -> dict[str, float]:
    """Σ_j |w_j s_j| ‖B_j‖ ‖A_j‖ of each module: what rounding in fp32 is relative to, whatever cancels."""
    found: dict[str, float] = {}
    for adapter, weight in zip(sources, given, strict=True):
        for module in adapter.modules:
            f = adapter[module]
            found[module] = found.get(module, 0) + abs(weight * f.scale) * float(f.up.norm() * f.down.norm())
    return found


def check_close(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], sizes: dict[str, float], bound: float
) -> None:
    assert set(ours) == set(theirs)
    for module, expected in theirs.items():
        assert np.abs(ours[module] - expected).max() <= bound * sizes[module] + 1e-30, module


def sums(sources: list[Adapter], given: list[float]) -> dict[str, np.ndarray]:
    return {m: dense_sum(sources, given, m) for m in {m for a in sources for m in a.modules}}


def exact(method: str, sources: list[Adapter], given: list[float], **more: float) -> dict[str, np.ndarray]:
    return dense(
        lego.merge(sources, method=method, weights=given, **({"rank": "all"} if method == "svd" else {}), **more)
    )


@pytest.mark.parametrize("method", ["sum", "concat", "svd"])
@few
@given(data=st.data(), sources=adapters())
def test_exact_methods_give_the_sum(method: str, data: st.DataObject, sources: list[Adapter]) -> None:
    given = [data.draw(weights) for _ in sources]
    check_close(exact(method, sources, given), sums(sources, given), size(sources, given), 1e-5)
    factor = data.draw(st.sampled_from([-2.0, 0.1, 5.0]))
    times = [factor * weight for weight in given]
    check_close(
        exact(method, sources, times),
        {m: factor * d for m, d in sums(sources, given).items()},
        size(sources, times),
        1e-5,
    )


@few
@given(data=st.data(), sources=adapters())
def test_the_average_is_the_sum_over_the_weights(data: st.DataObject, sources: list[Adapter]) -> None:
    given = [data.draw(weights) for _ in sources]
    shares = [weight / sum(map(abs, given)) for weight in given]
    check_close(exact("average", sources, given), sums(sources, shares), size(sources, shares), 1e-5)


@every_method
@few
@given(sources=adapters(), data=st.data())
def test_every_merge_is_finite_and_reported_as_it_is(method: str, sources: list[Adapter], data: st.DataObject) -> None:
    """Also where nothing is left; ranks, norms and fidelity against dense numbers; strength is linear."""
    given = [data.draw(weights) for _ in sources]
    merged = lego.merge(sources, method=method, weights=given)
    found, target = dense(merged), sums(sources, given)
    for module, spec in merged.modules.items():
        assert np.isfinite(found[module]).all()
        assert found[module].shape == target[module].shape
        assert spec.rank <= max(
            sum(a.modules[module].rank for a in sources if module in a.modules), *found[module].shape
        )
    report = merged.report
    assert report is not None
    after, before = (float(np.sqrt(sum((d**2).sum() for d in deltas.values()))) for deltas in (found, target))
    total = sum(size(sources, given).values()) + after
    assert abs(report.norm_after - after) <= 1e-4 * total
    assert abs(report.norm_before - before) <= 1e-4 * total
    apart = float(np.sqrt(sum(((found[m] - target[m]) ** 2).sum() for m in found)))
    if before > 1e-3 * total:
        assert abs(report.relative_error - apart / before) <= 1e-3 * (1 + apart / before)
    twice = dense(lego.merge(sources, method=method, weights=given, strength=-2.0))
    check_close(twice, {m: -2 * d for m, d in found.items()}, {m: np.abs(d).max() for m, d in found.items()}, 1e-4)


@every_method
@few
@given(sources=adapters(1, 1, degenerate=False))
def test_one_adapter_gives_itself(method: str, sources: list[Adapter]) -> None:
    parameters = dict(LOSSLESS.get(method, {}))
    if any(parameter.name == "rank" for parameter in lego.method(method).parameters):
        parameters["rank"] = "all"
    if method == "lego":
        parameters["k"] = "all"
    merged = lego.merge(sources, method=method, **parameters)
    check_close(dense(merged), dense(sources[0]), size(sources, [1.0]), 1e-4)


@every_method
@few
@given(sources=adapters(2, 3, degenerate=False), data=st.data())
def test_the_order_of_units_and_of_adapters(method: str, sources: list[Adapter], data: st.DataObject) -> None:
    """As methods declare it; clusters may tip over where two partitions are as good, so LEGO's are taken at full rank."""
    given, more = [data.draw(weights) for _ in sources], {"k": "all"} if method == "lego" else {}
    sizes = size(sources, given)
    before = dense(lego.merge(sources, method=method, weights=given, **more))
    if lego.method(method).unit_invariant and method not in ("core", "ctm", "knots_ties"):  # trimming is not continuous
        first = {m: Factors(f.down.flip(0), f.up.flip(1), f.scale) for m in sources[0].modules for f in [sources[0][m]]}
        moved = [Adapter.from_factors("flipped", first), *sources[1:]]
        check_close(dense(lego.merge(moved, method=method, weights=given, **more)), before, sizes, 1e-4)
    if "dare" not in method and method not in ("core", "ctm", "knots_ties"):
        back = lego.merge(sources[::-1], method=method, weights=given[::-1], **more)
        check_close(dense(back), before, sizes, 1e-4)


@few
@given(sources=adapters(), data=st.data(), share=st.integers(1, 100))
def test_the_kept_energy(sources: list[Adapter], data: st.DataObject, share: int) -> None:
    """svd at "N%" is the least rank whose singular values hold that share of ‖D‖²."""
    given = [data.draw(weights) for _ in sources]
    merged = lego.merge(sources, method="svd", weights=given, rank=f"{share}%")
    for module, target in sums(sources, given).items():
        values = np.linalg.svd(target, compute_uv=False)
        if values[0] <= 1e-4 * size(sources, given)[module]:
            continue
        held = np.cumsum(values**2) / (values**2).sum()
        rank = merged.modules[module].rank
        assert held[rank - 1] >= share / 100 - 1e-5
        assert rank == 1 or held[rank - 2] < share / 100 + 1e-5


@few
@given(sources=adapters(), data=st.data())
def test_a_merge_of_a_merge(sources: list[Adapter], data: st.DataObject) -> None:
    given = [data.draw(weights) for _ in sources]
    for method in ("sum", "concat", "svd", "tsv"):
        more = {} if method in ("sum", "concat") else {"rank": "all"}
        once = lego.merge(sources, method=method, weights=given, **more)
        check_close(dense(lego.merge([once], method=method, **more)), dense(once), size([once], [1.0]), 1e-4)


@every_method
@settings(few, max_examples=6)
@given(sources=adapters(), data=st.data(), dtype=st.sampled_from(DTYPES))
def test_files(method: str, sources: list[Adapter], data: st.DataObject, dtype: torch.dtype) -> None:
    """What is written is read back but for rounding; from files to files gives the same bytes as by way of memory."""
    given = [data.draw(weights) for _ in sources]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read = [lego.read_adapter(lego.write_adapter(a, folder / a.name, torch.float32)) for a in sources]
        merged = lego.merge(read, method=method, weights=given, name="out")
        if max(float(half.abs().max()) for m in merged.modules for half in (merged[m].down, merged[m].up)) > 65000:
            dtype = torch.float32
        lego.write_adapter(merged, folder / "one", dtype)
        lego.merge_into(folder / "out", read, method=method, weights=given, dtype=dtype)
        files = [folder / place / "adapter_model.safetensors" for place in ("one", "out")]
        assert files[0].read_bytes() == files[1].read_bytes()
        rounded = {m: (f.down.to(dtype).double(), f.up.to(dtype).double()) for m in merged.modules for f in [merged[m]]}
        expected = {m: (up @ down).numpy() for m, (down, up) in rounded.items()}
        sizes = {m: float(down.norm() * up.norm()) for m, (down, up) in rounded.items()}
        check_close(dense(lego.read_adapter(folder / "one")), expected, sizes, 1e-6)
