"""Which tokens a unit of a language model's adapter reads and which it writes: its halves against the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backends.bases import TextBase
from lego import Adapter, module_kind

READERS = {
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in",
    "dense_h_to_4h", "w1", "w3", "wq", "wk", "wv",
}  # fmt: skip
"""Kinds of module whose input is the residual stream."""

WRITERS = {"o_proj", "down_proj", "out_proj", "dense", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo"}
"""Kinds of module whose output is added to the residual stream."""

AT_ONCE = 16_384
"""Rows of an embedding in fp32 at a time."""


@dataclass(frozen=True)
class Tokens:
    """Tokens by the cosine of their embedding with a direction: those of the largest and those of the smallest one."""

    most: tuple[tuple[str, float], ...]
    least: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Lens:
    """What a unit reads and what it writes; None where its module does not touch the residual stream on that side.

    The sign of a unit is open: (a, b) and (−a, −b) are the same. What it writes on tokens at the end ``most`` of what it reads is
    what stands at ``most`` of what it writes, and likewise for ``least``.
    """

    reads: Tokens | None
    writes: Tokens | None


def look(base: TextBase, adapter: Adapter, module: str, unit: int, count: int = 8) -> Lens:
    """A unit's a against the input embedding, its b (with the scale's sign) against the unembedding.

    Only the direct path: the norms before a module and the layers between are left out.

    Args:
        base: that the adapter fits.
        adapter, module, unit: row of A.
        count: tokens at either end.

    Raises:
        AdapterError: when the adapter lacks the module.
    """
    factors, kind = adapter[module], module_kind(module)
    reads = writes = None
    embedding = base.model.get_input_embeddings().weight
    if kind in READERS and factors.down.shape[1] == embedding.shape[1]:
        reads = nearest(base.tokenizer, embedding, factors.down[unit], count)
    head = base.model.get_output_embeddings()
    if head is not None and kind in WRITERS and factors.up.shape[0] == head.weight.shape[1]:
        sign = -1 if factors.scale < 0 else 1
        writes = nearest(base.tokenizer, head.weight, sign * factors.up[:, unit], count)
    return Lens(reads, writes)


@torch.inference_mode()
def nearest(tokenizer: Any, embedding: Float[Tensor, "tokens d"], direction: Float[Tensor, " d"], count: int) -> Tokens:
    """The tokens at both ends of the cosine with a direction."""
    direction = torch.nn.functional.normalize(direction.float(), dim=0).to(embedding.device)
    parts = [torch.nn.functional.normalize(rows.float(), dim=1) @ direction for rows in embedding.split(AT_ONCE)]
    cosine = torch.cat(parts)[: len(tokenizer)]  # some embeddings are padded
    return Tokens(*(_named(tokenizer, cosine.topk(count, largest=largest)) for largest in (True, False)))


def _named(tokenizer: Any, found: Any) -> tuple[tuple[str, float], ...]:
    ids: Sequence[int] = found.indices.tolist()
    return tuple((tokenizer.decode([i]), value) for i, value in zip(ids, found.values.tolist(), strict=True))
