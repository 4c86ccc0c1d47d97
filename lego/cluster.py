"""k-means on Gram matrices, batched over modules and restarts.

The distance of a unit to a centroid needs only inner products of units:
‖m_i − μ_c‖² = G_ii − 2/|c| Σ_{j∈c} G_ij + 1/|c|² Σ_{j,l∈c} G_jl. So the weights are never read again, whatever k is and
however many restarts there are.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from lego.units import Pool

# Squared distances below this share of the larger norm are rounding, not distance.
ROUNDING = 1e-6


def partition(pool: Pool, k: int, restarts: int = 8) -> Int[Tensor, "modules units"]:
    """Cluster each module's units: k-means++ and Lloyd, the best of several restarts by inertia.

    Seeded by the pool. The result does not depend on the order of the units or of the adapters: they are sorted by norm first.

    Returns:
        The cluster of each unit, 0 … k−1 with none empty; when k is at least the number of units, each is its own.
    """
    modules, units = len(pool.modules), pool.units
    if k >= units:
        return torch.arange(units, device=pool.down.device).expand(modules, units)
    order = pool.gram.diagonal(dim1=1, dim2=2).argsort(dim=1, stable=True)
    gram = pool.gram.gather(1, order[:, :, None].expand(-1, -1, units)).gather(2, order[:, None].expand(-1, units, -1))
    repeated = gram.repeat_interleave(restarts, dim=0)
    trials = 2 + int(math.log(k))
    uniform = pool.uniform(restarts, k, trials, stream="k-means++").flatten(0, 1)
    labels, inertia = lloyd(repeated, plus_plus(repeated, uniform))
    best = inertia.unflatten(0, (modules, restarts)).argmin(dim=1)
    chosen = labels.unflatten(0, (modules, restarts))[torch.arange(modules), best]
    return torch.empty_like(chosen).scatter_(1, order, chosen)


def plus_plus(
    gram: Float[Tensor, "batch units units"], uniform: Float[Tensor, "batch k trials"]
) -> Int[Tensor, "batch k"]:
    """Greedy k-means++ seeding (Arthur and Vassilvitskii 2007; greedy as in scikit-learn).

    Each next centre is the best of several trials, each drawn with probability ∝ squared distance to the nearest centre so far.

    Args:
        gram: inner products.
        uniform: numbers in [0, 1), one for each centre and trial.

    Returns:
        Indices of the units that are the first centres.
    """
    units, norms = gram.shape[1], gram.diagonal(dim1=1, dim2=2)
    centres: list[Tensor] = []
    nearest = torch.ones_like(norms)
    for step, u in enumerate(uniform.unbind(1)):
        # All remaining distances 0: fewer distinct units than k. Any unit will do, Lloyd gives the cluster a member.
        mass = torch.where(nearest.sum(1, keepdim=True) > 0, nearest, torch.ones_like(nearest)).cumsum(1)
        trial = torch.searchsorted(mass, u * mass[:, -1:], right=True).clamp_(max=units - 1)  # (batch, trials)
        own = norms.gather(1, trial)[:, :, None]
        distance = norms[:, None] + own - 2 * gram.gather(1, trial[:, :, None].expand(-1, -1, units))
        distance = torch.where(distance > ROUNDING * torch.maximum(norms[:, None], own), distance, 0)
        left = distance if step == 0 else torch.minimum(nearest[:, None], distance)  # (batch, trials, units)
        best = left.sum(2).argmin(1, keepdim=True)
        centres.append(trial.gather(1, best))
        nearest = left.gather(1, best[:, :, None].expand(-1, -1, units))[:, 0]
    return torch.cat(centres, dim=1)


def lloyd(
    gram: Float[Tensor, "batch units units"], centres: Int[Tensor, "batch k"], steps: int = 100
) -> tuple[Int[Tensor, "batch units"], Float[Tensor, " batch"]]:
    """Lloyd's iteration from units as first centres, until no unit changes its cluster.

    An empty cluster takes the unit that is farthest from its own centroid.

    Returns:
        The labels and the inertia Σ_i ‖m_i − μ_c(i)‖².
    """
    k = centres.shape[1]
    norms = gram.diagonal(dim1=1, dim2=2)
    distance = norms[:, :, None] - 2 * gram.gather(2, centres[:, None].expand(-1, gram.shape[1], -1))
    distance = distance + norms.gather(1, centres)[:, None]
    labels = fill_empty(distance.argmin(dim=2), distance)
    for _ in range(steps):
        distance = to_centroids(gram, labels, k)
        moved = fill_empty(distance.argmin(dim=2), distance)
        if bool((moved == labels).all()):
            break
        labels = moved
    return labels, inertia(gram, labels, k)


def to_centroids(
    gram: Float[Tensor, "batch units units"], labels: Int[Tensor, "batch units"], k: int
) -> Float[Tensor, "batch units k"]:
    """Squared distances of the units to the clusters' centroids."""
    member = one_hot(labels, k).to(gram.dtype)
    mean = member / member.sum(1, keepdim=True)
    to_mean = gram @ mean
    return gram.diagonal(dim1=1, dim2=2)[:, :, None] - 2 * to_mean + (mean * to_mean).sum(1, keepdim=True)


def inertia(
    gram: Float[Tensor, "batch units units"], labels: Int[Tensor, "batch units"], k: int
) -> Float[Tensor, " batch"]:
    """Σ_i ‖m_i − μ_c(i)‖² = Σ_i G_ii − Σ_c 1/|c| Σ_{j,l∈c} G_jl."""
    return to_centroids(gram, labels, k).gather(2, labels[:, :, None]).sum(dim=(1, 2))


def fill_empty(
    labels: Int[Tensor, "batch units"], distance: Float[Tensor, "batch units k"]
) -> Int[Tensor, "batch units"]:
    """Give each empty cluster the unit farthest from its centroid, among clusters with more than one member."""
    k = distance.shape[2]
    counts = one_hot(labels, k).sum(1)
    if bool(counts.all()):
        return labels
    labels, own = labels.clone(), distance.gather(2, labels[:, :, None])[:, :, 0].clone()
    for row, cluster in (counts == 0).nonzero().tolist():
        movable = counts[row].gather(0, labels[row]) > 1
        unit = int(own[row].masked_fill(~movable, -torch.inf).argmax())
        counts[row, labels[row, unit]] -= 1
        labels[row, unit], counts[row, cluster], own[row, unit] = cluster, 1, -torch.inf
    return labels
