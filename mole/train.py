"""Training gates: the LoRAs and the base stay frozen, only e and τ of each gate learn (MoLE, arXiv 2404.13628, section 3)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lego.errors import AdapterError
from mole.gate import Gates
from mole.gated import Gated, Route
from mole.losses import balance_loss, entropy
from mole.memory import out_of_memory, release
from mole.pool import LivePool, Weighting

T = TypeVar("T")


class TrainConfig(BaseModel):
    """How gates are trained; the description of a field is what the page and the command line say of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=50, ge=1, le=100_000, description="Updates of the gates.")
    batch: int = Field(default=12, ge=1, le=4096, description="Samples of one update, over all devices.")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Samples in memory at once; all of a batch unless given."
    )
    lr: float = Field(default=2e-4, gt=0, le=1, description="Learning rate of AdamW.")
    warmup: int = Field(default=5, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's decay of the gates' weights.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient.")
    alpha: float = Field(default=0.5, ge=0, le=100, description="α, the weight of the balance loss; 0 leaves it out.")
    calibration: int = Field(
        default=36, ge=2, le=4096, description="Samples that tell a centred gate its inputs' mean and spread."
    )
    seed: int = Field(default=0, ge=0, description="Which samples come when.")


@dataclass(frozen=True)
class Batch:
    """Samples as tensors.

    Attributes:
        inputs: arguments of the base's forward pass; tensors have a row for each sample.
        prompt: which tokens the gates read, (rows, tokens).
        targets: what the loss needs, a row for each sample.
    """

    inputs: dict[str, object]
    prompt: Bool[Tensor, "rows tokens"]
    targets: Tensor

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        inputs = {key: value[rows] if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        return Batch(inputs, self.prompt[rows], self.targets[rows])

    def to(self, device: torch.device) -> Batch:
        """The samples on a device."""
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        return Batch(inputs, self.prompt.to(device), self.targets.to(device))

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Progress:
    """A training as far as it has come.

    Attributes:
        step, steps: updates done, and all.
        loss: L_D of the last step, before its update.
        balance, entropy: of its gates; entropy in nats.
        shares: each gate's mean choice over the step's samples, (gates, experts).
        seconds: since the start, this time.
        stopped: why training ended early; None while it goes on or when it is done.
    """

    step: int
    steps: int
    loss: float
    balance: float
    entropy: float
    shares: Float[Tensor, "gates experts"]
    seconds: float
    stopped: str | None = None


class GatedModel(nn.Module):
    """A base, a pool of LoRAs beside it and gates that mix them, as one module whose only parameters that learn are the gates'."""

    def __init__(
        self, model: nn.Module, pool: LivePool, gates: Gates, loss: Callable[[object, Tensor], Tensor]
    ) -> None:
        """Nothing of the base is changed.

        Args:
            model: the frozen base.
            pool: with the gates' experts.
            gates: what learns.
            loss: L_D from the base's output and a batch's targets, a mean over samples.
        """
        super().__init__()
        self.model, self.gates, self.loss = model, gates, loss
        self.live = Gated(model, pool)
        self._rows = 0

    def forward(self, batch: Batch) -> tuple[Tensor, Route]:
        """L_D of the samples, and what the gates saw and chose."""
        if len(batch) != self._rows:
            every = Weighting(tuple((key, 1.0) for key in self.gates.experts))
            self.live.set_rows(self.live.pool.row_weights([every] * len(batch)), [Route(self.gates, range(len(batch)))])
            self._rows = len(batch)
        route = self.live.routes[0]
        route.chosen, route.reads = {}, {}
        self.live.prompt = batch.prompt
        with self.live:
            return self.loss(self.model(**batch.inputs), batch.targets), route


class Trainer:
    """One training, step by step; `state` and `resume` stop and continue it exactly.

    What a step learns from depends on the seed and the step's number alone.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: LivePool,
        gates: Gates,
        batch_of: Callable[[int, int], Batch],
        loss: Callable[[object, Tensor], Tensor],
        config: TrainConfig,
    ) -> None:
        """Ready for the first step.

        Args:
            model: the frozen base, in the precision it shall compute in: bf16 on GPUs, fp32 on CPUs.
            pool: the LoRAs.
            gates: what learns.
            batch_of: samples of a step, from its number and how many; negative numbers are for calibration.
            loss: L_D from the base's output and a batch's targets, a mean over samples.
            config: how.
        """
        self.config, self.gates, self.batch_of = config, gates, batch_of
        self.accelerator = Accelerator(cpu=pool.device.type == "cpu")
        self.device = pool.device
        gates.to(self.device)
        self.optimizer = torch.optim.AdamW(gates.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.gated = self.accelerator.prepare_model(GatedModel(model, pool, gates, loss), device_placement=False)
        self.micro = config.micro_batch or config.batch
        self.step = 0
        self.good = self.state()

    def run(self, stop: threading.Event | None = None) -> Iterator[Progress]:
        """Train to the end; yields after every step. What was learned is in the gates whenever it ends.

        Raises:
            AdapterError: when a single sample does not fit into memory.
        """
        start, stop = time.perf_counter(), stop or threading.Event()
        if self.step == 0 and self.gates.config.normalise == "centred":
            self.calibrate()
        last: Progress | None = None
        while self.step < self.config.steps and not stop.is_set():
            found = self.update(start)
            if not math.isfinite(found.loss):
                self.resume(self.good)
                told = f"the loss of step {found.step + 1} is {found.loss}: the gates are those of step {self.step}, the last good one"
                yield replace(last or found, step=self.step, stopped=told)
                return
            yield (last := found)

    def calibrate(self) -> None:
        """Take the mean and spread of what each gate sees from samples, with gates that trust all alike."""

        def look(part: Batch, _: float) -> dict[str, Tensor]:
            with torch.no_grad():
                route: Route = self.gated(part)[1]
            return route.reads

        found = self.in_parts(self.batch_of(-1, self.config.calibration), look)
        for site, gate in self.gates.items():
            gate.calibrate(torch.cat([reads[site.name] for reads in found]))

    def update(self, start: float) -> Progress:
        """One step: its gradient in as many parts as memory needs, then the gates' update unless the loss is not finite."""
        own = self.accelerator.num_processes
        batch = self.batch_of(self.step, self.config.batch)
        batch = batch.part(slice(self.accelerator.process_index, None, own)) if own > 1 else batch
        sums = torch.stack(self.in_parts(batch, self.backward)).sum(dim=0)
        loss, balance, spread = self.accelerator.reduce(sums[:3], "mean").tolist()
        shares = self.accelerator.reduce(sums[3:], "mean").view(len(self.gates.sites), -1).cpu()
        if math.isfinite(loss + balance):
            self.good = self.state()
            self.accelerator.clip_grad_norm_(self.gates.parameters(), self.config.clip)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * min(1.0, (self.step + 1) / max(1, self.config.warmup))
            self.optimizer.step()
            self.step += 1
        return Progress(self.step, self.config.steps, loss, balance, spread, shares, time.perf_counter() - start)

    def in_parts(self, batch: Batch, work: Callable[[Batch, float], T]) -> list[T]:
        """Work on a batch part by part, each with its share of the batch; anew in smaller parts where memory runs out.

        Raises:
            AdapterError: when a single sample does not fit.
        """
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return [work(part.to(self.device), len(part) / len(batch)) for part in parts(batch, self.micro)]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.micro == 1:
                    fix = "Use shorter samples or a smaller base."
                    raise AdapterError("one sample alone does not fit into memory for training", None, fix) from error
            self.micro = max(1, min(self.micro, len(batch)) // 2)
            release(self.device)

    def backward(self, part: Batch, share: float) -> Float[Tensor, "sums"]:
        """Gradients of one part of a batch; its share of the batch's sums."""
        loss, route = self.gated(part)
        chosen = list(route.chosen.values())
        balance = balance_loss(chosen, len(self.gates.experts))
        self.accelerator.backward((loss + self.config.alpha * balance) * share)
        with torch.no_grad():
            means = torch.stack([gate.mean(dim=0) for gate in chosen]).flatten()
            return share * torch.cat([torch.stack([loss, balance, entropy(chosen)]).float(), means])

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        found = {f"gates.{key}": value.detach().clone() for key, value in self.gates.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": torch.as_tensor(value).clone() for key, value in moments.items()}
        return found | {"step": torch.tensor(self.step)}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            AdapterError: when it belongs to other gates.
        """
        gates = {key.removeprefix("gates."): value for key, value in state.items() if key.startswith("gates.")}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                moments.setdefault(int(number), {})[name] = value.clone()
        try:
            self.gates.load_state_dict(gates)
        except RuntimeError as error:
            raise AdapterError("the checkpoint belongs to other gates", None, "Start anew.") from error
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = int(state["step"])


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of at most so many samples."""
    for start in range(0, len(batch), size):
        yield batch.part(slice(start, start + size))
