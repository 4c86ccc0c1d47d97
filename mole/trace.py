"""What every gate chose, as numbers for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mole.gated import Route
from mole.losses import entropy


@dataclass(frozen=True)
class Trace:
    """The choices of some gates for some samples.

    Attributes:
        sites: the gates' places, in the order in which the model reaches them.
        experts: the columns' keys.
        choices: G, (gates, samples, experts).
    """

    sites: tuple[str, ...]
    experts: tuple[str, ...]
    choices: Float[Tensor, "gates samples experts"]

    @property
    def shares(self) -> Float[Tensor, "gates experts"]:
        """Each gate's mean choice."""
        return self.choices.mean(dim=1)

    @property
    def entropy(self) -> float:
        """Mean entropy of a choice in nats: log N where gates trust all alike, 0 where each trusts one."""
        return float(entropy(self.choices))

    @property
    def largest(self) -> float:
        """Mean share of the expert that a gate trusts most."""
        return float(self.choices.amax(dim=2).mean())


def trace(routes: Sequence[Route]) -> Trace:
    """What the gates of passes over prompts chose.

    Args:
        routes: after their passes, of the same gates; their samples are put one after the other.
    """
    first = routes[0]
    choices = [torch.stack([route.chosen[site.name].detach().cpu() for site in first.gates.sites]) for route in routes]
    return Trace(tuple(site.name for site in first.gates.sites), first.gates.columns, torch.cat(choices, dim=1))
