"""Faster matrix products for small batches on the CPU.

A decoding step multiplies every weight matrix with a few rows. For two rows and more, the BLAS behind `torch.nn.functional.linear`
first copies the matrix into blocks, at every call; oneDNN, which comes with PyTorch, can keep it in blocks. Six rows then take about
two thirds of the time, for a second copy of the weights. The model itself is not changed: while a `Packed` is in effect, its
layers multiply with the copies, and the values differ by rounding in fp32 only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_BYTES = 2 * 2**30
"""Models with more weights than this are not copied."""


class Packed:
    """The linear layers of a model, multiplying with packed copies inside a ``with`` block."""

    def __init__(self, model: nn.Module) -> None:
        """Pack the layers; takes as much memory again as they have weights.

        Raises:
            RuntimeError: when this PyTorch cannot do it.
        """
        layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
        self._forwards = {layer: packed_forward(layer) for layer in layers}

    def __enter__(self) -> Packed:
        for layer, forward in self._forwards.items():
            layer.__dict__["forward"] = forward
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self._forwards:
            layer.__dict__.pop("forward", None)


def packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The layer's forward pass with a packed copy of its weights.

    Raises:
        RuntimeError: when this PyTorch cannot do it, or it computes something else.
    """
    multiply = torch.ops.mkldnn._linear_pointwise
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:  # a single row is fastest with the weights as they are
            return F.linear(x, weight, bias)
        return multiply(x.contiguous(), packed, bias, "none", [], "")

    probe = weight[:2].contiguous()
    if not torch.allclose(forward(probe), F.linear(probe, weight, bias), rtol=1e-3, atol=1e-4):
        raise RuntimeError("packed weights do not give the layer's output")
    return forward


def pack(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Packed | None:
    """A `Packed` for the model; None where it does not help: elsewhere than on the CPU, not in fp32, too large.

    None as well where it cannot be had. The operators are PyTorch's own and may change with it: a version that lacks them, refuses
    them or computes something else runs the model as it is, slower and just as right, and a warning says so.
    """
    size = sum(layer.weight.nbytes for layer in model.modules() if type(layer) is nn.Linear)
    if device.type != "cpu" or dtype != torch.float32 or size > MOST_BYTES or not torch.backends.mkldnn.is_available():
        return None
    try:
        with torch.inference_mode():
            return Packed(model)
    except (RuntimeError, AttributeError, TypeError) as error:  # not there, not for this machine, other arguments
        warnings.warn(f"small batches run without packed weights: torch {torch.__version__}: {error}", stacklevel=2)
        return None
