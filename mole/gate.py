"""Gates: which LoRA each part of a model trusts for a sample (MoLE, arXiv 2404.13628, equations 9 to 13).

    z = Normalization(E_1(x) ⊕ … ⊕ E_N(x)),   ε = zᵀ e,   G = softmax(ε / τ),   out = W x + Σ_i G_i s_i B_i A_i x

Only e and τ are learned. A mask leaves LoRAs out later, without training: the softmax over the logits that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from lego.errors import AdapterError
from mole.making import MAKING
from mole.places import mean_patch, patches, positions
from mole.pool import LivePool
from mole.sites import Granularity, Site

BASE = "base"
"""The name of the expert that changes nothing."""


class GateConfig(BaseModel):
    """What kind of gates; the description of a field is what the page and the command line say of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    granularity: Granularity = Field(
        default="block", description="One gate for every module, layer, block, or for the network."
    )
    reads: Literal["outputs", "hidden"] = Field(
        default="outputs",
        description="What a gate sees: the LoRAs' outputs (the paper), or their common input (its published code).",
    )
    normalise: Literal["centred", "l2"] = Field(
        default="centred",
        description="Length 1 (the paper), or first less the mean over calibration samples and divided by their spread.",
    )
    pooling: Literal["mean", "flatten"] = Field(
        default="mean",
        description="The mean over the prompt's tokens or an image's places, or all side by side (the paper; needs a fixed length).",
    )
    base_expert: bool = Field(
        default=False, description="Offer a LoRA of zeros as well, so that a gate may leave the base as it is."
    )


class Gate(nn.Module):
    """One gate, equations 10 and 11.

    Attributes:
        weight: e, (features, experts); zeros at the start, so that training begins with uniform gates.
        log_temperature: log τ, a scalar; τ itself could cross 0.
        mean, spread: what ``centred`` takes off its inputs: their mean (features,), then the root mean square of what is left.
    """

    def __init__(self, features: int, experts: int) -> None:
        """A gate that trusts all alike."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, experts))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(()))

    mean: Tensor
    spread: Tensor

    @property
    def temperature(self) -> Tensor:
        """τ."""
        return self.log_temperature.exp()

    def forward(
        self, read: Float[Tensor, "rows features"], mask: Bool[Tensor, "rows experts"] | None = None
    ) -> Float[Tensor, "rows experts"]:
        """G of every row: the softmax over what the mask keeps, so Σ_i G_i = 1.

        Args:
            read: what the gate sees, not yet normalised.
            mask: True for the experts that are kept; all unless given.
        """
        logits = (read - self.mean) / self.spread @ self.weight / self.temperature
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return logits.softmax(dim=-1)

    def calibrate(self, reads: Float[Tensor, "samples features"]) -> None:
        """Take mean and spread from samples. Where these hardly differ, rounding must not pass for a difference."""
        self.mean.copy_(reads.mean(dim=0))
        size, spread = reads.square().mean().sqrt(), (reads - self.mean).square().mean().sqrt()
        self.spread.copy_(torch.maximum(spread, 1e-3 * size).clamp_min(1e-12))


class Gates(nn.Module):
    """All gates of one training, in fp32 whatever the model computes in.

    Attributes:
        config: what kind they are.
        experts: the LoRAs' keys in the pool, in the order of a gate's columns; after them the base, if it takes part.
        sites: where each gate sits.
    """

    def __init__(
        self,
        config: GateConfig,
        experts: Sequence[str],
        sites: Sequence[Site],
        features: Sequence[int],
        length: int = 1,
    ) -> None:
        """Gates that trust all alike.

        Args:
            config: what kind of gates.
            experts: the LoRAs' keys in the pool.
            sites: from `mole.sites.find_sites`.
            features: how many numbers each gate reads.
            length: L of equation 10, the number of tokens, for gates that read them side by side; 1 where each gate reads as many
                as its site has places.

        Raises:
            AdapterError: when there is nothing to choose from, or a LoRA is named twice.
        """
        super().__init__()
        if not experts or not sites:
            raise AdapterError("there is nothing to gate", None, "Pick LoRAs that adapt some module.")
        if len(set(experts)) < len(experts):
            raise AdapterError("a LoRA is named twice", ", ".join(experts), "Name each expert once.")
        self.config, self.experts, self.sites, self.length = config, tuple(experts), tuple(sites), length
        with MAKING:
            self.gates = nn.ModuleList(Gate(count, len(self.columns)) for count in features)

    @classmethod
    def fresh(
        cls, config: GateConfig, experts: Sequence[str], sites: Sequence[Site], pool: LivePool, length: int = 1
    ) -> Gates:
        """Gates for a pool: N · L · d inputs each (equation 10), or L · d where they read the LoRAs' input."""
        count = len(experts)
        return cls(config, experts, sites, [features(config, count, site, pool, length) for site in sites], length)

    @property
    def columns(self) -> tuple[str, ...]:
        """What a gate chooses from: the LoRAs, then the base if it takes part."""
        return (*self.experts, BASE) if self.config.base_expert else self.experts

    @property
    def parameter_count(self) -> int:
        """Trained numbers: N · L · d · N and τ for each gate (equation 10)."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_fit(self, pool: LivePool) -> None:
        """Refuse a pool for which the gates were not made.

        Raises:
            AdapterError: when it lacks a module or an expert, or a gate would read another number of values than it has weights.
        """
        for site, gate in self.items():
            if lacking := [module for module in site.modules if module not in pool.modules]:
                raise AdapterError("is gated, but no loaded adapter has it", lacking[0], "Load the gates' own LoRAs.")
            found = features(self.config, len(self.experts), site, pool, self.length)
            if found != len(gate.weight):
                what = f"a gate reads {len(gate.weight)} values, but these LoRAs give {found}"
                raise AdapterError(what, site.name or None, "Load the gates' own LoRAs.")
        for key in self.experts:
            pool.units(key, "")

    def items(self) -> Iterator[tuple[Site, Gate]]:
        """Every gate with its place, in the order in which the model reaches them."""
        yield from zip(self.sites, cast("Sequence[Gate]", self.gates), strict=True)

    def read(
        self,
        site: Site,
        x: Tensor,
        prompt: Bool[Tensor, "samples tokens"] | None,
        pool: LivePool,
        layers: Mapping[str, nn.Module] | None = None,
    ) -> Float[Tensor, "samples features"]:
        """What a gate sees of its readers' input (equation 9).

        A LoRA is linear, so the mean of its outputs is its output for the mean: one row a sample goes through the factors.

        Args:
            site: of the gate.
            x: the input, (samples, tokens, d_in), (samples, d_in) or of a convolution (samples, channels, height, width).
            prompt: which tokens count; None for all places.
            pool: with the LoRAs.
            layers: the readers, where they may be convolutions.

        Raises:
            AdapterError: when ``flatten`` gets another number of places than it was trained on.
        """
        layers = layers or {}
        if self.config.reads == "hidden":
            seen = self.pooled(site, x, prompt, layers.get(site.readers[0]), positions)
        else:
            parts = self.parts(site, x, prompt, layers)
            seen = torch.cat([self.outputs(key, part, pool) for key in self.experts for part in parts], dim=-1)
        flat = seen.flatten(1).to(pool.device)
        return normalize(flat, dim=-1) if self.config.normalise == "l2" else flat

    def parts(
        self, site: Site, x: Tensor, prompt: Tensor | None, layers: Mapping[str, nn.Module]
    ) -> list[tuple[str, Tensor]]:
        """What the units of each reader multiply, pooled; linear layers see the same, convolutions each their own patches."""
        linear = [module for module in site.readers if not isinstance(layers.get(module), nn.Conv2d)]
        shared = self.pooled(site, x, prompt, None, patches) if linear else x
        return [
            (module, shared if module in linear else self.pooled(site, x, prompt, layers[module], patches))
            for module in site.readers
        ]

    def pooled(
        self,
        site: Site,
        x: Tensor,
        prompt: Tensor | None,
        layer: nn.Module | None,
        what: Callable[[Tensor, nn.Module | None], Tensor],
    ) -> Float[Tensor, "samples L features"]:
        """The mean over all places or the prompt's tokens, or everything side by side, in fp32."""
        if self.config.pooling == "mean":
            if prompt is None:
                mean = mean_patch(x, layer) if what is patches else positions(x, layer).mean(dim=1, keepdim=True)
                return mean.float()
            share = prompt / prompt.sum(dim=1, keepdim=True)
            return (share.to(x.dtype)[:, None] @ x).float()
        seen, length = what(x, layer), length_of(self.config, site, self.length)
        if seen.shape[1] != length:
            told = f"gets {seen.shape[1]} tokens, but the gate was made for {length}"
            raise AdapterError(told, site.name, "Use pooling: mean where lengths vary.")
        return (seen if prompt is None else seen * prompt[..., None]).float()

    def outputs(
        self, key: str, part: tuple[str, Float[Tensor, "rows L d_in"]], pool: LivePool
    ) -> Float[Tensor, "rows L d_out"]:
        """E_i(x): what one LoRA adds in a reader; zeros where it does not adapt it."""
        module, x = part
        (down, up), units = pool.modules[module], pool.units(key, module)
        return (x.to(pool.device) @ down[:, units].float()) @ up[units].float()

    def mask(self, masked: Sequence[str]) -> Bool[Tensor, "experts"] | None:
        """A mask that leaves some experts out; None where all are kept.

        Raises:
            AdapterError: when one is none of the experts, or nothing is left.
        """
        names = self.columns
        if unknown := [name for name in masked if name not in names]:
            raise AdapterError("is not among the gates' experts", unknown[0], f"They mix: {', '.join(names)}.")
        kept = torch.tensor([name not in masked for name in names])
        if not kept.any():
            raise AdapterError("every expert is masked", ", ".join(names), "Keep at least one.")
        return None if bool(kept.all()) else kept

    def unit_weights(
        self, module: str, chosen: Float[Tensor, "rows experts"], pool: LivePool
    ) -> Float[Tensor, "rows units"]:
        """One weight for every unit of a module: its LoRA's gate; 1 on the units of LoRAs that are not gated."""
        columns = {key: number for number, key in enumerate(self.experts)}
        owners = [columns.get(key) for key in pool.owner_of_units(module)]
        padded = torch.cat([chosen, chosen.new_ones(len(chosen), 1)], dim=1)
        return padded[:, [padded.shape[1] - 1 if owner is None else owner for owner in owners]]


def features(config: GateConfig, experts: int, site: Site, pool: LivePool, length: int) -> int:
    """How many numbers a gate reads: N · L · d, or L · d of its readers' input."""
    length = length_of(config, site, length)
    if config.reads == "hidden":
        return length * (pool.modules[site.readers[0]][0].shape[0] // math.prod(pool.kernels[site.readers[0]]))
    return experts * length * sum(int(pool.modules[module][1].shape[1]) for module in site.readers)


def length_of(config: GateConfig, site: Site, length: int) -> int:
    """L of one gate.

    Args:
        config, site: of the gate.
        length: of all gates; 1 for as many as the site has places.
    """
    if config.pooling == "mean":
        return 1
    return length if length > 1 else site.places[config.reads == "outputs"]
