"""Gates at work: a live pool whose weights some rows get from gates: read from the prompt and kept, or read anew in every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lego.errors import AdapterError
from mole.gate import Gates
from mole.live import Live
from mole.pool import LivePool
from mole.sites import Site

EVERYWHERE: Literal["everywhere"] = "everywhere"
"""Gates read all places of every pass, as in a UNet at every denoising step."""


@dataclass(eq=False)
class Route:
    """Rows of a batch that are mixed by gates.

    Of a batch that holds the rows k times, samples are chosen for one by one: first those of the first part, then those of the next.

    Attributes:
        gates: which decide.
        rows: of the batch.
        masked: experts that are left out.
        chosen: after a pass that gates read, what each chose, (samples, experts) by site, with its gradient where one is recorded.
        reads: likewise what each gate saw, (samples, features).
        earlier: what was chosen in the passes before, since the rows were set.
    """

    gates: Gates
    rows: Sequence[int]
    masked: Sequence[str] = ()
    chosen: dict[str, Float[Tensor, "samples experts"]] = field(default_factory=dict)
    reads: dict[str, Float[Tensor, "samples features"]] = field(default_factory=dict)
    earlier: list[dict[str, Float[Tensor, "samples experts"]]] = field(default_factory=list)

    def choose(self, site: str, read: Tensor, chosen: Tensor) -> None:
        """Note what a gate saw and chose; one that chooses a second time does so in a new pass."""
        if site in self.chosen:
            self.earlier.append({name: given.detach() for name, given in self.chosen.items()})
            self.chosen, self.reads = {}, {}
        self.chosen[site], self.reads[site] = chosen, read

    def forget(self) -> None:
        """Begin anew, as if nothing had been chosen."""
        self.chosen, self.reads, self.earlier = {}, {}, []


class Gated(Live):
    """A `Live` some of whose rows are gated. Without routes it is the plain one.

    A pass for which `prompt` is set is read by the gates; in the passes after it each row keeps the weights of its prompt.
    """

    def __init__(self, model: nn.Module, pool: LivePool) -> None:
        """As `Live`: the weights are 0 everywhere until `set_rows`.

        Attributes:
            prompt: which tokens of the coming passes the gates read, (rows, tokens), or `EVERYWHERE`, as it is at first; None for
                passes that no gate reads. Padding and answers never change a gate.
            routes: the rows that are gated.
        """
        super().__init__(model, pool)
        self.prompt: Bool[Tensor, "rows tokens"] | Literal["everywhere"] | None = EVERYWHERE
        self.routes: tuple[Route, ...] = ()
        self._masks: list[Tensor | None] = []
        self._given: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}

    def set_rows(self, weights: Mapping[str, Float[Tensor, "rows units"]], routes: Sequence[Route] = ()) -> None:
        """Weights of the next batches, as `Live.set_rows`; gates multiply those of the routes' rows.

        Args:
            weights: from `LivePool.row_weights`; gated rows have the weights that their LoRAs have where a gate is 1.
            routes: no row is in two of them.

        Raises:
            AdapterError: when a mask leaves nothing, a row has two routes, or gates were made for other LoRAs.
        """
        rows = [row for route in routes for row in route.rows]
        if len(set(rows)) < len(rows):
            raise AdapterError("a row of the batch has two routes", None, "Give each row one.")
        for route in routes:
            route.gates.check_fit(self.pool)
            route.forget()
        self._masks = [route.gates.mask(route.masked) for route in routes]
        self.routes = tuple(routes)
        self._given = {module: given.to(self.pool.device) for module, given in weights.items()}
        self._now = {}
        super().set_rows(weights)

    def __enter__(self) -> Gated:
        super().__enter__()
        if self.prompt is None:  # nothing is read, what was chosen stays
            return self
        for route, mask in zip(self.routes, self._masks, strict=True):
            for site, gate in route.gates.items():
                first = self._layers[site.readers[0]]
                self._watches.append(first.register_forward_pre_hook(self._decide(route, mask, gate, site)))
        return self

    def _note_pass(self, part: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        super()._note_pass(part, inputs, named)
        if self.prompt is not None:
            self._now = {}

    def _decide(self, route: Route, mask: Tensor | None, gate: nn.Module, site: Site) -> Callable[..., None]:
        """A hook before the first reader: choose, and weigh the site's units accordingly."""

        def decide(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, prompt = inputs[0], self.prompt
            if not isinstance(prompt, Tensor):
                prompt = None
            elif x.dim() == 2:
                x = x.view(*prompt.shape, -1)
            samples = self._samples(route.rows, site, len(x))
            whole = samples == list(range(len(x)))
            picked = torch.as_tensor(samples, device=x.device)
            if prompt is not None:
                prompt = prompt.to(x.device) if whole else prompt.to(x.device)[picked]
            read = route.gates.read(site, x if whole else x[picked], prompt, self.pool, self._layers)
            chosen = gate(read, None if mask is None else mask.to(read.device).expand(len(read), -1))
            route.choose(site.name, read, chosen)
            picked = picked.to(chosen.device)
            for module in site.modules:
                weights = self._weights(module, route, chosen, len(x), None if whole else picked)
                self.set_module(module, weights, passing=prompt is None)

        return decide

    def _samples(self, rows: Sequence[int], site: Site, count: int) -> list[int]:
        """A route's samples in a batch that holds all rows once or several times."""
        all_rows = len(self._given[site.modules[0]])
        if count % all_rows:
            told = f"got {count} samples for {all_rows} rows of weights"
            raise AdapterError(told, site.readers[0], "A batch holds the rows a whole number of times.")
        return [row + start for start in range(0, count, all_rows) for row in rows]

    def _weights(
        self, module: str, route: Route, chosen: Tensor, count: int, picked: Tensor | None
    ) -> Float[Tensor, "samples units"]:
        """A module's weights in all samples, those of a route multiplied by what was chosen for them.

        Args:
            module: of the pool.
            route: whose gates chose.
            chosen: for the route's samples.
            count: of all samples.
            picked: the route's samples; None for all.
        """
        given = self._given[module]
        if count > len(given):
            given = given.repeat(count // len(given), 1)
        gated = route.gates.unit_weights(module, chosen, self.pool)
        if picked is None:
            return given * gated
        now = self._now.get(module, given)
        self._now[module] = now.index_put((picked,), given[picked] * gated)
        return self._now[module]
