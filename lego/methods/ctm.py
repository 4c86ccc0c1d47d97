"""Compress then Merge. arXiv 2606.03723."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lego.corespace import core_space, out_of_core
from lego.registry import Merged, Rank, merge_method, resolve_rank
from lego.rules import ChosenRule, Kept, Rule, source_weights
from lego.units import Pool

# The subspaces are found when a step gains less than this share of the energy they hold, which is later than the authors' 1e-6 of the
# error; at the latest after so many steps.
TOLERANCE = 1e-6
STEPS = 1000


@merge_method(
    title="Compress then Merge",
    paper="https://arxiv.org/abs/2606.03723",
    equations="U, V = argmax Σ_j ‖Uᵀ s_j B_j A_j V‖²;  C_j = Uᵀ s_j B_j A_j V;  ΔW = U · rule(C_1 … C_N) · Vᵀ",
    random=True,
    unit_invariant=True,
)
def ctm(
    pool: Pool,
    *,
    rule: ChosenRule = "ties",
    density: Kept = 0.5,
    rank: Annotated[Rank, Field(description="Dimension of the shared subspaces, the merged rank.")] = "r",
    beta: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="While the subspaces are sought, 0 gives all sources one norm, 1 leaves them theirs.",
        ),
    ] = 0.0,
) -> Merged:
    """Find one pair of small subspaces that all updates share best, project the updates into it and apply a rule there."""
    left, cores, right = core_space(pool)
    stack = torch.stack(cores)
    norms = stack.norm(dim=(2, 3), keepdim=True)
    wanted = norms * beta + norms.mean(0) * (1 - beta)
    u, v = shared_subspaces(stack * (wanted / norms.clamp_min(1e-30)), resolve_rank(rank, pool))
    coordinates = [(u.mT @ core @ v).float() for core in cores]
    merged = Rule(rule, density).merge(pool, coordinates, source_weights(pool))
    return out_of_core(left @ u.float(), merged, v.mT.float() @ right)


def shared_subspaces(
    cores: Float[Tensor, "sources modules p q"], rank: int
) -> tuple[Float[Tensor, "modules p k"], Float[Tensor, "modules q k"]]:
    """Orthonormal U and V of most Σ_j ‖Uᵀ M_j V‖²: partial Tucker by alternation, from the truncated joint SVDs."""
    (u, _), (v, energy) = strongest(cores, rank), strongest(cores.mT, rank)
    active = torch.arange(cores.shape[1], device=cores.device)
    for _ in range(STEPS):
        some = cores[:, active]
        u[active], _ = strongest(some @ v[active], rank)
        v[active], found = strongest(some.mT @ u[active], rank)
        change, energy[active] = (found - energy[active]).abs(), found
        active = active[change > TOLERANCE * found]
        if not len(active):
            break
    return u, v


def strongest(
    stack: Float[Tensor, "sources modules p columns"], rank: int
) -> tuple[Float[Tensor, "modules p k"], Float[Tensor, " modules"]]:
    """The first left singular vectors of the tensors side by side, and the energy they hold."""
    squares, vectors = torch.linalg.eigh((stack @ stack.mT).sum(0))
    return vectors.flip(2)[:, :, :rank].contiguous(), squares.flip(1)[:, :rank].sum(1)
