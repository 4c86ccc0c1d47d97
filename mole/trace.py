"""What every gate chose, as numbers for a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lego.errors import AdapterError
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


@dataclass(frozen=True)
class Course:
    """The choices of some gates pass by pass, as at every step of a denoising.

    Attributes:
        sites: the gates' places, in the order in which the model reaches them.
        experts: the columns' keys.
        choices: G, (steps, gates, samples, experts).
    """

    sites: tuple[str, ...]
    experts: tuple[str, ...]
    choices: Float[Tensor, "steps gates samples experts"]

    @property
    def shares(self) -> Float[Tensor, "steps gates experts"]:
        """Each gate's mean choice at each step."""
        return self.choices.mean(dim=2)

    @property
    def by_gate(self) -> Float[Tensor, "gates experts"]:
        """Each gate's mean choice over all steps: a heat map over blocks."""
        return self.shares.mean(dim=0)

    @property
    def by_step(self) -> Float[Tensor, "steps experts"]:
        """The mean choice of all gates at each step: a heat map over denoising steps."""
        return self.shares.mean(dim=1)

    def at(self, step: int) -> Trace:
        """The choices at one step."""
        return Trace(self.sites, self.experts, self.choices[step])

    def of(self, samples: slice) -> Course:
        """The choices for some samples, such as the half of a batch that classifier-free guidance draws for the prompts."""
        return Course(self.sites, self.experts, self.choices[:, :, samples])


def trace(routes: Sequence[Route]) -> Trace:
    """What the gates chose in the last pass that they read.

    Args:
        routes: after their passes, of the same gates; their samples are put one after the other.
    """
    last = course(routes)
    return last.at(len(last.choices) - 1)


def course(routes: Sequence[Route]) -> Course:
    """What the gates chose in each pass since their rows were set. A gate that did not read a pass kept its choice.

    Args:
        routes: as for `trace`, after as many passes each.

    Raises:
        AdapterError: when some gate has chosen nothing in the first pass.
    """
    sites = tuple(site.name for site in routes[0].gates.sites)
    parts = []
    for route in routes:
        kept: dict[str, Tensor] = {}
        passes = []
        for chosen in (*route.earlier, route.chosen):
            kept = {**kept, **chosen}
            if silent := next((site for site in sites if site not in kept), None):
                raise AdapterError("this gate has chosen nothing yet", silent or "network", "Run the model first.")
            passes.append(torch.stack([kept[site].detach().float().cpu() for site in sites]))
        parts.append(torch.stack(passes))
    return Course(sites, routes[0].gates.columns, torch.cat(parts, dim=2))


def row_courses(route: Route, before: Mapping[int, Mapping[str, Tensor]]) -> dict[int, Course]:
    """The course of each of a route's rows alone; of a batch that holds the rows several times, as classifier-free guidance
    draws without and with the prompt, in its last part.

    Args:
        route: after its passes.
        before: for each row what the gates chose that these passes do not reach, such as those of text encoders, (experts,) by site.

    Raises:
        AdapterError: when some gate has chosen nothing, neither in the first pass nor before.
    """
    passes, count = [*route.earlier, route.chosen], len(route.rows)
    samples = len(next(iter(passes[0].values()), route.rows))
    kept = {
        site: torch.stack([before[row][site] for row in route.rows]).repeat(samples // count, 1)
        for site in before.get(route.rows[0], {})
    }
    *earlier, chosen = {**kept, **passes[0]}, *passes[1:]
    whole = course([Route(route.gates, route.rows, chosen=chosen, earlier=earlier)])
    return {row: whole.of(slice(at, at + 1)) for at, row in enumerate(route.rows, samples - count)}
