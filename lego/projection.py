"""Projections of units to few dimensions: principal components, exact or by block Krylov iteration, and UMAP on top of them."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

from lego.threads import one_thread

EXACT = 1000
"""Up to so many units, or entries in a unit, the matrix is decomposed as a whole."""

COMPONENTS = 50
"""Principal components that UMAP sees. On trained adapters neighbours among these are kept better than neighbours in full length:
what the other components hold is mostly noise."""

BLOCK, DEPTH, ROWS = 16, 20, 256
"""Vectors that the Krylov iteration carries, its steps at most, and how many units it takes up at a time."""

GAIN, COARSE = 6e-4, 0.1
"""The iteration ends when a step adds no more than this share to the captured variance: for a picture, and for neighbourhoods."""

DEFINED, TURN = 0.02, 1e-3
"""Where the next eigenvalue is at least this share smaller, components are defined, and found to this angle in radians."""

Coordinates = Float[np.ndarray, "units 2"]


def principal_components(
    units: Float[Tensor, "units length"], count: int, gain: float = GAIN
) -> Float[np.ndarray, "units count"]:
    """Coordinates of the centred units along their leading principal components; zeros where there are fewer.

    Exact up to `EXACT` units or entries, by `krylov` beyond. The sign of an axis is fixed so that its largest coordinate is positive.
    """
    found = min(count, *units.shape)
    points = exact(units, found) if min(units.shape) <= EXACT else krylov(units, found, gain)
    points = points * np.where(points[np.abs(points).argmax(axis=0), np.arange(found)] < 0, -1, 1)
    return np.pad(points, ((0, 0), (0, count - found)))


def exact(units: Float[Tensor, "units length"], count: int) -> Float[np.ndarray, "units count"]:
    """Exact components in fp64, from the centred Gram matrix or the covariance, whichever is smaller."""
    centred = (units.double() - units.double().mean(0)).numpy()
    wide = len(units) <= units.shape[1]
    square = centred @ centred.T if wide else centred.T @ centred
    values, vectors = eigh(square, subset_by_index=(len(square) - count, len(square) - 1))
    vectors = vectors[:, ::-1]
    return vectors * np.sqrt(np.maximum(values[::-1], 0)) if wide else centred @ vectors


def krylov(units: Float[Tensor, "units length"], count: int, gain: float = GAIN) -> Float[np.ndarray, "units count"]:
    """Leading components from the block Krylov space of Xᵀ X, X the centred units (Musco and Musco 2015), in fp32.

    It ends when a step adds less than `gain` of what the components capture, which is defined however close the eigenvalues lie.
    Where a gap of at least `DEFINED` follows them, so are the components, to an angle² of about what a step adds over the gap:
    then the iteration goes on until that is `TURN`².
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as workers, one_thread():
        mean = units.mean(0)

        def times_covariance(block: Float[Tensor, "block length"]) -> Float[Tensor, "block length"]:
            """block · Xᵀ X, reading the units once."""
            images, totals = zip(*workers.map(lambda rows: of_rows(rows, mean, block), units.split(ROWS)), strict=True)
            return sum(images) - sum(totals)[:, None] * mean

        new = orthonormal(
            times_covariance(torch.randn(BLOCK, units.shape[1], generator=torch.Generator().manual_seed(0)))
        )
        basis = images = new[:0]  # images = basis Xᵀ X
        captured = 0.0
        for _ in range(DEPTH):
            basis, images = torch.cat([basis, new]), torch.cat([images, times_covariance(new)])
            values, vectors = torch.linalg.eigh((basis @ images.T).double())
            before, captured = captured, float(values[-count:].sum())
            if len(basis) > count:
                gap = float(values[-count] - values[-count - 1])
                defined = gap > DEFINED * float(values[-count])
                if captured - before <= (min(gain * captured, TURN**2 * gap) if defined else gain * captured):
                    break
            new = images[-BLOCK:]
            for _ in range(3):  # again against rounding: rows beyond the units' rank are nothing else
                new = orthonormal(new - (new @ basis.T) @ basis)
        axes = vectors[:, -count:].flip(1).T.float() @ basis
        return (units @ axes.T - axes @ mean).numpy()


def of_rows(
    rows: Float[Tensor, "rows length"], mean: Float[Tensor, " length"], block: Float[Tensor, "block length"]
) -> tuple[Float[Tensor, "block length"], Float[Tensor, " block"]]:
    """What some units add to block · Xᵀ X, not yet less the mean of the second X; and how often that is to be taken off."""
    with one_thread():
        scores = rows @ block.T - block @ mean
        return scores.T @ rows, scores.sum(0)


def orthonormal(rows: Float[Tensor, "block length"]) -> Float[Tensor, "block length"]:
    """Orthonormal rows of the same span."""
    return torch.linalg.qr(rows.T).Q.T.contiguous()


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
