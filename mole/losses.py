"""What gates are trained on: L = L_D + α L_balance (MoLE, arXiv 2404.13628, equations 14 to 16)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""The label of a position that is no answer."""


def balance_loss(chosen: Iterable[Float[Tensor, "rows experts"]], loras: int) -> Float[Tensor, ""]:
    """L_balance = −Σ_i log q_i, where q_i is the mean of G_i over all gates and rows (equations 14 and 15).

    Least where every LoRA gets 1/N: N log N. The published code takes q from detached values, which trains nothing; this one has
    its gradient.

    Args:
        chosen: the gates' choices.
        loras: N. A base expert's column after them takes no part: q is then each LoRA's share of what the LoRAs get.
    """
    q = torch.stack([gate.mean(dim=0) for gate in chosen]).mean(dim=0)[:loras]
    return -(q / q.sum().clamp_min(1e-12)).clamp_min(1e-12).log().sum()


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
