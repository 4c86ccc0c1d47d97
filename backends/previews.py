"""Cheap pictures of latents: a linear map from a latent's channels to its patch of pixels, fitted once for a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

SIDE = 16
"""Of the random latents that are decoded for the fit."""


@dataclass(frozen=True)
class Sketch:
    """A linear decoder.

    Attributes:
        weights: from (channels, 1) to a patch's 3 · scale² values.
        scale: pixels a latent has in width and height.
    """

    weights: Float[Tensor, "channels+1 patch"]
    scale: int

    def __call__(self, latents: Float[Tensor, "rows channels h w"]) -> UInt8[Tensor, "rows height width 3"]:
        """Pixels from 0 to 255, on the CPU."""
        patches = with_ones(latents.float()) @ self.weights.to(latents.device)
        pixels = pixel_shuffle(patches.permute(0, 3, 1, 2), self.scale)
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()


def sketch(vae: Any, device: torch.device, seed: int = 0) -> Sketch | None:
    """The least-squares fit for a decoder, from one random batch; None for another class than diffusers' `AutoencoderKL`.

    The latents are those of the pipeline, before the decoder's own scaling and shift, of fine noise and of coarse.
    """
    from diffusers import AutoencoderKL

    if not isinstance(vae, AutoencoderKL):
        return None
    config, dtype = vae.config, vae.dtype
    generator = torch.Generator().manual_seed(seed)
    sides = (SIDE, SIDE // 2, SIDE // 4, SIDE // 8)
    drawn = [torch.randn(1, config.latent_channels, side, side, generator=generator) for side in sides]
    latents = torch.cat([interpolate(part, SIDE, mode="bilinear") for part in drawn])
    given = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    upcast = config.force_upcast and dtype == torch.float16  # some overflow, as SDXL's does
    if upcast:
        vae.to(torch.float32)
    with torch.no_grad():
        pixels = vae.decode(given.to(device, vae.dtype)).sample.float().cpu()
    if upcast:
        vae.to(dtype)
    scale = pixels.shape[-1] // SIDE
    patches = pixel_unshuffle(pixels, scale).permute(0, 2, 3, 1)
    fit = torch.linalg.lstsq(with_ones(latents).flatten(0, 2), patches.flatten(0, 2))
    return Sketch(fit.solution, scale)


def with_ones(latents: Float[Tensor, "rows channels h w"]) -> Float[Tensor, "rows h w channels+1"]:
    """Channels last, and a constant beside them."""
    last = latents.permute(0, 2, 3, 1)
    return torch.cat([last, last.new_ones(*last.shape[:-1], 1)], dim=-1)
