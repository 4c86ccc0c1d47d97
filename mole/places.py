"""What the units beside a layer see of its input: its tokens, or the patches under a convolution's kernel."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, unfold


def positions(x: Tensor, layer: nn.Module | None) -> Float[Tensor, "samples places features"]:
    """An input place by place: the pixels of an image, the tokens of a text, or the only one of a sample without places.

    Args:
        x: (samples, features), (samples, ..., features), or (samples, channels, height, width) of a convolution.
        layer: whose input it is.
    """
    if isinstance(layer, nn.Conv2d):
        return x.flatten(2).transpose(1, 2)
    return x[:, None] if x.dim() == 2 else x.flatten(1, -2)


def patches(x: Tensor, layer: nn.Module | None) -> Float[Tensor, "samples places d_in"]:
    """What A multiplies at each place of the output: a convolution's patch, flattened as A is; else the input itself."""
    if not isinstance(layer, nn.Conv2d):
        return positions(x, layer)
    return unfold(padded(x, layer), layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)


def mean_patch(x: Tensor, layer: nn.Module | None) -> Float[Tensor, "samples 1 d_in"]:
    """The mean of `patches`, of a convolution without making them: at each place of the kernel the mean of what passes under it.

    At the borders a patch reaches into the padding, so this is not the mean pixel again and again.
    """
    if not isinstance(layer, nn.Conv2d):
        return positions(x, layer).mean(dim=1, keepdim=True)
    x = padded(x, layer)
    rows, columns = (covered(layer, axis, x.shape[2 + axis]) for axis in (0, 1))
    means = [x[:, :, row][..., column].mean(dim=(2, 3)) for row in rows for column in columns]
    return torch.stack(means, dim=2).flatten(1)[:, None]


def padded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """The input with a convolution's own padding around it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return pad(x, layer._reversed_padding_repeated_twice, mode)


def covered(layer: nn.Conv2d, axis: int, size: int) -> list[slice]:
    """For each place of the kernel along an axis, the pixels that pass under it.

    Args:
        layer: the convolution.
        axis: 0 for the height, 1 for the width.
        size: of the padded input.
    """
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    last = (size - dilation * (kernel - 1) - 1) // stride * stride
    return [slice(start := dilation * number, start + last + 1, stride) for number in range(kernel)]
