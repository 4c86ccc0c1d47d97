"""MoLE as its equations 9 to 13 are written: one sample, one token, one LoRA at a time, dense matrices, no padding, no cache.

For the tiny Llama of `tests.tiny` only, whose order of modules and shared inputs are written down here by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lego import Adapter, Factors
from mole.gate import Gate, Gates
from mole.live import LivePool
from tests.reference import dense_sum
from tests.tiny import SHAPES, tiny_tensors

ORDER = tuple(f"model.layers.{layer}.{kind}" for layer in range(2) for kind in SHAPES)
"""Every linear of a layer in the order of execution."""

SHARED = (
    {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    {"self_attn.o_proj"},
    {"mlp.gate_proj", "mlp.up_proj"},
    {"mlp.down_proj"},
)
"""Linears of a layer that get the same input."""

KINDS = {
    "first": (1, 4, ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")),
    "second": (2, 2, ("self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")),
    "third": (3, 6, ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj")),
}
"""Seed, rank and targets of the adapters: no two alike."""


def some_adapters(names: Sequence[str] = tuple(KINDS)) -> dict[str, Adapter]:
    """Random adapters of different ranks, scales and targets."""
    return {name: adapter(name, *KINDS[name]) for name in names}


def adapter(name: str, seed: int, rank: int, kinds: tuple[str, ...], size: float = 0.3) -> Adapter:
    """A random adapter in memory."""
    tensors, half = tiny_tensors(seed, rank, size, kinds), "base_model.model.{}.lora_{}.weight"
    modules = [module for module in ORDER if half.format(module, "A") in tensors]
    factors = {m: Factors(tensors[half.format(m, "A")], tensors[half.format(m, "B")], 2 / seed) for m in modules}
    return Adapter.from_factors(name, factors)


def one_hot(gates: Gates, column: int) -> None:
    """Let gates trust one expert whatever they see: a huge weight for it on a constant input."""
    for _, gate in gates.items():
        with torch.no_grad():
            gate.mean.fill_(-1.0)
            gate.spread.fill_(1e-3)
            gate.weight.zero_()
            gate.weight[:, column] = 1.0


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether outputs are equal but for rounding."""
    return bool((found.double() - expected.double()).norm() <= 2e-5 * expected.double().norm())


def site_of(module: str, granularity: str) -> str:
    """The gate's name: ``model.layers.0.self_attn.q_proj`` belongs to the layer ``model.layers.0.self_attn``."""
    parts = module.split(".")
    return {"module": module, "layer": ".".join(parts[:4]), "block": ".".join(parts[:3]), "network": ""}[granularity]


def sites_of(adapters: Sequence[Adapter], granularity: str) -> dict[str, tuple[list[str], list[str]]]:
    """Every gate's modules and readers, by hand."""
    adapted = [module for module in ORDER if any(module in each.modules for each in adapters)]
    found: dict[str, list[str]] = {}
    for module in adapted:
        found.setdefault(site_of(module, granularity), []).append(module)
    return {name: (modules, [m for m in modules if same_input(m, modules[0])]) for name, modules in found.items()}


def same_input(one: str, other: str) -> bool:
    """Whether two modules get the same input."""
    (layer, kind), (layer2, kind2) = split(one), split(other)
    return layer == layer2 and any(kind in group and kind2 in group for group in SHARED)


def split(module: str) -> tuple[str, str]:
    """A module's layer and kind."""
    parts = module.split(".")
    return parts[2], ".".join(parts[3:])


@dataclass
class NaiveGate:
    """One gate's numbers in fp64."""

    weight: Tensor
    log_temperature: Tensor
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, gate: Gate) -> NaiveGate:
        """The numbers of a gate; e and log τ record gradients of their own."""
        e, tau = (p.detach().double().requires_grad_() for p in (gate.weight, gate.log_temperature))
        return cls(e, tau, gate.mean.double(), gate.spread.double())

    def choose(self, z: Tensor, kept: Sequence[bool]) -> Tensor:
        """Equations 10 and 11, entry by entry, over the columns that are kept."""
        z, tau = (z - self.mean) / self.spread, self.log_temperature.exp()
        powers = [torch.exp((z * self.weight[:, i]).sum() / tau) if kept[i] else tau * 0 for i in range(len(kept))]
        return torch.stack([power / sum(powers) for power in powers])


@dataclass
class Mixture:
    """Everything that decides one sample's update.

    Attributes:
        adapters: every LoRA that takes part, by key.
        weights: w_j on each; 1 where a gate alone decides.
        gates: from which the gates' numbers, kinds and experts are taken; None for no gates.
        masked: experts left out.
        muted: units without effect; the gates see them all the same.
    """

    adapters: Mapping[str, Adapter]
    weights: Mapping[str, float]
    gates: Gates | None = None
    masked: Sequence[str] = ()
    muted: frozenset[tuple[str, str, int]] = frozenset()
    numbers: dict[str, NaiveGate] = field(default_factory=dict)
    chosen: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gates is not None:
            self.numbers = {site.name: NaiveGate.of(gate) for site, gate in self.gates.items()}
            self.places = sites_of([self.adapters[key] for key in self.gates.experts], self.gates.config.granularity)

    def update(self, module: str, x: Tensor, prompt: int) -> Tensor | float:
        """Σ_i G_i w_i s_i B_i A_i x for every token of a sample, (tokens, d_out)."""
        total: Tensor | float = 0.0
        for key, source in self.adapters.items():
            if module in source.modules:
                weight = self.weights.get(key, 0.0) * self.gate(key, module, x, prompt)
                total = total + weight * (x @ self.matrix(key, module).T)
        return total

    def matrix(self, key: str, module: str) -> Tensor:
        """s B A without the muted units."""
        factors = self.adapters[key][module]
        up = factors.up.double().clone()
        for name, where, unit in self.muted:
            if (name, where) == (key, module):
                up[:, unit] = 0
        return factors.scale * up @ factors.down.double()

    def gate(self, key: str, module: str, x: Tensor, prompt: int) -> Tensor | float:
        """G_i of a module's gate for this sample; 1 for a LoRA that no gate mixes."""
        if self.gates is None or key not in self.gates.experts:
            return 1.0
        name = site_of(module, self.gates.config.granularity)
        if name not in self.chosen:
            modules, readers = self.places[name]
            assert module == modules[0], "the first module decides"
            kept = [column not in self.masked for column in self.gates.columns]
            self.chosen[name] = self.numbers[name].choose(self.read(readers, x[:prompt]), kept)
        return self.chosen[name][self.gates.experts.index(key)]

    def read(self, readers: Sequence[str], tokens: Tensor) -> Tensor:
        """Equation 9: what each LoRA makes of each token, then Flatten or the mean, then Normalization."""
        assert self.gates is not None
        config, seen = self.gates.config, []
        deltas = [self.whole(key, module) for key in self.gates.experts for module in readers]
        for x in tokens:
            seen.append(x if config.reads == "hidden" else torch.cat([delta @ x for delta in deltas]))
        z = torch.cat(seen) if config.pooling == "flatten" else sum(seen[1:], seen[0]) / len(seen)
        return z / z.square().sum().sqrt() if config.normalise == "l2" else z

    def whole(self, key: str, module: str) -> Tensor:
        """s B A with all units; zeros for a LoRA without the module."""
        d_in, d_out = SHAPES[split(module)[1]]
        source = self.adapters[key]
        return torch.tensor(dense_sum([source], [1.0], module) if module in source.modules else np.zeros((d_out, d_in)))


class NaiveLinear(nn.Module):
    """W x and the mixture's update beside it."""

    def __init__(self, naive: Naive, module: str, linear: nn.Linear) -> None:
        super().__init__()
        self.naive, self.module, self.linear = [naive], module, linear

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        naive = self.naive[0]
        return self.linear(x) + naive.mixture.update(self.module, x[0], naive.prompt)


class Naive:
    """The tiny Llama in fp64 with a mixture beside each of its linears."""

    def __init__(self, model: nn.Module, mixture: Mixture) -> None:
        self.mixture, self.prompt = mixture, 0
        self.model: Any = copy.deepcopy(model).double()
        for module in ORDER:
            parent, _, name = module.rpartition(".")
            layer = self.model.get_submodule(module)
            setattr(self.model.get_submodule(parent), name, NaiveLinear(self, module, layer))

    def __call__(self, ids: Sequence[int], prompt: int) -> Tensor:
        """Logits (tokens, vocab) of one text whose first tokens are the prompt; what was chosen is in ``mixture.chosen``."""
        self.prompt, self.mixture.chosen = prompt, {}
        return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def greedy(self, ids: Sequence[int], most: int, ends: set[int]) -> list[int]:
        """The most likely token each time, the whole text fed again, the gates computed again from the prompt."""
        made: list[int] = []
        while len(made) < most:
            with torch.no_grad():
                token = int(self([*ids, *made], len(ids))[-1].argmax())
            if token in ends:
                break
            made.append(token)
        return made


def pool_for(adapters: Mapping[str, Adapter]) -> LivePool:
    """The adapters' units on the CPU in fp32."""
    return LivePool(adapters, "cpu", torch.float32)


def randomise(gates: Gates, seed: int = 0) -> Gates:
    """Random e, τ, mean and spread, such that gates neither trust all alike nor one alone."""
    generator = torch.Generator().manual_seed(seed)
    centred = gates.config.normalise == "centred"
    with torch.no_grad():
        for _, gate in gates.items():
            shape = gate.weight.shape
            gate.weight.copy_(torch.randn(shape, generator=generator) * (2 / shape[0] ** 0.5 if centred else 2.5))
            gate.log_temperature.copy_(torch.randn((), generator=generator) * 0.3)
            if centred:
                gate.mean.copy_(torch.randn(shape[0], generator=generator) * 0.2)
                gate.spread.fill_(1.7)
    return gates


def padded(texts: Sequence[tuple[list[int], list[int]]]) -> tuple[dict[str, Tensor], Tensor]:
    """Texts with padding at the left, and which tokens are the prompts'."""
    width = max(len(prompt) + len(answer) for prompt, answer in texts)
    ids, mask, read = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(3))
    for row, (prompt, answer) in enumerate(texts):
        start = width - len(prompt) - len(answer)
        ids[row, start:] = torch.tensor(prompt + answer)
        mask[row, start:] = 1
        read[row, start : start + len(prompt)] = 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, read.bool()
