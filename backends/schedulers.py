"""Schedulers by name, made from a pipeline's own settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lego.errors import AdapterError


@dataclass(frozen=True)
class Sampler:
    """One way through the denoising steps.

    Attributes:
        title: for people.
        kind: diffusers' class for models that predict noise, velocity or the clean sample.
        flow: diffusers' class for models that predict a flow; empty where there is none.
        settings: what differs from the pipeline's own.
    """

    title: str
    kind: str
    flow: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS = {
    "ddim": Sampler("DDIM", "DDIMScheduler"),
    "ddpm": Sampler("DDPM", "DDPMScheduler"),
    "pndm": Sampler("PNDM", "PNDMScheduler", settings={"skip_prk_steps": True}),  # as Stable Diffusion has it
    "euler": Sampler("Euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "euler-a": Sampler("Euler ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": Sampler("Heun", "HeunDiscreteScheduler"),
    "dpm++": Sampler("DPM++ 2M", "DPMSolverMultistepScheduler"),
    "dpm++-karras": Sampler("DPM++ 2M Karras", "DPMSolverMultistepScheduler", settings={"use_karras_sigmas": True}),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler"),
    "lcm": Sampler("LCM", "LCMScheduler"),
}


def make(own: Any, name: str = "") -> Any:
    """A fresh scheduler with the settings of a pipeline's own.

    Args:
        own: the pipeline's.
        name: a key of `SCHEDULERS`; its own class unless given.

    Raises:
        AdapterError: when there is none of this name, or none for what the pipeline predicts.
    """
    if not name:
        return type(own).from_config(own.config)
    if name not in SCHEDULERS:
        raise AdapterError("is no scheduler", name[:40], f"Schedulers: {', '.join(SCHEDULERS)}.")
    sampler, flow = SCHEDULERS[name], is_flow(own)
    kind = sampler.flow if flow else sampler.kind
    if not kind:
        fitting = ", ".join(name for name, other in SCHEDULERS.items() if other.flow)
        raise AdapterError("cannot follow a flow, which this pipeline predicts", name, f"Use its own, or: {fitting}.")
    import diffusers

    return getattr(diffusers, kind).from_config(own.config, **sampler.settings)


def usable(own: Any) -> list[str]:
    """The names of the schedulers that a pipeline can use, by its own."""
    return [name for name in SCHEDULERS if not refused(own, name)]


def refused(own: Any, name: str) -> str | None:
    """Why a pipeline cannot use a scheduler; None when it can."""
    try:
        check(own, name)
    except AdapterError as error:
        return str(error)
    return None


def is_flow(own: Any) -> bool:
    """Whether a scheduler belongs to a pipeline that predicts a flow from noise to picture."""
    return type(own).__name__.startswith("FlowMatch") or own.config.get("prediction_type") == "flow_prediction"


def check(own: Any, name: str, steps: int = 4) -> None:
    """Try two steps on zeros: only then do some classes say what they cannot follow.

    Args:
        own: the pipeline's scheduler.
        name: of the one to use; the pipeline's own is not tried.
        steps: of the drawing.

    Raises:
        AdapterError: when there is none of this name, or it cannot follow what the pipeline predicts, or not in so many steps.
    """
    trial = make(own, name)
    if not name or is_flow(own):
        return
    kind = own.config.get("prediction_type", "epsilon").removesuffix("_prediction")
    sample = torch.zeros(1, 1, 1, 1)
    try:
        trial.set_timesteps(steps)
        for time in trial.timesteps[:2]:
            sample = trial.step(trial.scale_model_input(sample, time), time, sample).prev_sample
    except (ValueError, IndexError, NotImplementedError) as error:
        # What diffusers' schedulers raise for a kind of prediction, or a number of steps, that they have no formula for.
        what = f"cannot follow a pipeline that predicts the {kind} in {steps} steps ({str(error)[:200]})"
        raise AdapterError(what, name, "Use another one, or other steps.") from error


class Watch:
    """Notes after every step the clean latents that the scheduler expects at the end.

    Attributes:
        clean: the latest; None before the first step, and where the scheduler does not tell.
    """

    def __init__(self, scheduler: Any) -> None:
        """Watch a scheduler, which nobody else uses."""
        self.scheduler, self.clean = scheduler, None
        scheduler.step = self._watched(scheduler.step)

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)  # pipelines look at its arguments
        def watched(prediction: Tensor, time: Any, sample: Tensor, *args: Any, **named: Any) -> Any:
            out = step(prediction, time, sample, *args, **named)
            self.clean = self._clean(prediction, sample, out if isinstance(out, tuple) else tuple(out.values()))
            return out

        return watched

    def _clean(self, prediction: Tensor, sample: Tensor, out: tuple[Tensor, ...]) -> Any:
        if len(out) > 1:  # these say it
            return out[1]
        kept = getattr(self.scheduler, "model_outputs", None)
        if kept:  # multistep methods keep it for their next steps
            return kept[-1]
        if is_flow(self.scheduler):  # x_t = (1 − σ) x_0 + σ ε, and the flow is ε − x_0
            return sample - self.scheduler.sigmas[self.scheduler.step_index - 1].to(sample) * prediction
        return None
