"""The page's colours, in one place: one per picked adapter, used alike on cards, maps, bars and columns."""

from __future__ import annotations

ADAPTERS = ("#3d7fd6", "#e08e2b", "#2a9d7f", "#9a66c9", "#d0609b", "#86a02f", "#2fa4c4", "#7b8aa5")
"""One colour per pick slot; readable on white and on near-black, and apart for colour-blind readers."""

BRICK = "#b5532f"
"""The accent: buttons, what is active, merges."""

NEUTRAL = "#8d867f"
"""The base model and whatever belongs to no adapter."""

SCALE = ((0.0, "#4f6bd0"), (0.35, "#2fa4b8"), (0.7, "#8fbf5f"), (1.0, "#f0b32e"))
"""A sequential colour scale without a near-white or a near-black end."""

DIVERGING = ((0.0, "#3d7fd6"), (0.5, "#b9b2aa"), (1.0, "#d9662b"))
"""A colour scale around a grey middle: less, equal, more."""


def adapter_colour(slot: int) -> str:
    """The colour of a pick slot."""
    return ADAPTERS[slot % len(ADAPTERS)]


def cluster_colour(index: int) -> str:
    """A colour for a cluster number: hues a golden angle apart, so that neighbours in number differ clearly."""
    hue = (index * 137.508 + 20) % 360
    return f"hsl({hue:.0f}, 55%, {52 + 8 * (index % 2)}%)"
