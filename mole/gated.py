"""Gates at work: a live pool whose weights some rows get from gates, read from the prompt and kept while the answer is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lego.errors import AdapterError
from mole.gate import Gates
from mole.live import Live
from mole.pool import LivePool
from mole.sites import Site


@dataclass(eq=False)
class Route:
    """Rows of a batch that are mixed by gates.

    Attributes:
        gates: which decide.
        rows: of the batch.
        masked: experts that are left out.
        chosen: after a pass over prompts, what each gate chose, (rows, experts) by site, with its gradient where one is recorded.
        reads: likewise what each gate saw, (rows, features).
    """

    gates: Gates
    rows: Sequence[int]
    masked: Sequence[str] = ()
    chosen: dict[str, Float[Tensor, "rows experts"]] = field(default_factory=dict)
    reads: dict[str, Float[Tensor, "rows features"]] = field(default_factory=dict)


class Gated(Live):
    """A `Live` some of whose rows are gated. Without routes it is the plain one.

    A pass for which `prompt` is set is read by the gates; in the passes after it each row keeps the weights of its prompt.
    """

    def __init__(self, model: nn.Module, pool: LivePool) -> None:
        """As `Live`: the weights are 0 everywhere until `set_rows`.

        Attributes:
            prompt: which tokens of the coming passes the gates read, (rows, tokens); None for passes that no gate reads.
                Padding and answers never change a gate.
            routes: the rows that are gated.
        """
        super().__init__(model, pool)
        self.prompt: Bool[Tensor, "rows tokens"] | None = None
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
        self._masks = [route.gates.mask(route.masked) for route in routes]
        self.routes = tuple(routes)
        self._given = {module: given.to(self.pool.device) for module, given in weights.items()}
        self._now = {}
        super().set_rows(weights)

    def __enter__(self) -> Gated:
        super().__enter__()
        if self.prompt is None:  # nothing is read, what was chosen stays
            return self
        self._now = {}
        for route, mask in zip(self.routes, self._masks, strict=True):
            for site, gate in route.gates.items():
                first = self._layers[site.readers[0]]
                self._watches.append(first.register_forward_pre_hook(self._decide(route, mask, gate, site)))
        return self

    def _decide(self, route: Route, mask: Tensor | None, gate: nn.Module, site: Site) -> Callable[..., None]:
        """A hook before the first reader: choose, and weigh the site's units accordingly."""

        def decide(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert self.prompt is not None
            x, prompt = inputs[0], self.prompt.to(inputs[0].device)
            if x.dim() == 2:
                x = x.view(*prompt.shape, -1)
            rows = torch.as_tensor(route.rows, device=x.device)
            whole = list(route.rows) == list(range(len(x)))
            x, prompt = (x, prompt) if whole else (x[rows], prompt[rows])
            read = route.reads[site.name] = route.gates.read(site, x, prompt, self.pool)
            chosen = gate(read, None if mask is None else mask.to(read.device).expand(len(x), -1))
            route.chosen[site.name] = chosen
            rows = rows.to(chosen.device)
            for module in site.modules:
                given = self._given[module]
                weights = given[rows] * route.gates.unit_weights(module, chosen, self.pool)
                if not whole:
                    weights = self._now[module] = self._now.get(module, given).index_put((rows,), weights)
                self.set_module(module, weights)

        return decide
