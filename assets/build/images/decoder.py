"""A linear decoder in closed form, in the weights of diffusers' own class.

Each quarter of an 8 × 8 patch is the best linear estimate from the four latents nearest to it. The class has no way of its own to give
the four pixels that come of one different values: it repeats pixels and convolves, and a convolution does not know where it is. But
zero padding marks the border, so shifting and adding counts the rows and columns from there (``row``, ``col``); among repeated
pixels the count grows only where a new one begins, which tells the first of two from the second (``row_first``, ``col_first``);
and SiLU(x + OFFSET − MASK) = 0, SiLU(x + OFFSET) = x + OFFSET are a switch. So a doubling keeps, first by rows and then by
columns, what belongs to each pixel. Every norm sees two large constants, beside which the picture does not change its
statistics, and the data's negated sum, so that its mean does not either; its own weights then undo it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.vae import Decoder
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

UNIT = 32.0  # of the counts; SiLU leaves it, and 0, as they are
OFFSET, MASK = 40.0, 80.0  # data, up to 20 in size, is moved to where SiLU is the identity, or to where it is 0
CONSTANT = 30_000.0  # below fp16's largest number
BEFORE = {"row": (-1, 0), "col": (0, -1)}  # what is counted, and where the pixel before lies
GATE_NAMES = ("row", "col", "row_first", "col_first", "one")
HIDDEN_NAMES = ("row", "col", "col_first", "one")


class Layer:
    """Which channels of a tensor mean what: the data's come first, then named ones.

    Attributes:
        half: of each data channel, where a switch is put on it: whether it belongs to the first (0) or the second (1) of two pixels.
    """

    def __init__(self, data: int, *names: str, half: Tensor | None = None) -> None:
        self.data, self.names, self.half = data, names, half
        self.at = {name: data + number for number, name in enumerate((*names, "balance", "plus", "minus"))}


class Wire:
    """A convolution whose weights are set one by one, between two tensors of known channels."""

    def __init__(self, conv: nn.Conv2d, source: Layer, target: Layer) -> None:
        self.source, self.target, self.weight, self.bias = source, target, conv.weight, conv.bias

    def data(self, weights: Float[Tensor, "data source_data 3 3"]) -> None:
        """Set what the data are made of, and the channel that negates their sum."""
        self.weight[: self.target.data, : self.source.data] = weights
        self.weight[self.target.at["balance"], : self.source.data] = -weights.sum(0)

    def constants(self) -> None:
        """Add the two large constants."""
        self.bias[self.target.at["plus"]], self.bias[self.target.at["minus"]] = CONSTANT, -CONSTANT

    def name(self, to: str, source: str, weight: float = 1.0, tap: tuple[int, int] = (0, 0)) -> None:
        """Add a named channel to a named one, from the pixel at this place beside the own."""
        self.weight[self.target.at[to], self.source.at[source], 1 + tap[0], 1 + tap[1]] += weight

    def switch(self, first: str, tap: tuple[int, int] | None = None) -> None:
        """Subtract MASK from the data of the other half.

        Args:
            first: channel that is UNIT at the first of two pixels, 0 at the second; with a ``tap``, one that grows there.
        """
        sign = MASK / UNIT * (1 - 2 * self.target.half)
        self.bias[: self.target.data] -= MASK * (1 - self.target.half)
        self.weight[: self.target.data, self.source.at[first], 1, 1] += sign
        if tap is not None:
            self.weight[: self.target.data, self.source.at[first], 1 + tap[0], 1 + tap[1]] -= sign

    def settle(self, first: str) -> None:
        """Take off the OFFSET of the data that are switched on."""
        weights = self.weight[:, : self.source.data]
        one, other = (weights[:, self.source.half == half].sum(1) for half in (0, 1))
        self.weight[:, self.source.at[first]] -= OFFSET / UNIT * (one - other)
        self.weight[:, self.source.at["one"]] -= OFFSET / UNIT * other


def _centre(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in 3 3"]:
    return F.pad(matrix[:, :, None, None], (1, 1, 1, 1))


def _pass(norm: nn.GroupNorm, layer: Layer, names: Sequence[str], offset: float | None = OFFSET) -> None:
    """Let these channels through the norm and the SiLU behind it as they are; the data moved by the offset, or not at all (None)."""
    norm.weight[[layer.at[name] for name in names]] = 1
    if offset is not None:
        norm.weight[: layer.data], norm.bias[: layer.data] = 1, offset


@torch.no_grad()
def fit_quarters(
    latents: Float[Tensor, "n k h w"], images: Float[Tensor, "n 3 height width"]
) -> tuple[Float[Tensor, "2 2 48 2 2 k"], Float[Tensor, "2 2 48"]]:
    """Least squares: each quarter of a patch (below or not, right or not; colour, row, column) from the four nearest latents.

    Returns:
        The weights, of the own latent and the neighbour in rows × the same in columns, and the intercepts. Latents outside
        of the picture are zero.
    """
    n, k, height, width = latents.shape
    padded = F.pad(latents, (1, 1, 1, 1)).double()
    quarters = (
        images.double().view(n, 3, height, 2, 4, width, 2, 4).permute(3, 6, 0, 2, 5, 1, 4, 7).flatten(5).flatten(2, 4)
    )
    weights, intercepts = images.new_zeros(2, 2, 48, 2, 2, k), images.new_zeros(2, 2, 48)
    for below in range(2):
        for right in range(2):
            rows, columns = (1, 2 * below), (1, 2 * right)  # of the padded latents: own, neighbour
            near = [padded[:, :, r : r + height, c : c + width] for r in rows for c in columns]
            inputs = torch.cat([*near, torch.ones_like(near[0][:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2)
            gram = torch.linalg.pinv(inputs.T @ inputs, hermitian=True, rtol=1e-10)
            found = (gram @ (inputs.T @ quarters[below, right])).T.float()
            weights[below, right] = found[:, :-1].view(48, 2, 2, k)
            intercepts[below, right] = found[:, -1]
    return weights, intercepts


def _count(decoder: Decoder, stream: Layer) -> None:
    """Four residual blocks count: ``row`` becomes UNIT · (1 + row), of steps that each begin one row after the last one."""
    hidden = Layer(0, "row_shifted", "row_step", "col_shifted", "col_step")
    for resnet in [*decoder.mid_block.resnets, *decoder.up_blocks[0].resnets]:
        first, second = Wire(resnet.conv1, stream, hidden), Wire(resnet.conv2, hidden, stream)
        first.constants()
        for name, tap in BEFORE.items():
            first.name(f"{name}_shifted", f"{name}_step", tap=tap)
            first.name(f"{name}_step", f"{name}_step")
            second.name(name, f"{name}_shifted")
            second.name(name, f"{name}_shifted", tap=tap)
            second.name(f"{name}_step", f"{name}_step", -1.0)
            second.name(f"{name}_step", f"{name}_shifted", tap=tap)
        _pass(resnet.norm1, stream, ("row_step", "col_step"), None)
        _pass(resnet.norm2, hidden, hidden.names)


def _double(conv: nn.Conv2d, stream: Layer, gates: Layer, weights: Float[Tensor, "data source_data"]) -> None:
    """After pixels were repeated: count them anew, tell the first of two, switch by rows."""
    wire = Wire(conv, stream, gates)
    wire.data(_centre(weights))
    wire.constants()
    wire.switch("row", BEFORE["row"])
    wire.bias[gates.at["one"]] = UNIT
    for name, tap in BEFORE.items():
        for to, sign in ((name, 1.0), (f"{name}_first", -1.0)):
            wire.name(to, name)
            wire.name(to, name, sign, tap)


def _columns(resnet: nn.Module, gates: Layer, hidden: Layer, weights: Float[Tensor, "data source_data"]) -> Wire:
    """The first half of a residual block: what the rows' switch has let through, switched by columns."""
    wire = Wire(resnet.conv1, gates, hidden)
    wire.data(_centre(weights))
    wire.settle("row_first")
    wire.switch("col_first")
    wire.constants()
    for name in set(gates.names) & set(hidden.names):
        wire.name(name, name)
    _pass(resnet.norm1, gates, gates.names)
    _pass(resnet.norm2, hidden, hidden.names)
    return wire


def _out(resnet: nn.Module, hidden: Layer, stream: Layer, weights: Float[Tensor, "data source_data 3 3"]) -> Wire:
    """The second half: what both switches have let through, as the block's output."""
    wire = Wire(resnet.conv2, hidden, stream)
    wire.data(weights)
    wire.settle("col_first")
    wire.constants()
    for name in BEFORE:
        wire.name(name, name)
    return wire


def _expand(decoder: Decoder, stream: Layer, latents: Tensor, images: Tensor) -> Layer:
    """8 × 8 to 16 × 16 places: latents become quarters of patches, (colour, row, column) in 48 channels."""
    k = stream.data
    half = torch.arange(2)
    gates = Layer(2 * k, *GATE_NAMES, half=half.repeat_interleave(k))
    _double(decoder.up_blocks[0].upsamplers[0].conv, stream, gates, torch.eye(k).repeat(2, 1))
    hidden = Layer(4 * k, *HIDDEN_NAMES, "row_first", "corner", half=half.repeat_interleave(k).repeat(2))
    resnet = decoder.up_blocks[1].resnets[0]
    rows = (
        torch.eye(2 * k).view(2, 1, k, 2 * k).expand(2, 2, k, 2 * k).flatten(0, 2)
    )  # (half of rows, of columns, latent)
    wire = _columns(resnet, gates, hidden, rows)
    wire.name("corner", "row_first")
    wire.name("corner", "col_first", MASK / UNIT)
    wire.bias[hidden.at["corner"]] = -MASK
    weights, intercepts = fit_quarters(latents, images)
    kernel = torch.zeros(48, 2, 2, k, 3, 3)
    for below, right, other_row, other_column in itertools.product(range(2), repeat=4):
        # Towards the neighbour lies, one pixel on, the other of its two.
        row, column = (abs(mine - other) for mine, other in ((below, other_row), (right, other_column)))
        at = (1 + other_row * (2 * below - 1), 1 + other_column * (2 * right - 1))
        kernel[:, row, column, :, *at] = weights[below, right, :, other_row, other_column]
    stream = Layer(48, *BEFORE)
    wire = _out(resnet, hidden, stream, kernel.flatten(1, 3))
    (upper_left, upper_right), (lower_left, lower_right) = intercepts
    wire.bias[:48] = lower_right
    for name, change in (
        ("row_first", upper_right - lower_right), ("col_first", lower_left - lower_right),
        ("corner", upper_left - upper_right - lower_left + lower_right),
    ):  # fmt: skip
        wire.weight[:48, hidden.at[name], 1, 1] += change / UNIT
    return stream


def _halve(decoder: Decoder, block: int, stream: Layer, side: int) -> Layer:
    """Twice as many places, each with a quarter of the pixels: (colour, row, column) of ``side`` × ``side`` to half of that."""
    at = torch.arange(side)
    every = torch.eye(3 * side**2).view(3, 2, side // 2, side, -1)
    gates = Layer(stream.data, *GATE_NAMES, half=(at // (side // 2)).repeat_interleave(side).repeat(3))
    _double(decoder.up_blocks[block - 1].upsamplers[0].conv, stream, gates, every.flatten(0, 3))
    hidden = Layer(3 * side**2 // 2, *HIDDEN_NAMES, half=(at // (side // 2)).repeat(3 * side // 2))
    resnet = decoder.up_blocks[block].resnets[0]
    _columns(resnet, gates, hidden, every.sum(1).flatten(0, 2))
    columns = torch.eye(hidden.data).view(3, side // 2, 2, side // 2, -1).sum(2).flatten(0, 2)
    stream = Layer(3 * side**2 // 4, *BEFORE)
    _out(resnet, hidden, stream, _centre(columns))
    return stream


def _calibrate(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
    """Have a norm undo what it does to its present input."""
    deviation, mean = torch.std_mean(inputs[0].double(), correction=0)
    norm.bias += mean * norm.weight
    norm.weight *= deviation


@torch.no_grad()
def linear_decoder(
    decoder: Decoder, latents: Float[Tensor, "n k h w"], images: Float[Tensor, "n 3 height width"]
) -> None:
    """Set the decoder's weights so that it undoes these latents as well as `fit_quarters` can.

    Args:
        decoder: of four blocks and one group a norm, on the CPU.
        latents: of at most 8 × 8 places, which is as far as it counts.
        images: of eight times as many pixels a side.
    """
    for parameter in decoder.parameters():
        parameter.zero_()
    k = latents.shape[1]
    stream = Layer(k, "row", "row_step", "col", "col_step")
    wire = Wire(decoder.conv_in, Layer(k), stream)
    wire.data(_centre(torch.eye(k)))
    wire.constants()
    wire.bias[[stream.at[name] for name in stream.names]] = UNIT
    _count(decoder, stream)
    stream = _expand(decoder, stream, latents, images)
    for block, side in ((2, 4), (3, 2)):
        stream = _halve(decoder, block, stream, side)
    _pass(decoder.conv_norm_out, stream, ())
    decoder.conv_out.weight[:, :3, 1, 1] = torch.eye(3)
    decoder.conv_out.bias -= OFFSET
    norms = [module for module in decoder.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(_calibrate) for norm in norms]
    decoder(torch.zeros_like(latents[:1]))
    for hook in hooks:
        hook.remove()
