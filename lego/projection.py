"""Projections of units to few dimensions: principal components, exact or by block Krylov iteration, and UMAP on top of them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

EXACT = 1000
"""Up to so many units their Gram matrix is decomposed as a whole."""

COMPONENTS = 50
"""Principal components that UMAP sees. On trained adapters neighbours among these are kept better than neighbours in full length:
what the other components hold is mostly noise."""

BLOCK, DEPTH = 16, 20
"""Vectors that the Krylov iteration carries, and its steps at most: each reads the units twice."""

GAIN, COARSE = 3e-4, 0.1
"""The iteration ends when a step adds no more than this share to the captured variance: for a picture, and for neighbourhoods."""

DEFINED, TURN = 0.02, 1e-3
"""Where the next eigenvalue is at least this share smaller, components are defined, and found to this angle in radians."""

Coordinates = Float[np.ndarray, "units 2"]


def principal_components(
    units: Float[Tensor, "units length"], count: int, gain: float = GAIN
) -> Float[np.ndarray, "units count"]:
    """Coordinates of the centred units along their leading principal components; zeros where there are fewer.

    Exact up to `EXACT` units, by `krylov` beyond. The sign of an axis is fixed so that its largest coordinate is positive.
    """
    found = min(count, *units.shape)
    points = gram_eigenvectors(units, found) if len(units) <= EXACT else krylov(units, found, gain)
    points = points * np.where(points[np.abs(points).argmax(axis=0), np.arange(found)] < 0, -1, 1)
    return np.pad(points, ((0, 0), (0, count - found)))


def gram_eigenvectors(units: Float[Tensor, "units length"], count: int) -> Float[np.ndarray, "units count"]:
    """Exact components, from the centred Gram matrix in fp64."""
    centred = units.double() - units.double().mean(0)
    values, vectors = eigh((centred @ centred.mT).numpy(), subset_by_index=(len(units) - count, len(units) - 1))
    return vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0))


def krylov(units: Float[Tensor, "units length"], count: int, gain: float = GAIN) -> Float[np.ndarray, "units count"]:
    """Leading components from the block Krylov space of X Xᵀ, X the centred units (Musco and Musco 2015), in fp32.

    It ends when a step adds less than `gain` of what the components capture, which is defined however close the eigenvalues lie.
    Where a gap of at least `DEFINED` follows them, so are the components, to an angle² of about what a step adds over the gap:
    then the iteration goes on until that is `TURN`². Rounding depends on the number of threads.
    """
    mean = units.mean(0)
    start = torch.randn(units.shape[1], BLOCK, generator=torch.Generator().manual_seed(0))
    new = torch.linalg.qr(units @ start - mean @ start).Q
    basis, images, gram = new[:, :0], units.new_empty(units.shape[1], 0), units.new_empty(0, 0)
    captured = 0.0
    for _ in range(DEPTH):
        image = units.T @ new - mean[:, None] * new.sum(0)  # Xᵀ new
        basis, images = torch.cat([basis, new], 1), torch.cat([images, image], 1)
        cross = image.T @ images
        gram = torch.cat([torch.cat([gram, cross[:, : len(gram)].T], 1), cross])
        values, vectors = torch.linalg.eigh(gram)
        before, captured = captured, float(values[-count:].sum())
        if len(gram) > count:
            gap = float(values[-count] - values[-count - 1])
            defined = gap > DEFINED * float(values[-count])
            if captured - before <= (min(gain * captured, TURN**2 * gap) if defined else gain * captured):
                break
        new = units @ image - mean @ image
        for _ in range(2):  # the second time against rounding
            new = torch.linalg.qr(new - basis @ (basis.T @ new)).Q
    return (basis @ vectors[:, -count:].flip(1) * values[-count:].flip(0).clamp_min(0).sqrt()).numpy()


def umap(points: Float[np.ndarray, "units components"], seed: int = 0, neighbours: int = 15) -> Coordinates:
    """UMAP of units given by their principal components, started at the first two of them: the same picture each time.

    Units fewer than four have no neighbourhoods to keep, so their first two components are returned.
    """
    if len(points) < 4:
        return points[:, :2]
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP  # numba compiles for seconds: only when a UMAP is asked for

    points = np.ascontiguousarray(points, dtype=np.float32)
    near = min(neighbours, len(points) - 1)
    distance, index = NearestNeighbors(n_neighbors=near, algorithm="brute").fit(points).kneighbors(points)
    start = 10 * points[:, :2] / max(np.abs(points[:, :2]).max(), 1e-12)
    # From this start 200 rounds keep neighbourhoods as well as UMAP's usual 500.
    reducer = UMAP(
        n_neighbors=near, precomputed_knn=(index, distance, None), init=start, n_epochs=200, random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")  # it cannot place new points; there are none
        return reducer.fit_transform(points)
