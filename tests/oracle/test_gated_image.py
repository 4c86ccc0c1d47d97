"""Gated rows of a UNet's batch against MoLE's equations, computed one sample and one place at a time."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mole.gate import GateConfig, Gates
from mole.gated import EVERYWHERE, Gated, Route
from mole.live import Weighting
from mole.sites import find_sites
from tests.naive_gates import pool_for, randomise
from tests.naive_unet import NaiveUnet
from tests.tiny_unet import SIDE, noisy, rows_of, small_unet, unet_adapters

CONFIGS = [
    GateConfig(granularity=granularity, reads=reads, pooling=pooling, normalise=normalise, base_expert=base)
    for (granularity, reads, pooling), normalise, base in zip(
        product(("module", "layer", "block", "network"), ("outputs", "hidden"), ("mean", "flatten")),
        ("l2", "centred", "centred", "l2") * 4,
        (False, True, True, False, True, False, False, True) * 2,
        strict=True,
    )
]
SOME = ("third", "first")


def named(config: GateConfig) -> str:
    return f"{config.granularity}-{config.reads}-{config.pooling}-{config.normalise}"


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_every_sample_is_its_own_mixture(config: GateConfig) -> None:
    """Gated rows, masked and not, beside one without gates, all of them twice in the batch; two passes, each read anew."""
    unet, layout = small_unet(), torch.channels_last if config.base_expert else torch.contiguous_format
    adapters, side = unet_adapters(unet), SIDE // 2
    pool = pool_for(adapters)
    unet.to(memory_format=layout)

    def made(config: GateConfig, experts: tuple[str, ...], seed: int) -> Gates:
        modules = {module for key in experts for module in adapters[key].modules}
        with torch.no_grad():
            sites = find_sites(unet, modules, config.granularity, lambda: unet(**noisy(1, side=side)))
        return randomise(Gates.fresh(config, experts, sites, pool), seed)

    first = made(config, tuple(adapters), 1)
    second = made(GateConfig(granularity="block", base_expert=True), SOME, 2)
    ones = Weighting(tuple((key, 1.0) for key in adapters))
    weightings = [
        ones,
        Weighting((("second", -0.7), ("first", 0.4))),
        ones,
        Weighting((*ones.adapters[:2], ("third", 0.5))),
    ]
    routes = [Route(first, [0]), Route(second, [2]), Route(first, [3], masked=("second",))]
    live = Gated(unet, pool)
    live.prompt = EVERYWHERE
    live.set_rows(pool.row_weights(weightings), routes)
    naives = []
    for row, weighting in enumerate(weightings):
        route = next((route for route in routes if row in route.rows), None)
        gates, masked = (route.gates, route.masked) if route else (None, ())
        naives.append((route, NaiveUnet(unet, adapters, dict(weighting.adapters), gates, masked)))
    for seed, samples in ((0, (0, 3)), (1, range(8))):
        inputs = noisy(8, seed, side=side)
        with torch.no_grad(), live:
            found = unet(**inputs).sample
        for sample in samples:
            route, naive = naives[sample % 4]
            with torch.no_grad():
                expected = naive(rows_of(inputs, [sample]))[0]
            assert (found[sample].double() - expected).norm() <= 2e-5 * expected.norm(), (sample, named(config))
            if route:
                assert list(route.chosen) == list(naive.chosen)
                for site, chosen in route.chosen.items():
                    assert len(chosen) == 2, "the row in both halves of the batch"
                    torch.testing.assert_close(chosen[sample // 4].double(), naive.chosen[site], rtol=0, atol=2e-5)
                assert max(float(c[0].amax() - c[0].amin()) for c in route.chosen.values()) > 0.05
