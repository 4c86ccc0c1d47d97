"""MoLE on a UNet as its equations are written: one sample at a time, dense kernels, the LoRAs' real outputs at every place.

Which modules belong to a gate and which share an input is written down here by hand.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lego import Adapter
from mole.gate import Gates
from tests.naive_gates import NaiveGate
from tests.tiny_unet import modules_of

SHARED = (("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v"))
"""Modules of a transformer block that get the same input."""


def site_of(module: str, granularity: str) -> str:
    """The gate's name: a block is a resnet or a transformer block, a layer a part of it; around blocks siblings are one."""
    if granularity in ("module", "network"):
        return module if granularity == "module" else ""
    block = re.match(r".*\.(resnets|transformer_blocks)\.\d+", module)
    if block is None:
        return module.rpartition(".")[0] or module
    part = module.removeprefix(block.group() + ".").split(".")[0]
    return block.group() if granularity == "block" else f"{block.group()}.{part}"


def same_input(one: str, other: str) -> bool:
    """Whether two modules get the same input."""
    parts = [re.match(r"(.*)\.(attn\d\.to_[qkv])$", module) for module in (one, other)]
    if one == other or not (parts[0] and parts[1]):
        return one == other
    return parts[0][1] == parts[1][1] and any({parts[0][2], parts[1][2]} <= set(group) for group in SHARED)


class NaiveLayer(nn.Module):
    """W x and Σ_i G_i w_i s_i B_i A_i x of one sample."""

    def __init__(self, naive: NaiveUnet, module: str, layer: nn.Module) -> None:
        super().__init__()
        self.naive, self.module, self.layer = [naive], module, layer

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        return self.layer(x) + self.naive[0].update(self.module, x)

    def with_weight(self, weight: Tensor, x: Tensor) -> Tensor:
        """What the layer would give with another weight and no bias."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            return conv2d(x, weight, None, layer.stride, layer.padding)
        return x @ weight.T


class NaiveUnet:
    """A UNet in fp64 with a mixture beside its layers; the whole of it runs for each sample alone."""

    def __init__(
        self, model: nn.Module, adapters: Mapping[str, Adapter], weights: Mapping[str, float], gates: Gates | None = None,
        masked: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """The mixture.

        Args:
            model: the UNet.
            adapters: every LoRA that takes part.
            weights: w_i on each, where its gate is 1.
            gates: whose numbers, kind and experts are taken.
            masked: experts left out.
        """
        self.adapters, self.weights, self.gates, self.masked = adapters, weights, gates, masked
        self.numbers = {} if gates is None else {site.name: NaiveGate.of(gate) for site, gate in gates.items()}
        self.chosen: dict[str, Tensor] = {}
        self.model: Any = copy.deepcopy(model).double()
        self.layers: dict[str, NaiveLayer] = {}
        for module in modules_of(model):
            parent, _, name = module.rpartition(".")
            self.layers[module] = NaiveLayer(self, module, self.model.get_submodule(module))
            setattr(self.model.get_submodule(parent), name, self.layers[module])

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The prediction for one sample."""
        self.chosen = {}
        return self.model(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}).sample

    def update(self, module: str, x: Tensor) -> Tensor | float:
        """Σ_i G_i w_i s_i B_i A_i x."""
        total: Tensor | float = 0.0
        for key, source in self.adapters.items():
            if module in source.modules and self.weights.get(key):
                total = total + self.weights[key] * self.gate(key, module, x) * self.output(key, module, x)
        return total

    def output(self, key: str, module: str, x: Tensor) -> Tensor:
        """E_i(x) of one module, as the layer itself computes with s B A for its weight; zeros for a LoRA without the module."""
        layer, source = self.layers[module], self.adapters[key]
        weight: Any = layer.layer.weight
        if module not in source.modules:
            return layer.with_weight(torch.zeros_like(weight), x)
        f = source[module]
        return layer.with_weight((f.scale * f.up.double() @ f.down.double()).view_as(weight), x)

    def gate(self, key: str, module: str, x: Tensor) -> Tensor | float:
        """G_i of a module's gate; 1 for a LoRA that no gate mixes. The first module of a gate decides."""
        if self.gates is None or key not in self.gates.experts:
            return 1.0
        name = site_of(module, self.gates.config.granularity)
        if name not in self.chosen:
            kept = [column not in self.masked for column in self.gates.columns]
            self.chosen[name] = self.numbers[name].choose(self.read(module, x), kept)
        return self.chosen[name][self.gates.experts.index(key)]

    def read(self, module: str, x: Tensor) -> Tensor:
        """Equation 9: what each LoRA makes of the input at each place, then Flatten or the mean, then Normalization."""
        assert self.gates is not None
        config, image = self.gates.config, isinstance(self.layers[module].layer, nn.Conv2d)
        if config.reads == "hidden":
            seen = by_place(x, image)
        else:
            experts = self.gates.experts
            site = site_of(module, config.granularity)
            adapted = [m for m in self.layers if any(m in self.adapters[k].modules for k in experts)]
            readers = [m for m in adapted if same_input(m, module) and site_of(m, config.granularity) == site]
            seen = torch.cat([by_place(self.output(key, m, x), image) for key in experts for m in readers], dim=1)
        z = seen.flatten() if config.pooling == "flatten" else sum(seen[1:], seen[0]) / len(seen)
        return z / z.square().sum().sqrt() if config.normalise == "l2" else z


def by_place(x: Tensor, image: bool) -> Tensor:
    """One sample's numbers, (places, features)."""
    if image:
        return x[0].flatten(1).T
    return x if x.dim() == 2 else x[0]
