"""How well clusters of units are apart (Rousseeuw 1987), from inner products alone, all modules of a pool at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lego.cluster import partitions, squared_distances
from lego.merge import Progress
from lego.units import Pool


def silhouettes(
    gram: Float[Tensor, "modules units units"], labels: Int[Tensor, "modules units"]
) -> Float[Tensor, "modules units"]:
    """(b − a) / max(a, b) of each unit, fp64: a is the mean distance to its own cluster, b to the nearest other one.

    0 for a unit alone in its cluster, as in the paper; at least two clusters.
    """
    distance = squared_distances(gram.double()).sqrt()
    member = torch.nn.functional.one_hot(labels).to(distance)  # (M, units, k)
    counts, within = member.sum(1)[:, None], distance @ member
    own = labels[:, :, None]
    others = (counts.expand_as(within).gather(2, own) - 1)[:, :, 0]
    near = within.gather(2, own)[:, :, 0] / others.clamp_min(1)
    mean = torch.where(counts > 0, within / counts.clamp_min(1), torch.inf)
    far = mean.scatter(2, own, torch.inf).amin(2)
    larger = torch.maximum(near, far)
    return torch.where((others > 0) & (larger > 0), (far - near) / larger.clamp_min(1e-300), 0)


def silhouette_over(
    pools: Sequence[Pool], ks: Sequence[int], restarts: int = 8, progress: Progress | None = None
) -> list[float]:
    """The mean silhouette of all units for each k, 2 ≤ k; clusters as `lego.cluster.partition` makes them.

    ``progress`` is told after each k how many are done, and of how many.

    NaN for a k that no pool has units for: it takes more units than clusters.
    """
    found = []
    for k in ks:
        fit = [pool for pool in pools if pool.units > k]
        labels = partitions(fit, [k] * len(fit), restarts)
        values = [silhouettes(pool.gram, own).flatten() for pool, own in zip(fit, labels, strict=True)]
        found.append(float(torch.cat(values).mean()) if values else float("nan"))
        if progress:
            progress(len(found), len(ks))
    return found
