"""Training gates: the LoRAs and the base stay frozen, only e and τ of each gate learn (MoLE, arXiv 2404.13628, section 3)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lego.errors import AdapterError
from mole.batch import Batch, parts
from mole.gate import Gates
from mole.gated import EVERYWHERE, Gated, Route
from mole.losses import balance_loss, balance_of, balance_slope, entropy, mean_choice
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
        route.forget()
        self.live.prompt = EVERYWHERE if batch.prompt is None else batch.prompt
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
        self.gated = GatedModel(model, pool, gates, loss)
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
        while self.step < self.config.steps and not self.total(torch.tensor(float(stop.is_set()))):
            before, found = self.step, self.update(start)
            if self.step == before:
                self.resume(self.good)
                bad = "gradient is not finite" if math.isfinite(found.loss) else f"loss is {found.loss}"
                told = f"step {before + 1}: its {bad}; the gates are those of step {self.step}, the last good one"
                yield replace(last or found, step=self.step, stopped=told)
                return
            yield (last := found)

    def calibrate(self) -> None:
        """Take the mean and spread of what each gate sees from samples, with gates that trust all alike."""

        def look(part: Batch, _: float) -> dict[str, Tensor]:
            with torch.no_grad():
                route: Route = self.gated(part)[1]
            return route.reads

        samples = self.batch_of(-1, self.config.calibration)
        found = self.in_parts(samples, look, len(samples))
        for site, gate in self.gates.items():
            gate.calibrate(torch.cat([reads[site.name] for reads in found]))
        self.good = self.state()

    def update(self, start: float) -> Progress:
        """One step: its gradient in as many parts as memory needs, then the gates' update unless something is not finite."""
        own = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        batch = self.batch_of(self.step, self.config.batch)
        sums = self.total(self.gradients(batch.part(own), batch))
        (loss, spread), shares = sums[:2].tolist(), sums[2:].view(len(self.gates.sites), -1).cpu()
        balance = float(balance_of(shares.mean(dim=0), len(self.gates.experts)))
        self.gather_gradients()
        norm = float(self.accelerator.clip_grad_norm_(self.gates.parameters(), self.config.clip))
        if math.isfinite(loss + balance + norm):
            self.good = self.state()
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * min(1.0, (self.step + 1) / max(1, self.config.warmup))
            self.optimizer.step()
            self.step += 1
        return Progress(self.step, self.config.steps, loss, balance, spread, shares, time.perf_counter() - start)

    def total(self, own: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(own.to(self.device), "sum")

    def gather_gradients(self) -> None:
        """Give every process the gradient of all samples, however many of them, in however many parts, each of them had."""
        if self.accelerator.num_processes == 1:
            return
        parameters = list(self.gates.parameters())
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.total(torch.cat([grad.flatten() for grad in own]))
        for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def in_parts(self, batch: Batch, work: Callable[[Batch, float], T], whole: int) -> list[T]:
        """Work on samples part by part, each with its share of the whole batch; anew in smaller parts where memory runs out.

        Raises:
            AdapterError: when a single sample does not fit.
        """
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return [work(part.to(self.device), len(part) / whole) for part in parts(batch, self.micro)]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.micro == 1:
                    fix = "Use shorter samples or a smaller base."
                    raise AdapterError("one sample alone does not fit into memory for training", None, fix) from error
            self.micro = max(1, min(self.micro, len(batch)) // 2)
            release(self.device)

    def gradients(self, own: Batch, batch: Batch) -> Float[Tensor, "sums"]:
        """Gradients of this process's samples, and what they bring to the batch's loss, entropy and shares.

        The balance loss is of the whole batch (equation 14): where that comes in several parts, they are all looked at first.
        """
        none = torch.zeros(2 + len(self.gates.sites) * len(self.gates.columns), device=self.device)
        while True:
            q = None
            if apart := self.apart(batch):
                q = self.total(sum(self.in_parts(own, self.mixed, len(batch)), none.new_zeros(len(self.gates.columns))))
            sums = sum(self.in_parts(own, partial(self.backward, q=q), len(batch)), none)
            if apart or not self.apart(batch):  # else memory ran out under the whole
                return sums

    def apart(self, batch: Batch) -> bool:
        """Whether no pass sees the balance of all of a batch."""
        return self.config.alpha > 0 and (self.accelerator.num_processes > 1 or self.micro < len(batch))

    def mixed(self, part: Batch, share: float) -> Float[Tensor, "experts"]:
        """What one part of a batch brings to its q."""
        with torch.no_grad():
            return share * mean_choice(self.gated(part)[1].chosen.values())

    def backward(self, part: Batch, share: float, q: Tensor | None) -> Float[Tensor, "sums"]:
        """Gradients of one part of a batch; its share of the batch's sums.

        Args:
            part: some samples.
            share: of the batch.
            q: of the batch; the part's own unless given.
        """
        loss, route = self.gated(part)
        chosen, loras = list(route.chosen.values()), len(self.gates.experts)
        balance = balance_loss(chosen, loras) if q is None else balance_slope(q, loras) @ mean_choice(chosen)
        self.accelerator.backward((loss + self.config.alpha * balance) * share)
        with torch.no_grad():
            means = torch.stack([gate.mean(dim=0) for gate in chosen]).flatten()
            return share * torch.cat([torch.stack([loss, entropy(chosen)]).float(), means])

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        found = {f"gates.{key}": value.detach().clone() for key, value in self.gates.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": torch.as_tensor(value).clone() for key, value in moments.items()}
        return found | {"step": torch.tensor(self.step)}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            AdapterError: when it belongs to other gates, or is damaged.
        """
        self.check(state)
        self.gates.load_state_dict({key: state[f"gates.{key}"] for key in self.gates.state_dict()})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                moments.setdefault(int(number), {})[name] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = int(state["step"])
        self.good = self.state()

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Refuse what is no `state` of this training."""
        step = state.get("step", torch.tensor(-1))
        if step.shape or step.is_floating_point() or int(step) < 0:
            raise AdapterError("the training's state does not say its step", None, "Train from the start.")
        shapes = {f"gates.{key}": value.shape for key, value in self.gates.state_dict().items()} | {"step": step.shape}
        for number, parameter in enumerate(self.gates.parameters() if step else ()):
            shapes |= {f"optimizer.{number}.{name}": parameter.shape for name in ("exp_avg", "exp_avg_sq")}
            shapes[f"optimizer.{number}.step"] = step.shape
        given = {key: value.shape for key, value in state.items()}
        if odd := [key for key in sorted(shapes | given) if shapes.get(key) != given.get(key)]:
            what = f"the training's state belongs to other gates or is damaged ({odd[0]})"
            raise AdapterError(what, None, "Train from the start.")
        if bad := [key for key, value in state.items() if not value.isfinite().all()]:
            raise AdapterError(f"the training's state is not finite ({bad[0]})", None, "Train from the start.")
