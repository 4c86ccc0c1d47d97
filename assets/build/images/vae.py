"""The autoencoder: diffusers' own AutoencoderKL, whose encoder is set to the principal components of 8 × 8 patches and whose
decoder (see ``decoder.py``) to their best linear undoing. Nothing of it is trained.

The encoder is linear in closed form, although its class has norms and activations in it: residual branches are zero; three
convolutions of stride 2 sort 8 × 8 patches into channels and project them; the last norm sees large constants, beside which the
picture does not change its statistics; and SiLU(z) − SiLU(−z) = z.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assets.build.images.decoder import linear_decoder

PATCH, LATENTS = 8, 32
CHANNELS = (16, 48, 144, 72)
CONSTANT = 8192.0  # what the encoder's last norm sees beside latents of size one


def patches(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "m 192"]:
    """All 8 × 8 patches, side by side, without overlap; colour, row, column."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)


def principal(images: Float[Tensor, "n 3 height width"], count: int = LATENTS) -> tuple[Tensor, Tensor]:
    """Mean patch, and the first principal components of all patches, scaled so that latents have root mean square one.

    Returns:
        (192,) and (count, 192).
    """
    flat = patches(images).double()
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    size = values[-count:].mean().sqrt()
    return mean.float(), (vectors[:, -count:].T.flip(0) / size).float()


def _sort_into_channels(convolution: nn.Conv2d, channels: int) -> None:
    """Stride 2: channel (2·row + column)·channels + c of the output is channel c at that corner of the 2 × 2 square."""
    for corner in range(4):
        for channel in range(channels):
            convolution.weight[corner * channels + channel, channel, corner // 2, corner % 2] = 1


def _project(convolution: nn.Conv2d, mean: Tensor, components: Tensor) -> None:
    """The last stride 2: from the sorted pixels of a 4 × 4 patch at each corner to the components of the 8 × 8 patch."""
    cube = components.unflatten(1, (3, 2, 2, 2, 2, 2, 2))  # component, colour, then row and column, coarse to fine
    sorted_ = cube.permute(0, 3, 6, 4, 7, 1, 2, 5).flatten(
        1, 5
    )  # component, (row, column)'s fine and middle bits, colour
    convolution.weight[: len(components), : sorted_.shape[1], :2, :2] = sorted_
    convolution.bias[: len(components)] = -components @ mean


@torch.no_grad()
def linear_encoder(vae: AutoencoderKL, mean: Float[Tensor, " 192"], components: Float[Tensor, "k 192"]) -> None:
    """Set the encoder's weights so that the latents' mean is ``components @ (patch − mean)``, their deviation nothing."""
    encoder = vae.encoder
    for name, parameter in encoder.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    nn.init.dirac_(encoder.conv_in.weight)
    blocks = [block.resnets[0] for block in encoder.down_blocks]
    for block in blocks[1:3]:
        nn.init.dirac_(block.conv_shortcut.weight)
    down = [block.downsamplers[0].conv for block in encoder.down_blocks[:3]]
    _sort_into_channels(down[0], 3)
    _sort_into_channels(down[1], 12)
    _project(down[2], mean, components)
    # The last norm sees the latents, the same negated, and constants of both signs.
    count = len(components)
    constants = CHANNELS[-1] - 2 * count
    last, signs = blocks[3].conv_shortcut, torch.tensor([1.0, -1.0])
    for latent in range(count):
        for sign, channel in zip(signs, (latent, count + latent), strict=True):
            last.weight[channel, latent] = sign
            encoder.conv_out.weight[latent, channel, 1, 1] = sign * CONSTANT * math.sqrt(constants / CHANNELS[-1])
    last.bias[2 * count :] = CONSTANT * signs.repeat(constants // 2)
    encoder.conv_out.bias[count:] = -30.0  # logarithm of the variance


def new_vae(images: Float[Tensor, "n 3 height width"]) -> AutoencoderKL:
    """The autoencoder for pictures like these: the linear encoder, and the decoder that undoes it best."""
    mean, components = principal(images)
    vae = AutoencoderKL(
        block_out_channels=CHANNELS, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, latent_channels=len(components), norm_num_groups=1, sample_size=64, scaling_factor=1.0,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    linear_encoder(vae, mean, components)
    linear_decoder(vae.decoder, encode(vae, images), images)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Float[Tensor, "n 3 height width"], batch: int = 64) -> Float[Tensor, "n k h w"]:
    """Latents as the UNet sees them, on the autoencoder's device."""
    parts = [vae.encode(part.to(vae.device)).latent_dist.mode() for part in images.split(batch)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Float[Tensor, "n 3 height width"]) -> float:
    """Peak signal-to-noise ratio of encoding and decoding, in dB, over all pixels."""
    parts = [(vae.decode(encode(vae, part)).sample.clamp(-1, 1).cpu() - part).square() for part in images.split(64)]
    return -10 * math.log10(torch.cat(parts).mean().item() / 4)
