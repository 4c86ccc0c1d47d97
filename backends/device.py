"""Where models run, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def lends() -> bool:
    """Whether a GPU is lent for a call at a time, and to another process, as on a ZeroGPU Space."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def pick() -> tuple[torch.device, torch.dtype]:
    """The device and the type of the weights: CUDA in bf16 (fp16 where it has none), Apple's GPU in fp16, the CPU in fp32.

    ``BRICKYARD_DEVICE`` (``cpu``, ``cuda``, ``mps``) overrides the choice. Of several processes that train together each has a GPU
    of its own, by the number that ``accelerate launch`` gives it.
    """
    wanted, rank = os.environ.get("BRICKYARD_DEVICE", ""), os.environ.get("LOCAL_RANK")
    if (wanted or "cuda").startswith("cuda") and torch.cuda.is_available():
        own = f"cuda:{int(rank) % torch.cuda.device_count()}" if rank else "cuda"
        return torch.device(wanted or own), torch.bfloat16 if has_bf16() else torch.float16
    if wanted in ("", "mps") and torch.backends.mps.is_available():
        return torch.device("mps"), torch.float16
    return torch.device("cpu"), torch.float32


def own() -> tuple[torch.device, torch.dtype]:
    """As `pick`, for what is too small to ask for a lent GPU: the CPU there."""
    return (torch.device("cpu"), torch.float32) if lends() else pick()


def has_bf16() -> bool:
    """Whether the GPU computes in bf16 itself (a T4 does not)."""
    return lends() or torch.cuda.is_bf16_supported(including_emulation=False)


def gpu(duration: int | Callable[..., int] = 60) -> Callable[[Function], Function]:
    """Decorator for a function that needs the GPU: borrows one on a ZeroGPU Space, does nothing anywhere else.

    Args:
        duration: seconds the GPU is needed for, or a function of the same arguments that tells.
    """

    def decorate(function: Function) -> Function:
        if not lends():
            return function
        import spaces

        return spaces.GPU(duration=duration)(function)

    return decorate
