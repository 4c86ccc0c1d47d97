"""How much of an adapter's update each of its units is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lego.adapter import Adapter
from lego.effective import inner_products
from lego.units import pool


def contributions(adapter: Adapter, module: str) -> Float[np.ndarray, " units"]:
    """<u, ΔW> of each unit u = s b aᵀ of a module: its own ‖u‖² and its half of every cross term with the others.

    They add up to ‖ΔW‖² of the module, and over all modules to that of the adapter. One is negative where the other units take back
    more than the unit brings.

    Raises:
        AdapterError: when the adapter lacks the module.
    """
    units = pool([adapter], module)
    down, up = units.down[0].double(), units.up[0].double()
    return ((down @ down.T) * (up.T @ up)).sum(1).cpu().numpy()


def energy(adapter: Adapter) -> float:
    """‖ΔW‖² over all modules."""
    return float(inner_products([adapter]).inner.sum())
