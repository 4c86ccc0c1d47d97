"""The units beside one layer: what they add to its output, each weighted by batch row.

linear       y = W x + B · (w ⊙ (A x))
convolution  y = W ∗ x + B · (w ⊙ (A ∗ x)), A with the layer's own stride, padding and dilation, B a 1 × 1 convolution
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lego.errors import AdapterError


class Pass(Protocol):
    """The pass that a model is in, as far as it is known.

    Attributes:
        samples: how many the batch holds; 0 where nothing told.
        tokens: how many each of them has; 0 for images.
    """

    samples: int
    tokens: int


class Branch:
    """The units beside a linear layer, called by PyTorch after the layer's own forward."""

    __slots__ = ("down", "live", "module", "up", "weights")

    AXIS = 1
    """Of the units in ``down``."""

    def __init__(self, live: Pass, module: str, down: Tensor, up: Tensor, weights: Tensor | None) -> None:
        """The units that take part.

        Args:
            live: the pass that the model is in.
            module: the layer's name, for messages.
            down, up: from `lay_out`; perhaps only some of their units.
            weights: (rows, units), or None for weight 1 on every unit in every row.
        """
        self.live, self.module, self.down, self.up = live, module, down, up
        self.weights = None if weights is None else self.spread(weights.to(down.device, down.dtype))

    @staticmethod
    def lay_out(
        down: Float[Tensor, "d_in units"], up: Float[Tensor, "units d_out"], layer: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """A pool's factors as this branch multiplies with them: as they are."""
        return down, up

    @staticmethod
    def spread(weights: Float[Tensor, "rows units"]) -> Tensor:
        """Weights as they multiply A x: (rows, 1, units)."""
        return weights.unsqueeze(1)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """``output + (w ⊙ (x Aᵀ)) Bᵀ``; the output itself is overwritten only where no gradient is recorded."""
        x, down = inputs[0], self.down
        hidden = torch.mm(x.reshape(-1, down.shape[0]).to(down.device, down.dtype), down)
        if self.weights is not None:
            times = self.times(x.shape[:-1])
            hidden = (hidden.view(times, len(self.weights), -1, hidden.shape[1]) * self.weights).view_as(hidden)
        return self.add(output, hidden)

    def add(self, output: Float[Tensor, "*places d_out"], hidden: Float[Tensor, "places units"]) -> Tensor:
        """``output + hidden Bᵀ``."""
        up = self.up
        if output.dtype != up.dtype or not output.is_contiguous():
            return output + torch.mm(hidden, up).view(output.shape).to(output.dtype)
        result = output.view(-1, up.shape[1])
        if torch.is_grad_enabled():
            return torch.addmm(result, hidden, up).view(output.shape)
        result.addmm_(hidden, up)
        return output

    def times(self, shape: torch.Size) -> int:
        """How often an input holds the rows: of k × rows samples, each k-th part has them in order.

        Args:
            shape: of the input without its features.

        Raises:
            AdapterError: when it cannot be told which row a sample is.
        """
        assert self.weights is not None
        rows, live = len(self.weights), self.live
        samples = shape[0]
        if len(shape) == 1 and samples == live.samples * live.tokens:
            samples = live.samples  # some models flatten samples and tokens before a layer, in order
        # Experts get tokens in an order of their own.
        unordered = len(shape) == 1 and "expert" in self.module
        if unordered or samples % rows or samples != (live.samples or samples):
            raise AdapterError(
                f"got an input of shape {tuple(shape)} for {rows} rows of weights",
                self.module,
                "Rows with different weights need inputs of shape (rows, tokens, features): run one variant at a time.",
            )
        return samples // rows


class ConvBranch(Branch):
    """The units beside a convolution."""

    __slots__ = ()

    AXIS = 0

    @staticmethod
    def lay_out(
        down: Float[Tensor, "d_in units"], up: Float[Tensor, "units d_out"], layer: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """A as a convolution (units, in, kh, kw); B as it is, since a convolution of 1 × 1 is a product at each place."""
        assert isinstance(layer, nn.Conv2d)
        kernel = down.T.reshape(down.shape[1], layer.in_channels, *layer.kernel_size)
        return kernel.contiguous(memory_format=torch.channels_last), up

    @staticmethod
    def spread(weights: Float[Tensor, "rows units"]) -> Tensor:
        """Weights as they multiply A ∗ x: (rows, units, 1, 1)."""
        return weights[:, :, None, None]

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """``output + B ∗ (w ⊙ (A ∗ x))``, in the memory format of the output."""
        assert isinstance(layer, nn.Conv2d)
        x, down = inputs[0], self.down
        hidden = layer._conv_forward(x.to(down.device, down.dtype), down, None)
        if self.weights is not None:
            times = self.times(x.shape[:1] + x.shape[2:])
            hidden = (hidden.unflatten(0, (times, -1)) * self.weights).flatten(0, 1)
        places = output.permute(0, 2, 3, 1)
        if places.is_contiguous():
            found = self.add(places, hidden.permute(0, 2, 3, 1).reshape(-1, hidden.shape[1]))
            return found.permute(0, 3, 1, 2)
        update = torch.matmul(self.up.T, hidden.flatten(2)).view(output.shape).to(output.dtype)
        return output + update if torch.is_grad_enabled() else output.add_(update)


def branch_for(layer: nn.Module) -> type[Branch]:
    """The kind of branch that runs beside a layer."""
    return ConvBranch if isinstance(layer, nn.Conv2d) else Branch
