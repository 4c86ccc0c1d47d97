"""Trains gates on a net of two layers: what each of several processes does, and what one does alone.

Run as ``python -m tests.processes FOLDER`` with the variables that accelerate sets; quick to import.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lego import Adapter, Factors
from mole.batch import Batch
from mole.gate import GateConfig, Gates
from mole.pool import LivePool
from mole.sites import Site
from mole.train import TrainConfig, Trainer

UNEVEN = TrainConfig(steps=4, batch=5, micro_batch=2, alpha=0.5, lr=0.05, warmup=2, calibration=6)
SINGLE = TrainConfig(steps=4, batch=1, alpha=0.5, lr=0.05, warmup=2, calibration=6)
"""Three samples here and two there; one here and none there."""


class Net(nn.Module):
    """Two layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def net_trainer(config: TrainConfig) -> Trainer:
    """A training of two gates over two LoRAs on noise."""
    torch.manual_seed(0)
    net, sizes = Net().requires_grad_(False), {"one": (6, 5), "two": (5, 4)}
    adapters = {
        name: Adapter.from_factors(name, {m: Factors(torch.randn(2, i), torch.randn(o, 2)) for m, (i, o) in sizes.items()})
        for name in ("first", "second")
    }  # fmt: skip
    pool = LivePool(adapters, "cpu", torch.float32)
    sites = [Site(name, (name,), (name,)) for name in sizes]

    def batch_of(step: int, count: int) -> Batch:
        noise = torch.Generator().manual_seed(step + 100)
        x, y = torch.randn(count, 3, 6, generator=noise), torch.randn(count, 3, 4, generator=noise)
        return Batch({"x": x}, torch.ones(count, 3, dtype=torch.bool), y)

    def loss(out: object, targets: Tensor) -> Tensor:
        assert isinstance(out, Tensor)
        return (out - targets).square().mean()

    gates = Gates.fresh(GateConfig(granularity="module"), tuple(adapters), sites, pool)
    return Trainer(net, pool, gates, batch_of, loss, config)


def trained(config: TrainConfig) -> tuple[Trainer, dict[str, Tensor]]:
    """A training that has run to its end; its gates and losses."""
    trainer = net_trainer(config)
    losses = [progress.loss for progress in trainer.run()]
    return trainer, {**trainer.gates.state_dict(), "losses": torch.tensor(losses)}


def two_processes(*arguments: str, **more: str) -> list[str]:
    """Python twice, with the variables that ``accelerate launch --cpu --num_processes 2`` sets; what each wrote.

    Args:
        arguments: of Python.
        more: joins the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        **more,
    }
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[1],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=240)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, text in zip(running, told, strict=True):
        assert process.returncode == 0, text[-2000:]
    return told


def main(folder: Path) -> None:
    """Two trainings to their end; a third one is stopped, which only the second process is told."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, config in (("uneven", UNEVEN), ("single", SINGLE)):
        trainer, found = trained(config)
        assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"])
        save_file(found, folder / f"{name}-{rank}.safetensors")
    trainer, stop = net_trainer(UNEVEN.model_copy(update={"steps": 20})), threading.Event()
    for progress in trainer.run(stop):
        if rank == 1 and progress.step == 3:
            stop.set()
    save_file({"step": torch.tensor(trainer.step)}, folder / f"stopped-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
