"""Choosing the next token: greedy, or sampled with noise that all variants of a prompt share.

Sampling from softmax(logits / T) is taking the argmax of logits / T + g with g standard Gumbel noise. The noise depends on the
seed, the prompt and the step only, so two variants that agree about the next token's distribution take the same token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lego.errors import AdapterError

CANDIDATES = 512
"""Most likely tokens looked at first for top-p; the whole vocabulary is sorted only where they do not hold enough."""


@dataclass(frozen=True)
class Sampling:
    """How texts are made.

    Attributes:
        max_new_tokens: at most so many tokens for each text.
        temperature: 0 takes the most likely token (greedy).
        top_p: samples only among the most likely tokens that together hold this probability.
        seed: of the noise.
        chat: puts the prompt into the base's chat template; otherwise the text is continued as it is.
        system: the system message; None leaves the template's own.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    chat: bool = True
    system: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            AdapterError: for one that is out of range.
        """
        if self.max_new_tokens < 1:
            raise AdapterError(f"max_new_tokens is {self.max_new_tokens}, not at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise AdapterError(f"temperature is {self.temperature}, not a number from 0 on")
        if not 0 < self.top_p <= 1:
            raise AdapterError(f"top_p is {self.top_p}, not above 0 and at most 1")


def gumbel(seed: int, prompt: int, step: int, size: int) -> Float[Tensor, " size"]:
    """Standard Gumbel noise for one step of one prompt, on the CPU in fp32: the same on every device and in every batch."""
    name = f"{seed}/{prompt}/{step}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()))
    exponential = torch.empty(size).exponential_(generator=generator)
    return exponential.clamp_min_(torch.finfo(torch.float32).tiny).log_().neg_()


def choose(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, prompts: Sequence[int], steps: Sequence[int]
) -> Int[Tensor, " rows"]:
    """The next token of every row.

    Args:
        logits: in fp32.
        sampling: temperature, top-p and seed.
        prompts: which prompt a row belongs to.
        steps: how many tokens a row has made before.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits / sampling.temperature
    if sampling.top_p < 1:
        scores = scores.masked_fill(~nucleus(scores, sampling.top_p), -torch.inf)
    places = list(zip(prompts, steps, strict=True))
    drawn = {place: gumbel(sampling.seed, *place, size=logits.shape[-1]) for place in set(places)}
    noise = torch.stack([drawn[place] for place in places])
    return (scores + noise.to(scores.device)).argmax(-1)


def nucleus(scores: Float[Tensor, "rows vocab"], top_p: float) -> Tensor:
    """Which tokens belong to the smallest set of the most likely ones that holds probability ``top_p``; at least one.

    Returns:
        Booleans of the scores' shape. Tokens exactly as likely as the set's last one belong to it as well.
    """
    probabilities = scores.softmax(-1)
    count = min(CANDIDATES, scores.shape[-1])
    best = probabilities.topk(count).values
    if bool((best.sum(-1) < top_p).any()):
        best = probabilities.sort(-1, descending=True).values
    # A token is in while those before it hold less than top_p.
    inside = best.cumsum(-1) - best < top_p
    last = best.gather(-1, (inside.sum(-1, keepdim=True) - 1).clamp_min(0))
    return probabilities >= last
