"""k-means on Gram matrices, batched over modules and restarts.

The distance of a unit to a centroid needs only the distances between units, and these only inner products:
‖m_i − μ_c‖² = 1/|c| Σ_{j∈c} ‖m_i − m_j‖² − 1/(2|c|²) Σ_{j,l∈c} ‖m_j − m_l‖². So the weights are never read again, whatever k is and
however many restarts there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from lego.threads import one_thread
from lego.units import Pool

# Squared distances below this share of the larger norm are rounding, not distance.
ROUNDING = 1e-6


# Modules that are worth a second core: fewer are clustered sooner than it starts.
SHARE = 32


def partition(pool: Pool, k: int, restarts: int = 8) -> Int[Tensor, "modules units"]:
    """Cluster each module's units: k-means++ and Lloyd, the best of several restarts by inertia.

    Seeded by the pool. The result does not depend on the order of the units or of the adapters: they are sorted by norm first.

    Returns:
        The cluster of each unit, 0 … k−1 with none empty; when k is at least the number of units, each is its own.
    """
    return partitions([pool], [k], restarts)[0]


def partitions(pools: Sequence[Pool], ks: Sequence[int], restarts: int = 8) -> list[Int[Tensor, "modules units"]]:
    """As `partition` for several pools, those with the same numbers of units and clusters in one go."""
    found: dict[int, Tensor] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (pool, k) in enumerate(zip(pools, ks, strict=True)):
        alike.setdefault((pool.units, k), []).append(i)
    for (units, k), places in alike.items():
        sizes = [len(pools[i].modules) for i in places]
        if k >= units:
            own = torch.arange(units, device=pools[places[0]].down.device)
            found.update((i, own.expand(size, units)) for i, size in zip(places, sizes, strict=True))
            continue
        gram = torch.cat([pools[i].gram for i in places])
        trials = 2 + int(math.log(k))
        uniform = torch.cat([pools[i].uniform(restarts, k, trials, stream="k-means++") for i in places])
        cores = torch.get_num_threads() if gram.device.type == "cpu" and len(gram) >= SHARE else 1
        with ThreadPoolExecutor(cores) as workers:
            labels = torch.cat(list(workers.map(best_labels, gram.chunk(cores), uniform.chunk(cores))))
        found.update(zip(places, labels.split(sizes), strict=True))
    return [found[i] for i in range(len(pools))]


def best_labels(
    gram: Float[Tensor, "modules units units"], uniform: Float[Tensor, "modules restarts k trials"]
) -> Int[Tensor, "modules units"]:
    """The labels of least inertia of each module, on one core."""
    units = gram.shape[1]
    with one_thread():
        order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, stable=True)
        squares = squared_distances(gram)
        squares = squares.gather(1, order[:, :, None].expand(-1, -1, units)).gather(
            2, order[:, None].expand(-1, units, -1)
        )
        labels, inertia = lloyd(squares, plus_plus(squares, uniform))
        chosen = labels.take_along_dim(inertia.argmin(dim=1)[:, None, None], dim=1)[:, 0]
        return torch.empty_like(chosen).scatter_(1, order, chosen)


def squared_distances(gram: Float[Tensor, "modules units units"]) -> Float[Tensor, "modules units units"]:
    """‖m_i − m_j‖² from inner products; 0 where it is nothing but rounding."""
    norms = gram.diagonal(dim1=1, dim2=2)
    distance = norms[:, :, None] + norms[:, None] - 2 * gram
    return torch.where(distance > ROUNDING * torch.maximum(norms[:, :, None], norms[:, None]), distance, 0)


def plus_plus(
    squares: Float[Tensor, "modules units units"], uniform: Float[Tensor, "modules restarts k trials"]
) -> Int[Tensor, "modules restarts k"]:
    """Greedy k-means++ seeding (Arthur and Vassilvitskii 2007; greedy as in scikit-learn).

    Each next centre is the best of several trials, each drawn with probability ∝ squared distance to the nearest centre so far.

    Args:
        squares: squared distances of the units.
        uniform: numbers in [0, 1), one for each centre and trial.

    Returns:
        Indices of the units that are the first centres.
    """
    modules, restarts, _, trials = uniform.shape
    units = squares.shape[1]
    table, first = squares.flatten(0, 1), first_rows(modules, restarts, units, squares.device)
    run = trials * torch.arange(modules * restarts, device=squares.device)
    nearest = squares.new_ones(len(first), units)
    centres: list[Tensor] = []
    for u in uniform.permute(2, 0, 1, 3).flatten(1, 2).contiguous():
        mass = nearest.cumsum(1)
        # All remaining distances 0: fewer distinct units than k. The last unit is taken, Lloyd gives the cluster a member.
        trial = torch.searchsorted(mass, u * mass[:, -1:], right=True).clamp_(max=units - 1)  # (batch, trials)
        left = table.index_select(0, (first + trial).flatten()).view(-1, trials, units)
        left = torch.minimum(left, nearest[:, None]) if centres else left
        best = left.sum(2).argmin(1)
        nearest = left.view(-1, units).index_select(0, run + best)
        centres.append(trial.view(-1).index_select(0, run + best))
    return torch.stack(centres, dim=1).unflatten(0, (modules, restarts))


def lloyd(
    squares: Float[Tensor, "modules units units"], centres: Int[Tensor, "modules restarts k"], steps: int = 100
) -> tuple[Int[Tensor, "modules restarts units"], Float[Tensor, "modules restarts"]]:
    """Lloyd's iteration from units as first centres, until no unit changes its cluster; what has converged leaves the batch.

    An empty cluster takes the unit that is farthest from its own centroid.

    Args:
        squares: squared distances of the units.
        centres: indices of units.
        steps: at most so many.

    Returns:
        The labels and the inertia Σ_i ‖m_i − μ_c(i)‖².
    """
    (modules, restarts, k), units = centres.shape, squares.shape[1]
    table, first = squares.flatten(0, 1), first_rows(modules, restarts, units, squares.device)
    to_centres = table.index_select(0, (first + centres.flatten(0, 1)).flatten())
    labels, inertia = assign(to_centres.view(-1, k, units))
    active = torch.arange(len(labels), device=labels.device)
    for _ in range(steps):
        before = labels[active]
        moved, inertia[active] = assign(to_centroids(table, first[active], before, k))
        labels[active] = moved
        active = active[(moved != before).any(1)]
        if not len(active):
            break
    return labels.unflatten(0, (modules, restarts)), inertia.unflatten(0, (modules, restarts))


def first_rows(modules: int, restarts: int, units: int, device: torch.device) -> Int[Tensor, "batch 1"]:
    """Where each problem's units begin in the table of all modules' rows: restarts share their module's rows."""
    return torch.arange(0, modules * units, units, device=device).repeat_interleave(restarts)[:, None]


def to_centroids(
    table: Float[Tensor, "rows units"], first: Int[Tensor, "batch 1"], labels: Int[Tensor, "batch units"], k: int
) -> Float[Tensor, "batch k units"]:
    """Squared distances of the units to the clusters' centroids.

    Args:
        table: squared distances, the rows of all modules below each other.
        first: the row of each problem's first unit.
        labels: the cluster of each unit; none is empty.
        k: number of clusters.
    """
    units = labels.shape[1]
    # Units cluster by cluster: summing their rows is much cheaper than a product with a matrix of zeros and ones.
    members = (units * labels + torch.arange(units, device=labels.device)).sort(1).values % units
    counts = sizes(labels, k)
    starts = counts.flatten().cumsum(0) - counts.flatten()
    mean = embedding_bag((first + members).flatten(), table, starts, mode="mean").view(-1, k, units)
    within = torch.zeros_like(counts, dtype=table.dtype).scatter_add_(1, labels, own(mean, labels)) / counts
    return mean.sub_(within[:, :, None] / 2)


def assign(
    distance: Float[Tensor, "batch k units"],
) -> tuple[Int[Tensor, "batch units"], Float[Tensor, " batch"]]:
    """Each unit's nearest centre, and the sum of these squared distances."""
    nearest, labels = distance.min(dim=1)  # several times as fast as argmin
    return fill_empty(labels, distance), nearest.sum(1)


def sizes(labels: Int[Tensor, "batch units"], k: int) -> Int[Tensor, "batch k"]:
    """Number of members of each cluster."""
    return labels.new_zeros(len(labels), k).scatter_add_(1, labels, torch.ones_like(labels))


def own(distance: Float[Tensor, "batch k units"], labels: Int[Tensor, "batch units"]) -> Float[Tensor, "batch units"]:
    """Each unit's entry for its own cluster."""
    return distance.gather(1, labels[:, None])[:, 0]


def fill_empty(
    labels: Int[Tensor, "batch units"], distance: Float[Tensor, "batch k units"]
) -> Int[Tensor, "batch units"]:
    """Give each empty cluster the unit farthest from its centroid, among clusters with more than one member."""
    counts = sizes(labels, distance.shape[1])
    if bool(counts.all()):
        return labels
    labels, far = labels.clone(), own(distance, labels).clone()
    for row, cluster in (counts == 0).nonzero().tolist():
        movable = counts[row].gather(0, labels[row]) > 1
        unit = int(far[row].masked_fill(~movable, -torch.inf).argmax())
        counts[row, labels[row, unit]] -= 1
        labels[row, unit], counts[row, cluster], far[row, unit] = cluster, 1, -torch.inf
    return labels
