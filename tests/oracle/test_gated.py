"""Gated rows of one batch against MoLE's equations, computed one sample and one token at a time."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mole.gate import GateConfig, Gates
from mole.gated import Gated, Route
from mole.live import Weighting
from mole.sites import find_sites
from tests.naive_gates import Mixture, Naive, padded, pool_for, randomise, sites_of, some_adapters
from tests.tiny import tiny_model

CONFIGS = [
    GateConfig(granularity=granularity, reads=reads, normalise=normalise)
    for granularity, reads, normalise in product(
        ("module", "layer", "block", "network"), ("outputs", "hidden"), ("l2", "centred")
    )
]
"""Half of all kinds; each meets its `other`, so that all are there."""
TEXTS = [
    ([3, 1, 4, 1, 5, 9], [2, 6]),
    ([5, 3], [5]),
    ([8, 9, 7, 9, 3], []),
    ([2], [3, 8, 4]),
    ([6, 2, 6, 4], [3]),
    ([3, 3, 8], [1, 2]),
]
"""Prompts and answers of different lengths."""


def named(config: GateConfig) -> str:
    return f"{config.granularity}-{config.reads}-{config.normalise}"


def other(config: GateConfig) -> GateConfig:
    """A configuration that differs in everything."""
    return GateConfig(
        granularity={"module": "network", "layer": "block", "block": "layer", "network": "module"}[config.granularity],
        reads="hidden" if config.reads == "outputs" else "outputs",
        normalise="centred" if config.normalise == "l2" else "l2",
        base_expert=not config.base_expert,
    )


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_every_row_is_its_own_mixture(config: GateConfig) -> None:
    """Two kinds of gates, masked and not, muted units and rows without gates, side by side under left padding."""
    model, adapters = tiny_model(), some_adapters()
    pool = pool_for(adapters)
    some, more = tuple(adapters), ("third", "first")

    def made(config: GateConfig, experts: tuple[str, ...], seed: int) -> Gates:
        modules = {module for key in experts for module in adapters[key].modules}
        sites = find_sites(model, modules, config.granularity, lambda: model(torch.tensor([[1, 2]])))
        written = sites_of([adapters[key] for key in experts], config.granularity)
        assert [(s.name, list(s.modules), list(s.readers)) for s in sites] == [
            (name, *place) for name, place in written.items()
        ]
        return randomise(Gates.fresh(config, experts, sites, pool), seed)

    first, second = made(config, some, 1), made(other(config), more, 2)
    muted = frozenset({("first", "model.layers.0.self_attn.q_proj", 1), ("third", "model.layers.1.mlp.up_proj", 5)})
    ones = tuple((key, 1.0) for key in some)
    weightings = [
        Weighting(ones),
        Weighting((("first", 0.7), ("second", -0.4), ("third", 2.0))),
        Weighting((("third", 1.0), ("first", 1.0), ("second", 0.3))),  # the second is beside the gates
        Weighting((("first", 1.0), ("second", 0.5), ("third", 1.0)), muted),
        Weighting((("third", -0.6),)),
        Weighting((("third", 1.0), ("first", 1.0))),
    ]
    routes = [Route(first, [0, 3]), Route(second, [2, 5], masked=("first",)), Route(first, [1], masked=("second",))]

    live = Gated(model, pool)
    live.set_rows(pool.row_weights(weightings), routes)
    inputs, live.prompt = padded(TEXTS)
    with torch.no_grad(), live:
        logits = model(**inputs).logits

    for row, (prompt, answer) in enumerate(TEXTS):
        route = next((route for route in routes if row in route.rows), None)
        given, gates, masked = weightings[row], route and route.gates, route.masked if route else ()
        mixture = Mixture(adapters, dict(given.adapters), gates, masked, given.muted)
        with torch.no_grad():
            expected = Naive(model, mixture)(prompt + answer, len(prompt))
        found = logits[row, -len(prompt + answer) :].double()
        assert (found - expected).norm() <= 1e-5 * expected.norm(), (row, named(config))
        if route:
            assert list(route.chosen) == list(mixture.chosen)
            for site, chosen in route.chosen.items():
                assert torch.allclose(
                    chosen[list(route.rows).index(row)].double(), mixture.chosen[site], rtol=0, atol=1e-5
                )
                assert chosen.amin() < 0.9 * chosen.amax(), "uniform gates would tell nothing"


@pytest.mark.parametrize("reads", ["outputs", "hidden"])
@pytest.mark.parametrize("normalise", ["l2", "centred"])
def test_flatten_is_the_literal_one(reads: str, normalise: str) -> None:
    model, adapters = tiny_model(), some_adapters()
    pool = pool_for(adapters)
    config = GateConfig(granularity="layer", reads=reads, normalise=normalise, pooling="flatten")
    sites = find_sites(model, pool.modules, "layer", lambda: model(torch.tensor([[1, 2]])))
    gates = randomise(Gates.fresh(config, tuple(adapters), sites, pool, length=5), 3)
    texts = [([3, 1, 4, 1, 5], []), ([2, 7, 1, 8, 2], [])]
    live = Gated(model, pool)
    route = Route(gates, [0, 1])
    every = Weighting(tuple((key, 1.0) for key in adapters))
    live.set_rows(pool.row_weights([every] * 2), [route])
    inputs, live.prompt = padded(texts)
    with torch.no_grad(), live:
        logits = model(**inputs).logits
    for row, (prompt, _) in enumerate(texts):
        mixture = Mixture(adapters, dict(every.adapters), gates)
        with torch.no_grad():
            expected = Naive(model, mixture)(prompt, 5)
        assert (logits[row].double() - expected).norm() <= 1e-5 * expected.norm()
        assert len(mixture.chosen) == 4
        for site, chosen in mixture.chosen.items():
            assert torch.allclose(route.chosen[site][row].double(), chosen, rtol=0, atol=1e-5)
