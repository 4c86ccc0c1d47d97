"""The merge report and fidelity, against dense arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lego
from lego.fidelity import compare
from lego.verify import read_report
from tests.conftest import equal_adapters, make_adapter, mixed_adapters
from tests.reference import dense_sum


@pytest.mark.parametrize("method", ["lego", "svd", "linear", "ties"])
def test_fidelity_equals_dense_arithmetic(method: str) -> None:
    adapters, weights = mixed_adapters(), [1.0, 0.5, -1.0]
    merged = lego.merge(adapters, method=method, weights=weights)
    report = merged.report
    found = {line.module: line for line in report.per_module}
    assert list(found) == list(merged.modules)
    error = norm = target = inner = 0.0
    for module in merged.modules:
        d, m = dense_sum(adapters, weights, module), merged[module].delta().double().numpy()
        line = found[module]
        assert line.relative_error == pytest.approx(np.linalg.norm(m - d) / np.linalg.norm(d), rel=1e-4, abs=1e-6)
        assert line.norm_ratio == pytest.approx(np.linalg.norm(m) / np.linalg.norm(d), rel=1e-4)
        assert line.cosine == pytest.approx((m * d).sum() / np.linalg.norm(m) / np.linalg.norm(d), rel=1e-4)
        assert line.units == sum(a.modules[module].rank for a in adapters if module in a.modules)
        error, norm = error + ((m - d) ** 2).sum(), norm + (m**2).sum()
        target, inner = target + (d**2).sum(), inner + (m * d).sum()
    assert report.relative_error == pytest.approx((error / target) ** 0.5, rel=1e-4, abs=1e-6)
    assert report.norm_ratio == pytest.approx((norm / target) ** 0.5, rel=1e-4)
    assert report.cosine == pytest.approx(inner / (norm * target) ** 0.5, rel=1e-4)
    assert (report.norm_before, report.norm_after) == pytest.approx((target**0.5, norm**0.5), rel=1e-4)


def test_norms_of_the_sources_are_before_their_weights() -> None:
    adapters = mixed_adapters()
    report = lego.merge(adapters, weights=[1, 0.5, -3]).report
    for adapter, line in zip(adapters, report.sources, strict=True):
        dense = sum(float((adapter[m].delta() ** 2).sum()) for m in adapter.modules) ** 0.5
        assert line.norm == pytest.approx(dense, rel=1e-4)
        assert line.sha256 == adapter.sha256


def test_a_target_of_zero() -> None:
    down, up = torch.randn(1, 2, 5), torch.randn(1, 4, 2)
    zero = torch.zeros(1, 1, 5), torch.zeros(1, 4, 1)
    against_zero = compare(down, up, *zero)
    assert float(against_zero.relative_error) == float("inf")
    assert float(against_zero.cosine) == 0
    both = compare(*zero, *zero)
    assert (float(both.relative_error), float(both.norm_ratio), float(both.cosine)) == (0, 1, 1)


def test_a_report_against_a_target_of_zero_is_read_again(tmp_path: Path) -> None:
    """JSON has no infinity."""
    one = make_adapter("one", 1)
    report = lego.merge_into(tmp_path / "out", [one, one], method="dare_linear", weights=[1, -1])
    assert report.relative_error == report.per_module[0].norm_ratio == float("inf")
    assert read_report(tmp_path / "out" / "report.json") == report


def test_small_errors_are_seen() -> None:
    """fp64 sums: a relative error of 1e-5 is not lost in the cancellation."""
    down, up = torch.randn(1, 3, 50), torch.randn(1, 40, 3)
    found = compare(down, up * (1 + 1e-5), down, up)
    assert float(found.relative_error) == pytest.approx(1e-5, rel=0.05)


def test_warnings_tell_what_one_would_not_see() -> None:
    def warnings(adapters, **call) -> str:
        return " ".join(lego.merge(adapters, **call).report.warnings)

    assert "as many clusters as units" in warnings(equal_adapters(2))
    assert "as many clusters as units" not in warnings(equal_adapters(2), k="1r")
    assert "as many clusters as units" not in warnings(equal_adapters(3))
    assert "padded" in warnings(mixed_adapters(), method="ties")
    assert "different modules" in warnings(mixed_adapters())
    assert "cross terms" in warnings(equal_adapters(), method="linear")
    assert "weight 0" in warnings(equal_adapters(2), weights=[1, 0])
    assert "times as strong" in warnings(equal_adapters(), method="concat", strength=5)
    assert warnings([make_adapter("one", 1)], method="sum") == ""
    one, other = equal_adapters(2)
    one.base_model, other.base_model = "someone/base", "other/base-4bit"
    assert "someone/base, other/base-4bit" in warnings([one, other])
    assert lego.merge([one, other]).base_model == "someone/base"


def test_report_text_names_sources_and_fidelity() -> None:
    text = lego.merge(equal_adapters(2), method="sum", name="both").report.text()
    assert "+1 × adapter0" in text
    assert "→ both: 4 modules, rank 8" in text
    assert "norm ratio 1," in text


def test_progress_and_stopping() -> None:
    seen = []
    lego.merge(mixed_adapters(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lego.merge(mixed_adapters(), progress=stop)
