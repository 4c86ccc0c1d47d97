"""Weights of adapters in a merge: one number, or numbers by patterns on module names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lego.adapter import Adapter, module_kind
from lego.errors import AdapterError

# w_j of one adapter: a number, or numbers by pattern. A pattern is a kind of module (``q_proj``), a module's whole name, or a
# name with wildcards (``*.layers.1?.*``); the last one that matches decides, and where none does the weight is 1.
Weight = float | dict[str, float]

LEAST, MOST = 1e-25, 1e25
"""Sizes that a weight may have, by itself and times an adapter's scale."""


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern means this module."""
    return pattern == module_kind(module) or fnmatchcase(module, pattern)


def weight_at(weight: Weight, module: str) -> float:
    """w_j in one module."""
    if not isinstance(weight, dict):
        return weight
    return next((value for pattern, value in reversed(list(weight.items())) if matches(pattern, module)), 1.0)


def weighs(adapter: Adapter, weight: Weight) -> bool:
    """Whether an adapter is in the merge: its weight is not 0 in all of its modules."""
    return any(weight_at(weight, module) for module in adapter.modules)


def check_weights(adapters: Sequence[Adapter], weights: Sequence[Weight] | None) -> list[Weight]:
    """One weight for each adapter, 1 when none are given.

    Raises:
        AdapterError: for no adapter, a wrong number of weights, one that is not finite, a pattern that means no module of its
            adapter, or when nothing is left to merge.
    """
    if not adapters:
        raise AdapterError("no adapter given", None, "Pick at least one.")
    if weights is None:
        return [1.0] * len(adapters)
    if len(weights) != len(adapters):
        raise AdapterError(f"{len(weights)} weights for {len(adapters)} adapters", None, "Give one weight for each.")
    found = [check_weight(weight, adapter) for weight, adapter in zip(weights, adapters, strict=True)]
    if not any(map(weighs, adapters, found)):
        raise AdapterError("all weights are 0, so there is nothing to merge")
    return found


def check_weight(weight: Weight, adapter: Adapter) -> Weight:
    """The weight with plain finite floats in it, its patterns each good for something."""
    if not isinstance(weight, dict):
        return number(weight, adapter.name)
    for pattern in weight:
        if not any(matches(pattern, module) for module in adapter.modules):
            kinds = ", ".join(adapter.kinds)
            raise AdapterError(
                f"the weight's pattern {pattern!r} matches none of its modules", adapter.name, f"Kinds: {kinds}."
            )
    return {pattern: number(value, adapter.name) for pattern, value in weight.items()}


def number(value: object, where: str) -> float:
    """A finite number, 0 or of a size that fp32 can compute with.

    Raises:
        AdapterError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not computable(value):
        raise AdapterError(
            f"a weight must be a finite number, 0 or {LEAST:g} to {MOST:g} in size, not {value!r}", where
        )
    return float(value)


def computable(value: float) -> bool:
    """Whether fp32 neither loses a number nor what it multiplies."""
    return value == 0 or LEAST <= abs(value) <= MOST


def shown(weight: Weight) -> str:
    """A weight for people: ``+0.5``, or ``+0.5 (q_proj +1, k_proj 0)``."""
    if not isinstance(weight, dict):
        return f"{weight:+g}"
    return "(" + ", ".join(f"{pattern} {value:+g}" for pattern, value in weight.items()) + ")"
