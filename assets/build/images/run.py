"""A seeded training run that may be interrupted at any moment and goes on from its last checkpoint as if nothing had been.

Every step draws from a generator of its own, made from the run's seed and the step's number, and the learning rate is a
function of the step: so weights, Adam's moments and the averaged weights are the whole state.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assets.build.packages import BuildError

CHECKPOINT_SECONDS, REPORT_STEPS = 180, 50
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Plan:
    """How long and how fast a module learns.

    Attributes:
        steps: planned number of steps; the learning rate reaches nothing at the last one.
        batch: pictures a step.
        rate: highest learning rate; linear warm-up, then half a cosine.
        average: how much of the averaged weights a step keeps (EMA).
    """

    steps: int
    batch: int
    rate: float
    seed: int
    average: float
    warmup: int = 100
    decay: float = 0.0

    def rate_at(self, step: int) -> float:
        """Learning rate of one step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


@dataclass
class Deadline:
    """When to stop for now; several runs, one after another, share it."""

    minutes: float | None = None

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def passed(self) -> bool:
        """Whether the time is up."""
        return self.minutes is not None and time.monotonic() - self.began >= 60 * self.minutes


class Run:
    """One module's training.

    Args:
        name: of the checkpoint, ``NAME.checkpoint.safetensors`` in ``folder``.
        module: what learns, on its device; parameters that need no gradient stay as they are.
        loss: given the step's generator (on the CPU, so that every device sees the same draws), the loss of one batch.

    Raises:
        BuildError: the folder holds a checkpoint of another plan.
    """

    def __init__(
        self, name: str, module: nn.Module, plan: Plan, loss: Callable[[torch.Generator], Tensor], folder: Path
    ) -> None:
        self.name, self.module, self.plan, self.loss = name, module, plan, loss
        self.checkpoint = folder / f"{name}.checkpoint.safetensors"
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=plan.rate, weight_decay=plan.decay, fused=True)
        self.step, self.seconds, self.losses = 0, 0.0, torch.zeros(plan.steps)
        if self.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        with safe_open(self.checkpoint, "pt") as file:
            state = json.loads(file.metadata()["state"])
        if state["plan"] != asdict(self.plan):
            raise BuildError(
                f"{self.checkpoint} belongs to another plan, {state['plan']}; remove it, or ask for that plan"
            )
        device = next(iter(self.parameters.values())).device
        tensors = load_file(self.checkpoint, device=str(device))
        self.step, self.seconds, self.losses = state["step"], state["seconds"], tensors["losses"].cpu()
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"weight.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
            # In the parameter's own memory layout, which the fused step relies on.
            moments = {key: torch.empty_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in _MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step), device=device), **moments}

    def save(self) -> None:
        """Write the checkpoint: whole, or the last one stays."""
        tensors = {"losses": self.losses}
        for name, parameter in self.parameters.items():
            tensors |= {f"weight.{name}": parameter.detach(), f"average.{name}": self.average[name]}
            tensors |= {f"{key}.{name}": self.optimizer.state[parameter][key] for key in _MOMENTS}
        state = {"step": self.step, "seconds": self.seconds, "plan": asdict(self.plan)}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.checkpoint.with_suffix(".part")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, {"state": json.dumps(state)}
        )
        os.replace(scratch, self.checkpoint)

    def _advance(self) -> None:
        self.optimizer.param_groups[0]["lr"] = self.plan.rate_at(self.step)
        loss = self.loss(torch.Generator().manual_seed(self.plan.seed * 2**32 + self.step))
        loss.backward()
        parameters = list(self.parameters.values())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - self.plan.average)
        self.losses[self.step] = loss.item()
        self.step += 1

    def train(self, deadline: Deadline) -> bool:
        """Train until the plan is fulfilled or the time is up; whether it is fulfilled. Leaves a checkpoint."""
        self.module.train()
        first, saved = self.step, time.monotonic()
        while self.step < self.plan.steps and not deadline.passed():
            began = time.perf_counter()
            self._advance()
            self.seconds += time.perf_counter() - began
            if self.step % REPORT_STEPS == 0:
                recent = self.losses[self.step - REPORT_STEPS : self.step].mean()
                pace = self.step * self.plan.batch / self.seconds
                print(
                    f"{self.name}: step {self.step}/{self.plan.steps} loss {recent:.4f} {pace:.1f} pictures/s",
                    flush=True,
                )
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        if self.step > first:
            self.save()
        return self.step == self.plan.steps

    def averaged(self) -> nn.Module:
        """A copy of the module with the averaged weights, for use."""
        module = copy.deepcopy(self.module).eval()
        for name, parameter in module.named_parameters():
            if name in self.average:
                parameter.data.copy_(self.average[name])
        return module.requires_grad_(False)
