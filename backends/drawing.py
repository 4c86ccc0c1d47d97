"""How pictures are drawn, and what a pipeline cannot follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import schedulers
from backends.pipelines import ImageBase
from lego.errors import AdapterError

SEEDS = range(2**63)


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
        steps: of denoising.
        guidance: how strongly the prompt is followed (classifier-free guidance); what suits the base unless given.
        seeds: of the noise; every variant draws every prompt once with each.
        scheduler: a key of `backends.schedulers.SCHEDULERS`; the pipeline's own unless given.
        negative: what to keep away from. For a pipeline with built-in guidance (FLUX) real guidance of the strength above begins.
        size: width and height in pixels; the pipeline's own unless given.
    """

    steps: int = 20
    guidance: float | None = None
    seeds: tuple[int, ...] = (0,)
    scheduler: str = ""
    negative: str = ""
    size: tuple[int, int] | None = None

    def check(self, base: ImageBase) -> None:
        """Refuse what a pipeline cannot follow.

        Raises:
            AdapterError: naming the setting.
        """
        own = base.pipeline.scheduler
        most = own.config.num_train_timesteps
        if not 1 <= self.steps <= most:
            raise AdapterError(f"cannot draw in {self.steps} steps", base.info.id, f"Use 1 to {most} steps.")
        if wrong := [seed for seed in self.seeds if seed not in SEEDS]:
            raise AdapterError(f"{wrong[0]} is no seed", None, "Use a whole number from 0 on.")
        if self.negative and "negative_prompt" not in base.accepts:
            raise AdapterError("takes no negative prompt", base.info.id, "Leave it empty.")
        unit = getattr(base.pipeline, "vae_scale_factor", 8)
        if self.size and any(side < unit or side % unit for side in self.size):
            what = f"cannot draw {self.size[0]} × {self.size[1]} pixels"
            raise AdapterError(what, base.info.id, f"Use multiples of {unit}.")
        schedulers.check(own, self.scheduler, self.steps)

    def arguments(self, base: ImageBase) -> dict[str, Any]:
        """Of the pipeline's call, but for prompts and generators."""
        found: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.size:
            found |= {"width": self.size[0], "height": self.size[1]}
        guidance = base.guidance if self.guidance is None else self.guidance
        if self.negative and "true_cfg_scale" in base.accepts:
            found["true_cfg_scale"] = guidance
        elif "guidance_scale" in base.accepts:
            found["guidance_scale"] = guidance
        return found
