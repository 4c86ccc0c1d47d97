"""What to do when memory runs out."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whatever the device."""
    told = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in told or "not enough memory" in told


def release(device: torch.device) -> None:
    """Give cached blocks back, so that the next batch finds one piece of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
