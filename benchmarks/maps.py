"""``python -m benchmarks.maps``: what a map of units costs, and how good it is.

Claims, each against a peer in the same run where there is one:

- clustering 224 modules of 64 units anew, from their Gram matrices, takes less than 200 ms;
- PCA of 5,000 units of length 8,192 takes less than a second and captures what scikit-learn's does, to a thousandth;
- UMAP of the same is at least three times as fast as ``umap.UMAP()``, compiled beforehand both, and no less trustworthy.

Twice: units of ten adapters of one start, which lie in groups of ten, and units without any structure.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import pairwise_distances
from umap import UMAP

from benchmarks.clock import seconds
from benchmarks.report import finish, machine, parser_for, table
from lego import Adapter, Factors
from lego.cluster import partition, partitions
from lego.layout import UnitMap, unit_map
from lego.units import Pool, pool

CLUSTERS = (16, 32, 48)
CLUSTERING, PROJECTING = 0.2, 1.0
"""Seconds at most: k-means of all modules, PCA of all units."""
FASTER, CAPTURED = 3.0, 1e-3
NOISE = 0.002
"""Two runs of plain UMAP differ by as much in trustworthiness."""

Result = tuple[list[list[str]], list[str]]


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of several calls: what it takes when nothing else runs."""
    return min(seconds(work) for _ in range(rounds))


def adapters(
    count: int, rank: int, layers: int, size: int, own: float, names: str = "layers.{}.q_proj"
) -> list[Adapter]:
    """Random adapters: each unit is one that all of them share, plus `own` times one that is its own."""
    generator = torch.Generator().manual_seed(0)
    modules = [names.format(layer) for layer in range(layers)]
    shared = torch.randn(2, layers, rank, size, generator=generator) * (own < 1)
    made = []
    for index in range(count):
        down, up = shared + own * torch.randn(2, layers, rank, size, generator=generator)
        factors = {name: Factors(a, b.T, 1.0) for name, a, b in zip(modules, down, up, strict=True)}
        made.append(Adapter.from_factors(f"adapter {index}", factors))
    return made


def clustering(rounds: int) -> Result:
    """k-means of 224 modules in pools of 16, as Llama-2-7B's come, and scikit-learn's on some of their units."""
    sources = adapters(4, 16, 224, 512, own=0.7)
    names = list(sources[0].modules)
    groups = [pool(sources, names[start : start + 16]) for start in range(0, len(names), 16)]
    units = [torch.cat([group.down[0], group.up[0].T], 1).numpy() for group in groups]
    assert all(len(group.gram) for group in groups)  # computed now, and kept
    rows, missed = [], []
    for k in CLUSTERS:
        ours = best(lambda k=k: partitions(groups, [k] * len(groups)), 3 * rounds)
        theirs = best(lambda k=k: [KMeans(k, n_init=8, random_state=0).fit(x) for x in units], 1)
        theirs *= len(names) / len(units)
        label = f"k-means of 224 modules × 64 units, k = {k}, 8 restarts vs. scikit-learn's"
        rows.append(
            [label, f"{1000 * ours:.0f} ms", f"{theirs:.1f} s", f"{theirs / ours:.0f} × faster", excess(groups, k)]
        )
        if ours > CLUSTERING:
            missed.append(f"k-means, k = {k}, takes {1000 * ours:.0f} ms")
    return rows, missed


def excess(groups: list[Pool], k: int) -> str:
    """Inertia over scikit-learn's with as many restarts, on one module of each group."""
    ours, theirs = [], []
    for group in groups:
        units = torch.cat([group.down[0], group.up[0].T], 1).double().numpy()
        labels = partition(group, k)[0].numpy()
        ours.append(sum(((units[labels == c] - units[labels == c].mean(0)) ** 2).sum() for c in range(k)))
        theirs.append(KMeans(k, n_init=8, random_state=0).fit(units).inertia_)
    return f"inertia {sum(ours) / sum(theirs):.4f} of its"


def pca(label: str, units: UnitMap, rounds: int) -> Result:
    """The two components of one map against scikit-learn's."""
    vectors, peer = units.vectors().numpy(), PCA(2, svd_solver="arpack", random_state=0)
    ours, theirs = best(units.pca, rounds), best(lambda: peer.fit(vectors), 1)
    share = float((units.pca().astype(float) ** 2).sum() / (len(units) - 1) / peer.explained_variance_.sum())
    row = [
        f"PCA, {label} vs. scikit-learn's (arpack)", f"{ours:.2f} s", f"{theirs:.2f} s",
        f"{theirs / ours:.1f} × faster", f"variance {share:.4f} of its",
    ]  # fmt: skip
    claims = {
        f"PCA, {label}, takes {ours:.2f} s": ours <= PROJECTING,
        f"PCA, {label}, captures {share:.4f} of the variance": share >= 1 - CAPTURED,
    }
    return [row], [claim for claim, holds in claims.items() if not holds]


def umap(label: str, units: UnitMap, rounds: int) -> Result:
    """UMAP of one map against umap-learn's on the units as they are."""
    vectors = units.vectors().numpy()
    found: list[np.ndarray] = []
    ours = best(lambda: found.append(units.umap()), rounds)
    theirs = best(lambda: found.append(UMAP().fit_transform(vectors)), 1)
    distances = pairwise_distances(vectors)
    np.fill_diagonal(distances, 0)
    kept, peer = (trustworthiness(distances, xy, n_neighbors=15, metric="precomputed") for xy in (found[0], found[-1]))
    row = [
        f"UMAP, {label} vs. umap-learn's", f"{ours:.1f} s", f"{theirs:.1f} s",
        f"{theirs / ours:.1f} × faster", f"trustworthiness {kept:.3f}, its {peer:.3f}",
    ]  # fmt: skip
    claims = {
        f"UMAP, {label}, is {theirs / ours:.1f} times faster": theirs >= FASTER * ours,
        f"UMAP, {label}, has trustworthiness {kept:.4f}, not {peer:.4f}": kept >= peer - NOISE,
    }
    return [row], [claim for claim, holds in claims.items() if not holds]


def compile_first() -> None:
    """Let numba compile all that ours and plain UMAP run: above 4,096 rows plain UMAP searches neighbours in another way."""
    unit_map(adapters(4, 16, 2, 32, own=0.7), "q_proj").umap()
    UMAP().fit_transform(np.random.default_rng(0).standard_normal((4200, 16), dtype=np.float32))


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("maps", __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many counts")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", message="Graph is not fully connected")  # plain UMAP's start, of groups of ten
    rows, missed = clustering(chosen.rounds)
    for measure in (pca, umap):
        if measure is umap:
            compile_first()
        for label, own in (("5,000 units in groups", 0.7), ("5,000 units at random", 1.0)):
            found = measure(label, unit_map(adapters(10, 10, 50, 4096, own), "q_proj"), chosen.rounds)
            rows, missed = rows + found[0], missed + found[1]
    text = table(["measured in one run, fastest of several", "Brickyard", "peer", "ratio", "quality"], rows)
    text += f"\n\n{machine()}"
    return finish("maps", text, missed, chosen.write)


if __name__ == "__main__":
    sys.exit(main())
