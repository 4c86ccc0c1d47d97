"""What gates on a diffusion model learn from without pictures: captions, drawn and judged by a contrastive model.

CLIP guidance as MoLE uses it (arXiv 2404.13628, section 3.2): each caption is drawn through some denoising steps and decoded; a global
term asks whether the picture fits the caption, a local one whether it left the base's picture in the direction of the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backends.alignment import Alignment
from backends.captions import Captioned
from backends.pipelines import ImageBase
from backends.training_image import Denoiser, generator_of, read_sets
from mole.batch import Batch
from mole.losses import directional_loss, global_loss
from mole.recipe import GateRecipe


class Painter(Denoiser):
    """A pipeline as one module, from captions and noise to pixels."""

    def __init__(self, base: ImageBase, steps: int) -> None:
        """Nothing of the base is changed.

        Args:
            base: the pipeline.
            steps: of denoising.
        """
        super().__init__(base)
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler.from_config(base.pipeline.scheduler.config)
        self.scheduler.set_timesteps(steps, device=base.device)
        self.guidance = base.guidance or 1.0

    def forward(self, captions: Tensor, noise: Tensor, last: int) -> Float[Tensor, "rows 3 height width"]:
        """The picture that is foreseen at one of the steps; a gradient is recorded of that step alone, so that it fits into memory.

        Args:
            captions: by `numbers`.
            noise: to begin with.
            last: index of the step.
        """
        texts = [self.captions[number] for number in captions.tolist()]
        latents = noise.to(self.dtype) * self.scheduler.init_noise_sigma
        recorded = torch.is_grad_enabled()
        for number, time in enumerate(self.scheduler.timesteps[: last + 1]):
            with torch.set_grad_enabled(recorded and number == last):
                found = self.scheduler.step(self.guided(latents, time, texts), time, latents)
            latents, clean = found.prev_sample, found.pred_original_sample
        vae = self.pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0
        return vae.decode((clean / vae.config.scaling_factor + shift).to(vae.dtype)).sample

    def guided(self, latents: Tensor, time: Tensor, texts: list[str]) -> Tensor:
        """The prediction with classifier-free guidance, as the pipeline has it."""
        if self.guidance <= 1:
            return self.predict(latents, time, self.encode(texts))
        none, some = self.encode([""] * len(texts)), self.encode(texts)
        both = tuple(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(none, some, strict=True))
        without, following = self.predict(torch.cat([latents, latents]), time, both).chunk(2)
        return without + self.guidance * (following - without)


class GuidedSamples:
    """Captions to be drawn; see `backends.training.Samples`."""

    def __init__(self, base: ImageBase, recipe: GateRecipe, folder: Path) -> None:
        """Read captions and load the contrastive model.

        Raises:
            AdapterError: when the pipeline's gates cannot be trained, captions are missing or malformed, or there is no such model.
        """
        assert recipe.guidance is not None
        self.base, self.settings = base, recipe.guidance
        self.model = Painter(base, recipe.guidance.steps)
        self.sets, self.data = read_sets(recipe, folder, pictures=False)
        self.judge = Alignment.load(recipe.guidance.model)

    def batch(self, chosen: Sequence[Captioned], draw: str) -> Batch:
        """Noise, a step to look at, and what the contrastive model makes of the captions and of the base's own pictures."""
        generator, unet = generator_of(draw), self.model.get_submodule("unet")
        side, channels = unet.config.sample_size, unet.config.in_channels  # type: ignore[union-attr]
        inputs: dict[str, Any] = {
            "captions": self.model.numbers([sample.text for sample in chosen]),
            "noise": torch.randn((len(chosen), channels, side, side), generator=generator).to(self.base.device),
            "last": int(torch.randint(self.settings.steps // 2, self.settings.steps, (), generator=generator)),
        }
        with torch.no_grad():
            plain = self.judge.pixels(self.model(**inputs))
        texts = self.judge.texts([sample.text for sample in chosen]).to(self.base.device)
        source = self.judge.texts([self.settings.source]).to(self.base.device).expand_as(texts)
        return Batch(inputs, None, torch.stack([texts, plain, source], dim=1))

    def loss(self, out: Tensor, targets: Float[Tensor, "rows 3 d"]) -> Tensor:
        """L_D: the global term, and the local one with its weight."""
        images, (texts, plain, source) = self.judge.pixels(out), targets.unbind(dim=1)
        return global_loss(images, texts) + self.settings.local * directional_loss(images, plain, texts, source)

    def middling(self) -> list[Captioned]:
        """Any two."""
        return [self.sets[0][0]] * 2

    def look(self) -> object:
        """A pass over one caption."""
        return self.model(**self.batch(self.middling()[:1], "").inputs)
