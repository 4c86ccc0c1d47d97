"""The same merges on a GPU, where there is one: equal to the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lego
from lego.__main__ import main
from tests.conftest import mixed_adapters

# Nothing stands in for a GPU: the operations' own kernels are what is compared.
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def distance(one: lego.Adapter, other: lego.Adapter) -> float:
    deltas = [(one[m].delta().double(), other[m].delta().double()) for m in one.modules]
    return float(sum(((x - y) ** 2).sum() for x, y in deltas) / sum((y**2).sum() for _, y in deltas)) ** 0.5


@pytest.mark.parametrize("method", sorted(lego.methods()))
def test_every_method(method: str) -> None:
    adapters, weights = mixed_adapters(), [1.0, 0.5, -1.0]
    here = lego.merge(adapters, method=method, weights=weights)
    there = lego.merge(adapters, method=method, weights=weights, device="cuda")
    assert distance(there, here) < 1e-4
    assert there.report.relative_error == pytest.approx(here.report.relative_error, rel=1e-3, abs=1e-5)


def test_the_command(tmp_path: Path) -> None:
    sources = [str(lego.write_adapter(a, tmp_path / a.name, torch.float32)) for a in mixed_adapters()]
    for device in ("cpu", "cuda"):
        assert (
            main(
                [
                    "merge",
                    "-m",
                    "lego",
                    "--device",
                    device,
                    "--dtype",
                    "float32",
                    "-o",
                    str(tmp_path / device),
                    *sources,
                ]
            )
            == 0
        )
    assert distance(lego.read_adapter(tmp_path / "cuda"), lego.read_adapter(tmp_path / "cpu")) < 1e-4
