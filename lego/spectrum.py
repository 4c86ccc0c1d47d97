"""Singular values of adapters' updates, from inner products of their units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lego.lowrank import core_of
from lego.units import Pool


def spectra(pools: Sequence[Pool], sources: int) -> list[Float[np.ndarray, "modules rank"]]:
    """The singular values of each source's weighted update w_j s_j B_j A_j, one row a module that it adapts, largest first.

    Modules of lower rank than others end in zeros; a source that adapts none of the modules has no rows.
    """
    rows: list[list[np.ndarray]] = [[] for _ in range(sources)]
    for pool in pools:
        for source in pool.present:
            own = pool.owner == source
            rows[source] += list(core_of(pool.down[:, own], pool.up[:, :, own]).values.cpu().numpy())
    widest = [max(map(len, found), default=0) for found in rows]
    return [
        np.stack([np.pad(row, (0, width - len(row))) for row in found]) if found else np.zeros((0, 0))
        for found, width in zip(rows, widest, strict=True)
    ]
