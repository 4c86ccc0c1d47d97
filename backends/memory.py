"""How many rows of a batch fit into memory."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from backends.base import Base
from backends.errors import BaseError
from mole.memory import out_of_memory, release

T = TypeVar("T")

__all__ = ["give_back", "give_back_at_times", "halves", "out_of_memory", "pictures_at_once", "release", "rows_at_once"]

SHARE = 0.6
"""Of a GPU's free memory that a batch may take."""

CPU_BYTES = 2 * 2**30
"""Most that a batch takes on the CPU, and never more than a quarter of what is free."""


MOST_PICTURES = 256
"""In one batch."""

PAUSE = 20.0
"""Seconds between two times that memory is given back while the app works."""

_given_back = 0.0


def rows_at_once(base: Base, tokens: int, logit_positions: int = 1) -> int:
    """How many rows of this length run at once; at least one.

    Args:
        base: the model.
        tokens: prompt and new ones of the longest row.
        logit_positions: positions of each row whose logits are kept.
    """
    return max(1, int(free_bytes(base.device) // bytes_of_row(base.model.config, tokens, base.dtype, logit_positions)))


def pictures_at_once(base: Any, size: tuple[int, int] | None) -> int:
    """How many pictures are drawn at once; at least one.

    Args:
        base: an `ImageBase`.
        size: width and height in pixels; the pipeline's own unless given.
    """
    row, decoder = bytes_of_picture(base.pipeline, base.dtype, size)
    return max(1, min(MOST_PICTURES, int((free_bytes(base.device) - decoder) // row)))


def halves(rows: Sequence[T], what: str, fix: str, base: Base, error: BaseException) -> tuple[list[T], list[T]]:
    """Two batches in place of one that did not fit.

    Args:
        rows: of the batch.
        what: one row is, for the error.
        fix: what to do where one row alone does not fit.
        base: that was at work.
        error: that memory ran out.

    Raises:
        BaseError: for a single row.
    """
    if len(rows) < 2:
        raise BaseError(f"one {what} alone does not fit into memory", base.info.id, fix) from error
    half = len(rows) // 2
    return list(rows[:half]), list(rows[half:])


def bytes_of_picture(pipeline: Any, dtype: torch.dtype, size: tuple[int, int] | None) -> tuple[int, int]:
    """Memory that one row takes while it is denoised, with and without the prompt, and that the decoder takes for one picture.

    Widths as in the configs, times what a few such layers keep; a row that is larger after all halves the batch.
    """
    scale = getattr(pipeline, "vae_scale_factor", 8)
    unet = getattr(pipeline, "unet", None)
    config = (unet or pipeline.transformer).config
    own = config.get("sample_size") or getattr(pipeline, "default_sample_size", 128)
    pixels = math.prod(size) if size else math.prod((own, own) if isinstance(own, int) else own) * scale**2
    if unet is not None:
        places, width = pixels // scale**2, config.block_out_channels[0]
    else:  # transformers see patches of 2 × 2 latents
        places, width = (
            pixels // (2 * scale) ** 2,
            config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128),
        )
    wide = getattr(pipeline.vae.config, "block_out_channels", (128,))[0]
    return 2 * 32 * places * width * dtype.itemsize, 5 * pixels * wide * dtype.itemsize


def bytes_of_row(config: Any, tokens: int, dtype: torch.dtype, logit_positions: int = 1) -> int:
    """Memory that one row takes: keys and values, the largest activations of a layer, logits and their fp32 copy."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    cache = 2 * text.num_hidden_layers * kv_heads * head_dim * tokens
    # One layer's keys and values are copied to append a token, and repeated for grouped heads.
    activations = tokens * (8 * text.hidden_size + 4 * wide + 4 * heads * head_dim)
    return (cache + activations) * dtype.itemsize + logit_positions * text.vocab_size * (dtype.itemsize + 12)


def free_bytes(device: torch.device) -> int:
    """Memory that a batch may take."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (torch.cuda.mem_get_info(device)[0] + reusable))
    if device.type == "mps":
        return int(SHARE * (torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()))
    import psutil

    return min(CPU_BYTES, psutil.virtual_memory().available // 4)


def give_back() -> None:
    """Give what has become free back to the system, as far as Python and the C library keep it."""
    global _given_back
    _given_back = time.monotonic()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def give_back_at_times() -> None:
    """The same at most every `PAUSE` seconds, for where something large is let go often: in many threads' heaps it piles up."""
    global _given_back
    if time.monotonic() - _given_back > PAUSE:
        give_back()
