"""What every format can do for the writer, which streams: one module after the other."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from lego.adapter import Adapter, Factors, ModuleSpec


class Format:
    """How an adapter is written: file names, keys, and what lies beside the weights.

    Args:
        adapter: what is to be written; its module names and its config are looked at, no tensor is.

    Raises:
        AdapterError: when the format cannot express it.
    """

    weights: ClassVar[str] = ""
    """Name of the weights file; ``{name}`` stands for the adapter's."""
    down: ClassVar[str] = "{}.lora_A.weight"
    up: ClassVar[str] = "{}.lora_B.weight"
    bias: ClassVar[str] = "{}.lora_B.bias"

    def __init__(self, adapter: Adapter) -> None:
        self.check(adapter)

    def check(self, adapter: Adapter) -> None:
        """Refuse what the format cannot express.

        Raises:
            AdapterError: naming what it is.
        """

    def keys(self, module: str, embedding: bool) -> tuple[str, str, str]:
        """The keys of a module's A, B and bias."""
        return self.down.format(module), self.up.format(module), self.bias.format(module)

    def entries(self, module: str, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of the tensors that a module becomes, in the order in which `tensors` gives them."""
        down, up, bias = self.keys(module, spec.embedding)
        d_in = spec.d_in // math.prod(spec.kernel)
        ones = (1,) * len(spec.kernel)
        found = {down: (spec.rank, d_in, *spec.kernel), up: (spec.d_out, spec.rank, *ones)}
        return {**found, bias: (spec.d_out,)} if spec.bias else found

    def tensors(self, module: str, factors: Factors) -> dict[str, torch.Tensor]:
        """The tensors of a module: sqrt(|s|) folded into both halves and the sign into B, a convolution unflattened; fp32."""
        factors = factors.folded()
        rank, kernel = factors.rank, factors.kernel
        down, up, bias = self.keys(module, factors.embedding)
        ones = (1,) * len(kernel)
        found = {down: factors.down.reshape(rank, -1, *kernel), up: factors.up.reshape(-1, rank, *ones)}
        return found if factors.bias is None else {**found, bias: factors.bias}

    def companions(self, adapter: Adapter) -> dict[str, str]:
        """Text files that belong beside the weights, by name; ``adapter`` has the ranks as written."""
        return {}

    def metadata(self, adapter: Adapter) -> dict[str, str]:
        """What the safetensors header says; ``adapter`` has the ranks as written."""
        return {"format": "pt"}
