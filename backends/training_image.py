"""What gates on a diffusion model learn from: pictures with captions, or captions alone, drawn and judged by a contrastive model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from backends.captions import ASSETS, Captioned, captions_folder, open_picture, read_captions
from backends.pipelines import ImageBase
from backends.rows import HELD_OUT
from lego.errors import AdapterError
from mole.batch import Batch
from mole.losses import denoising_loss
from mole.recipe import GateRecipe

LATENTS = 512
"""Pictures whose latents are kept in memory."""


class Denoiser(nn.Module):
    """A pipeline's text encoders and UNet as one module, from captions to the UNet's prediction."""

    def __init__(self, base: ImageBase) -> None:
        """Nothing of the base is changed; the parts have the names that adapters use.

        Raises:
            AdapterError: when the pipeline is none of those whose noise this module knows.
        """
        super().__init__()
        if not hasattr(base.pipeline, "unet") or "beta_schedule" not in base.pipeline.scheduler.config:
            what = f"is a {type(base.pipeline).__name__}, for which gates cannot be trained"
            raise AdapterError(what, base.info.id, "Use Stable Diffusion 1, 2 or XL, or the built-in pipeline.")
        for name, part in base.model.named_children():
            self.add_module(name, part)
        self.pipeline, self.device, self.dtype = base.pipeline, base.device, base.dtype
        self.captions: list[str] = []

    def numbers(self, captions: Sequence[str]) -> Int[Tensor, " rows"]:
        """Captions as numbers, so that a batch can be taken apart."""
        self.captions += [caption for caption in dict.fromkeys(captions) if caption not in self.captions]
        return torch.tensor([self.captions.index(caption) for caption in captions])

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings of captions (rows, tokens, d), and the pooled ones (rows, d) of pipelines that use them."""
        found = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return found[0], found[2] if len(found) > 2 else None

    def predict(
        self, noisy: Float[Tensor, "rows channels h w"], times: Tensor, encoded: tuple[Tensor, Tensor | None]
    ) -> Float[Tensor, "rows channels h w"]:
        """What the UNet says of noisy latents."""
        embeddings, pooled = encoded
        more = {}
        if pooled is not None:
            height, width = (side * self.pipeline.vae_scale_factor for side in noisy.shape[2:])
            sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        unet: Any = self.get_submodule("unet")
        return unet(noisy, times, encoder_hidden_states=embeddings, **more).sample

    def forward(self, captions: Tensor, noisy: Tensor, times: Tensor) -> Float[Tensor, "rows channels h w"]:
        """The prediction for noisy latents under captions, given by `numbers`."""
        return self.predict(noisy, times, self.encode([self.captions[number] for number in captions.tolist()]))


class ImageSamples:
    """Captions with their pictures, as latents to denoise; see `backends.training.Samples`."""

    def __init__(self, base: ImageBase, recipe: GateRecipe, folder: Path) -> None:
        """Read captions and look for their pictures.

        Raises:
            AdapterError: when the pipeline's gates cannot be trained, samples are missing or malformed, or a folder is not the one
                whose hash the recipe gives.
        """
        from diffusers import DDPMScheduler

        self.base, self.model, self.noise = (
            base,
            Denoiser(base),
            DDPMScheduler.from_config(base.pipeline.scheduler.config),
        )
        self.sets, self.data = read_sets(recipe, folder, pictures=True)
        side = self.model.get_submodule("unet").config.sample_size  # type: ignore[union-attr]
        self.size = (side * base.pipeline.vae_scale_factor,) * 2
        self.latents = lru_cache(LATENTS)(self._latents)

    def batch(self, chosen: Sequence[Captioned], draw: str) -> Batch:
        """Latents of the pictures with noise of a random strength, and what the UNet should say of them."""
        generator = generator_of(draw)
        clean = torch.stack([self.latents(sample.picture) for sample in chosen])
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(self.noise.config.num_train_timesteps, (len(chosen),), generator=generator)
        velocity = self.noise.get_velocity(clean, noise, times)
        targets = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[self.noise.config.prediction_type]
        inputs = {
            "captions": self.model.numbers([sample.text for sample in chosen]),
            "noisy": self.noise.add_noise(clean, noise, times).to(self.base.dtype),
            "times": times,
        }
        return Batch(inputs, None, targets).to(self.base.device)

    def loss(self, out: Tensor, targets: Tensor) -> Tensor:
        """L_D: the squared error of the prediction."""
        return denoising_loss(out, targets)

    def middling(self) -> list[Captioned]:
        """Any two; all are of one size."""
        return [self.sets[0][0]] * 2

    def look(self) -> object:
        """A pass over one sample."""
        return self.model(**self.batch(self.middling()[:1], "").inputs)

    def _latents(self, path: Path) -> Float[Tensor, "channels h w"]:
        vae = self.base.pipeline.vae
        pixels = torch.from_numpy(np.asarray(open_picture(path, self.size)).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            mode = vae.encode(pixels.to(self.base.device, vae.dtype)).latent_dist.mode()
        shift = getattr(vae.config, "shift_factor", None) or 0
        return ((mode.float().cpu() - shift) * vae.config.scaling_factor)[0]


def read_sets(recipe: GateRecipe, folder: Path, pictures: bool) -> tuple[list[list[Captioned]], list[Any]]:
    """The captions of all of a recipe's data, and what the recipe says of them with their hashes.

    Raises:
        AdapterError: when they are missing or malformed, or not those whose hash the recipe gives.
    """
    sets, told = [], []
    for data in recipe.data:
        place = captions_folder(data.rows, folder)
        found, digest = read_captions(place, data.split, None if data.split else HELD_OUT, pictures)
        if data.sha256 not in (None, digest):
            what = f"has changed: its SHA-256 is {digest}, the recipe says {data.sha256}"
            raise AdapterError(what, place, "Take the folder that was meant, or leave sha256 out of the recipe.")
        sets.append(found)
        name = data.rows if place.parent == ASSETS else str(place)
        told.append(data.model_copy(update={"rows": name, "sha256": digest}))
    return sets, told


def generator_of(draw: str) -> torch.Generator:
    """A generator on the CPU, so that every device sees the same draws."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(draw.encode()).digest()[:7], "big"))
