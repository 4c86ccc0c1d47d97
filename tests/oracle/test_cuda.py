"""The same merges and gates on a GPU, where there is one: equal to the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lego
from lego.__main__ import main
from mole.batch import Batch
from mole.gate import GateConfig, Gates
from mole.losses import answer_loss
from mole.pool import LivePool
from mole.sites import find_sites
from mole.train import TrainConfig, Trainer
from tests.conftest import mixed_adapters
from tests.naive_gates import some_adapters
from tests.tiny import tiny_model

# Nothing stands in for a GPU: the operations' own kernels are what is compared. `make gpu` runs this where there is one.
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


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_gated_texts(dtype: torch.dtype, close: float) -> None:
    """Gates and their training on the GPU against the CPU's in fp32: the same choices, the same losses."""
    found = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        adapters, model = some_adapters(), tiny_model().to(device, kind)
        pool = LivePool(adapters, device, kind)
        ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
        batch = Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), ids)
        sites = find_sites(model, pool.modules, "block", lambda ids=ids, model=model: model(ids.to(model.device)))
        gates = Gates.fresh(GateConfig(), tuple(adapters), sites, pool)
        config = TrainConfig(steps=4, batch=2, calibration=2, lr=0.01, warmup=0)
        trainer = Trainer(
            model, pool, gates, lambda *_, batch=batch: batch, lambda out, t: answer_loss(out.logits, t), config
        )
        progress = list(trainer.run())
        assert {parameter.dtype for parameter in gates.parameters()} == {torch.float32}
        found.append((torch.stack([step.shares for step in progress]), [step.loss for step in progress]))
    (shares, losses), (cuda_shares, cuda_losses) = found
    torch.testing.assert_close(cuda_shares, shares, atol=close, rtol=0)
    assert cuda_losses == pytest.approx(losses, rel=close)
