"""How a comparison lies in a grid of two axes."""

from __future__ import annotations

from dataclasses import dataclass

VARIANT, PROMPT, SEED = "variant", "prompt", "seed"


@dataclass(frozen=True)
class Side:
    """One side of a grid: the axis' label, its values for people, and where they lie: in ``variant``, ``prompt`` or ``seed``."""

    label: str
    values: tuple[str, ...]
    part: str


@dataclass(frozen=True)
class Layout:
    """How a comparison lies in a grid: what its columns show, and what its rows show where they show something."""

    x: Side
    y: Side | None = None

    @property
    def height(self) -> int:
        """How many rows."""
        return len(self.y.values) if self.y else 1

    def place(self, i: int, j: int) -> dict[str, int]:
        """Where the cell in column i and row j lies: indices of its variant, prompt and seed; those not named are all meant."""
        found: dict[str, int] = {VARIANT: 0}
        if self.y is None:
            return {**found, self.x.part: i}
        if self.x.part == self.y.part:
            return {**found, self.x.part: i * len(self.y.values) + j}
        return {**found, self.x.part: i, self.y.part: j}
