"""The rules that methods are made of: what is done to each source's tensor, and how the tensors become one.

One table for all: methods that merge factors, whole updates, KnOTS's V parts or the small matrices of Core Space and CtM take their
rule from `RULES`, so that a rule added there is everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lego.lowrank import NUMERICAL_RANK
from lego.orthogonal import orthogonal_sum
from lego.registry import Rank
from lego.trimming import Entries, limit_over_all
from lego.units import Pool

RuleName = Literal["sum", "magnitude_prune", "ties", "dare_linear", "dare_ties", "tsv"]
Majority = Literal["total", "frequency"]
Sparsity = Literal["none", "magnitude", "random"]
Rows = Float[Tensor, "modules rows columns"]
Stack = Float[Tensor, "sources modules rows columns"]
Weights = Float[Tensor, "sources modules 1 1"]

# The rules' parameters, as methods declare them.
ChosenRule = Annotated[RuleName, Field(description="How the sources' matrices become one.")]
Trimmed = Annotated[float, Field(gt=0, le=1, description="Share of entries kept, those of largest magnitude.")]
Over = Literal["module", "adapter"]
TrimmedOver = Annotated[
    Over,
    Field(
        description="Rank the entries of each matrix apart (PEFT), or those of the whole adapter together (the TIES paper)."
    ),
]
Dropped = Annotated[float, Field(gt=0, le=1, description="Probability with which an entry is kept.")]
Kept = Annotated[float, Field(gt=0, le=1, description="Share of entries kept, where the rule trims or drops.")]
Vote = Annotated[Majority, Field(description="Elect signs by summed values (the TIES paper) or by count.")]
WeightedVote = Annotated[
    bool,
    Field(description="Elect after the weights (mergekit) rather than before (PEFT); the TIES paper has no weights."),
]

Cut = Annotated[
    Rank,
    Field(
        description="Rank the merged update is cut to, at most as many as the sources have together (all): a number, a multiple of "
        "their rank, or what keeps a share of the exact sum's energy (95%)."
    ),
]
Scaled = Annotated[
    bool,
    Field(description="Merge Σ V (the authors' code, KnOTS) rather than V: the weaker directions are trimmed first."),
]


@dataclass(frozen=True)
class Rule:
    """A rule with its parameters.

    Attributes:
        name: a key of `RULES`.
        density: share of entries kept, or probability to keep one.
        majority: elect by the summed values (``total``) or by the count of signs (``frequency``).
        weighted_vote: whether the weights count in the election.
        over: whether magnitudes are ranked in each matrix or over the whole adapter.
    """

    name: RuleName
    density: float = 1.0
    majority: Majority = "total"
    weighted_vote: bool = False
    over: Over = "module"

    @property
    def sparsity(self) -> Sparsity:
        """What is done to each source first."""
        return RULES[self.name][0] if self.density < 1 else "none"

    def limit(self, pool: Pool, source: int, entries: Entries) -> float | None:
        """What a source is trimmed at in every module; None where each matrix has its own limit."""
        if self.sparsity != "magnitude" or self.over == "module":
            return None
        return limit_over_all(pool, source, self.density, entries)

    def sparse(self, tensor: Rows, uniform: Callable[..., Rows], limit: float | None = None) -> Rows:
        """One source's tensor, trimmed or dropped; ``uniform(rows, columns)`` gives the random numbers."""
        if self.sparsity == "magnitude":
            return trim(tensor, self.density, limit)
        if self.sparsity == "random":
            return drop_and_rescale(tensor, self.density, uniform(*tensor.shape[1:]))
        return tensor

    def combine(self, tensors: Stack, weights: Weights) -> Rows:
        """All sources' tensors as one."""
        return RULES[self.name][1](self, tensors, weights)

    def merge(self, pool: Pool, tensors: list[Rows], weights: Weights) -> Rows:
        """Both steps, for one tensor of one shape from each source of the pool."""
        draws = [partial(pool.uniform, stream=source) for source in pool.present]
        return self.combine(
            torch.stack([self.sparse(t, draw) for t, draw in zip(tensors, draws, strict=True)]), weights
        )


def source_weights(pool: Pool) -> Weights:
    """w_j of each source."""
    return torch.stack([pool.weight[:, pool.owner == source][:, 0] for source in pool.present])[:, :, None, None]


def largest(magnitudes: Float[Tensor, "modules entries"], count: int) -> Float[Tensor, "modules 1"]:
    """The count-th largest entry of each module; infinite for a count of 0. Leaves the magnitudes in another order."""
    if count < 1:
        return magnitudes.new_full((len(magnitudes), 1), torch.inf)
    place = magnitudes.shape[1] - count
    if magnitudes.device.type != "cpu":
        return magnitudes.kthvalue(place + 1, dim=1, keepdim=True).values
    magnitudes.numpy().partition(place, axis=1)  # in place, and many times faster than torch's selection on a CPU
    return magnitudes[:, place, None].clone()


def threshold(tensor: Rows, density: float) -> Float[Tensor, "modules 1 1"]:
    """The least magnitude that is among the share ``density`` of largest."""
    flat = tensor.flatten(1).abs()
    return largest(flat, int(density * flat.shape[1]))[:, :, None]


def trim(tensor: Rows, density: float, limit: float | None = None) -> Rows:
    """Keep what reaches the limit, or the share ``density`` of largest magnitude in each module, zero the rest (TIES, step 1).

    Equals are kept together.
    """
    return torch.where(tensor.abs() >= (threshold(tensor, density) if limit is None else limit), tensor, 0)


def drop_and_rescale(tensor: Rows, density: float, uniform: Rows) -> Rows:
    """Keep each entry with probability ``density`` and divide it by that (DARE, arXiv 2311.03099)."""
    kept = (density - uniform).sign_().relu_()  # 1 where uniform < density; floats, since torch is slow with booleans
    return kept.mul_(tensor).div_(density)


def weighted_sum(rule: Rule, tensors: Stack, weights: Weights) -> Rows:
    """Σ_j w_j T_j (task arithmetic)."""
    return (tensors * weights).sum(0)


def disjoint_mean(rule: Rule, tensors: Stack, weights: Weights) -> Rows:
    """Elect a sign for each entry and average the sources that have it (TIES, arXiv 2306.01708, steps 2 and 3)."""
    voters = tensors * weights if rule.weighted_vote else tensors
    votes = (voters if rule.majority == "total" else voters.sign()).sum(0)
    elected = torch.ones_like(votes).copysign_(votes)
    agreeing = (voters * elected).relu_()  # magnitudes of those that have the sign, 0 for the others
    count = agreeing.sign().sum(0).clamp_min_(1)
    shares = agreeing if rule.weighted_vote else agreeing.mul_(weights)
    return shares.sum(0).mul_(elected).div_(count)


def task_singular_vectors(rule: Rule, tensors: Stack, weights: Weights) -> Rows:
    """Σ_j w_j T_j with singular vectors made orthogonal across the sources, as many as there can be (TSV, arXiv 2412.00081)."""
    left, values, right = torch.linalg.svd(tensors, full_matrices=False)
    live = values > NUMERICAL_RANK * values[..., :1]
    parts = (left * live[:, :, None], values * live * weights[..., 0], right * live[..., None])
    down, up = orthogonal_sum(list(zip(*parts, strict=True)), count=min(tensors.shape[2:]))
    return up @ down


RULES: dict[RuleName, tuple[Sparsity, Callable[[Rule, Stack, Weights], Rows]]] = {
    "sum": ("none", weighted_sum),
    "magnitude_prune": ("magnitude", weighted_sum),
    "ties": ("magnitude", disjoint_mean),
    "dare_linear": ("random", weighted_sum),
    "dare_ties": ("random", disjoint_mean),
    "tsv": ("none", task_singular_vectors),
}
