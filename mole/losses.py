"""What gates are trained on: L = L_D + α L_balance (MoLE, arXiv 2404.13628, equations 14 to 16), on texts and images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize

IGNORED = -100
"""The label of a position that is no answer."""

LEAST = 1e-3
"""Length of a difference between embeddings of length 1 under which it tells no direction."""


def balance_loss(chosen: Iterable[Float[Tensor, "rows experts"]], loras: int) -> Float[Tensor, ""]:
    """L_balance = −Σ_i log q_i, where q_i is the mean of G_i over all gates and rows (equations 14 and 15).

    Least where every LoRA gets 1/N: N log N. The published code takes q from detached values, which trains nothing; this one has
    its gradient.

    Args:
        chosen: the gates' choices.
        loras: N. A base expert's column after them takes no part: q is then each LoRA's share of what the LoRAs get.
    """
    return balance_of(mean_choice(chosen), loras)


def mean_choice(chosen: Iterable[Float[Tensor, "rows experts"]]) -> Float[Tensor, "experts"]:
    """q of equation 14: the mean over all gates and rows."""
    return torch.stack([gate.mean(dim=0) for gate in chosen]).mean(dim=0)


def balance_of(q: Float[Tensor, "experts"], loras: int) -> Float[Tensor, ""]:
    """`balance_loss` from the mean choice."""
    q = q[:loras]
    return -(q / q.sum().clamp_min(1e-12)).clamp_min(1e-12).log().sum()


def balance_slope(q: Float[Tensor, "experts"], loras: int) -> Float[Tensor, "experts"]:
    """∂L_balance/∂q. A batch's q is the sum of what its parts bring, so that each part's gradient is this times its own."""
    q = q.detach().requires_grad_()
    return torch.autograd.grad(balance_of(q, loras), q)[0]


def entropy(chosen: Iterable[Float[Tensor, "rows experts"]]) -> Float[Tensor, ""]:
    """Mean entropy of a single choice in nats: log N where gates trust all alike, 0 where each trusts one."""
    return torch.stack([-torch.xlogy(gate, gate).sum(dim=1).mean() for gate in chosen]).mean()


def answer_loss(logits: Float[Tensor, "rows kept vocab"], labels: Int[Tensor, "rows kept"]) -> Float[Tensor, ""]:
    """L_D for language: cross-entropy of the answers, the mean over rows of the mean over each row's tokens.

    Taken row by row, so that a batch in several parts, on one device or many, has the same loss.

    Args:
        logits: of the positions before each label.
        labels: the answers' tokens; `IGNORED` elsewhere.
    """
    counted = labels != IGNORED
    each = cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return (each.sum(dim=1) / counted.sum(dim=1)).mean()


def denoising_loss(prediction: Float[Tensor, "rows *shape"], target: Float[Tensor, "rows *shape"]) -> Float[Tensor, ""]:
    """L_D for images with data: the squared error of what a diffusion model says, the mean over rows of each row's mean.

    Args:
        prediction: of the model, be it the noise, v or the clean sample.
        target: the same of the data (DDPM, arXiv 2006.11239, equation 14; v: arXiv 2202.00512, appendix D).
    """
    return mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(dim=1).mean()


def global_loss(images: Float[Tensor, "rows d"], texts: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """L_D for images without data, the global part: 1 − cos(E(I), E(T)), a picture against its whole prompt.

    CLIP guidance as MoLE takes it from StyleGAN-NADA (arXiv 2108.00946, equation 1); 0 at best, 2 at worst.

    Args:
        images, texts: embeddings of a contrastive model, of any length.
    """
    return (1 - cosine_similarity(images.float(), texts.float(), dim=-1)).mean()


def directional_loss(
    images: Float[Tensor, "rows d"],
    source_images: Float[Tensor, "rows d"],
    texts: Float[Tensor, "rows d"],
    source_texts: Float[Tensor, "rows d"],
) -> Float[Tensor, ""]:
    """The local part of CLIP guidance: 1 − cos(ΔI, ΔT), ΔI = E(I) − E(I_source), ΔT = E(T) − E(T_source), all of length 1 before.

    A picture shall differ from the one without the LoRAs as its prompt differs from the plain one (StyleGAN-NADA, equation 2).
    Differences shorter than `LEAST` count for less, so that nearly equal pictures, which have no direction, blow up no gradient.

    Args:
        images, texts: embeddings of the gated pictures and their prompts.
        source_images, source_texts: of the same noise drawn by the base, and of the prompts without what the LoRAs bring.
    """
    unit = [normalize(e.float(), dim=-1) for e in (images, source_images, texts, source_texts)]
    seen, meant = unit[0] - unit[1], unit[2] - unit[3]
    lengths = [torch.linalg.vector_norm(way, dim=-1).clamp_min(LEAST) for way in (seen, meant)]
    return (1 - (seen * meant).sum(dim=-1) / (lengths[0] * lengths[1])).mean()
