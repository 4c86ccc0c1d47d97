"""Gates at work beside a model: what uniform, one-hot and masked gates must compute, densely, and what never changes a gate."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

from lego import Adapter, AdapterError, Factors
from mole.gate import BASE, GateConfig, Gates
from mole.gated import Gated, Route
from mole.live import Weighting
from mole.losses import balance_loss
from mole.sites import find_sites
from tests.naive_gates import adapter, close, one_hot, pool_for, randomise, some_adapters
from tests.reference import dense_sum
from tests.tiny import tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8], [1, 6, 1, 8, 0, 3]])
EVERY = torch.ones_like(IDS, dtype=torch.bool)


def make(
    adapters: Mapping[str, Adapter], experts: Sequence[str] | None = None, **config: Any
) -> tuple[nn.Module, Gated, Gates]:
    """A tiny Llama, the adapters beside it, and gates of no weights."""
    model, pool, made = tiny_model(), pool_for(adapters), GateConfig(**config)
    experts = tuple(experts or adapters)
    modules = {module for key in experts for module in adapters[key].modules}
    sites = find_sites(model, modules, made.granularity, lambda: model(IDS[:1]))
    return model, Gated(model, pool), Gates.fresh(made, experts, sites, pool)


def ones(keys: Sequence[str], rows: int) -> list[Weighting]:
    return [Weighting(tuple((key, 1.0) for key in keys))] * rows


def run(model: nn.Module, live: Gated, weightings: Sequence[Weighting], routes: Sequence[Route], **more: Any) -> Tensor:
    """Logits of the batch, all of its tokens read by the gates."""
    given = {"input_ids": IDS, "prompt": EVERY, **more}
    live.set_rows(live.pool.row_weights(weightings), routes)
    live.prompt = given.pop("prompt")
    with torch.no_grad(), live:
        return model(**given).logits


def dense(adapters: Mapping[str, Adapter], weights: Mapping[str, float]) -> Tensor:
    """Logits with Σ w s B A added to the model's weights."""
    model = copy.deepcopy(tiny_model()).double()
    for module in {module for key in weights for module in adapters[key].modules}:
        update = dense_sum([adapters[key] for key in weights], list(weights.values()), module)
        model.get_submodule(module).weight += torch.tensor(update)
    return model(IDS).logits


@pytest.mark.parametrize("granularity", ["module", "layer", "block", "network"])
def test_gates_without_weights_are_the_average(granularity: str) -> None:
    """Gold test 1: e = 0 gives uniform gates, the output of NLA with 1/N, and L_balance = N log N."""
    adapters = some_adapters()
    model, live, gates = make(adapters, granularity=granularity)
    route = Route(gates, range(3))
    found = run(model, live, ones(list(adapters), 3), [route])
    assert close(found, dense(adapters, dict.fromkeys(adapters, 1 / 3)))
    assert not close(found, dense(adapters, {}))
    assert float(balance_loss(route.chosen.values(), 3)) == pytest.approx(3 * math.log(3), abs=1e-5)


@pytest.mark.parametrize("key", ["first", "second", "third"])
def test_one_hot_gates_are_one_lora_alone(key: str) -> None:
    """Gold test 3: the base with LoRA i alone."""
    adapters = some_adapters()
    model, live, gates = make(adapters)
    one_hot(gates, list(adapters).index(key))
    assert close(run(model, live, ones(list(adapters), 3), [Route(gates, range(3))]), dense(adapters, {key: 1.0}))


def test_one_lora_has_its_own_way() -> None:
    """Gold test 3: N = 1 gives exactly that LoRA, whatever e."""
    adapters = some_adapters(["second"])
    model, live, gates = make(adapters)
    assert close(
        run(model, live, ones(["second"], 3), [Route(randomise(gates), range(3))]), dense(adapters, {"second": 1.0})
    )


def test_the_base_expert_is_the_base() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters, base_expert=True)
    one_hot(gates, 3)
    route = Route(gates, range(3))
    assert close(run(model, live, ones(list(adapters), 3), [route]), dense(adapters, {}))
    masked = Route(gates, range(3), masked=(BASE, "first", "second"))
    assert close(run(model, live, ones(list(adapters), 3), [masked]), dense(adapters, {"third": 1.0}))


def test_all_but_one_masked_is_that_lora_alone() -> None:
    """Gold test 4: at weight 1; a mask of none changes nothing; a mask keeps the ratios of the others in the model, too."""
    adapters = some_adapters()
    model, live, gates = make(adapters)
    randomise(gates)
    free = Route(gates, range(3))
    whole = run(model, live, ones(list(adapters), 3), [free])
    for key in adapters:
        route = Route(gates, range(3), masked=tuple(other for other in adapters if other != key))
        assert close(run(model, live, ones(list(adapters), 3), [route]), dense(adapters, {key: 1.0}))
    assert torch.equal(run(model, live, ones(list(adapters), 3), [Route(gates, range(3), masked=())]), whole)
    part = Route(gates, range(3), masked=("second",))
    run(model, live, ones(list(adapters), 3), [part])
    first = gates.sites[0].name  # what it sees does not depend on gates before it
    before, after = free.chosen[first], part.chosen[first]
    assert torch.allclose(after[:, 0] / after[:, 2], before[:, 0] / before[:, 2], atol=1e-5)
    assert torch.equal(after[:, 1], torch.zeros(3))
    assert torch.equal(part.reads[first], free.reads[first]), "masked LoRAs still feed the gate's input"


def test_other_rows_padding_and_answers_never_change_a_gate() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters, granularity="layer")
    randomise(gates)
    alone = Route(gates, [0])
    keys = list(adapters)
    run(model, live, ones(keys, 1), [alone], input_ids=IDS[:1], prompt=EVERY[:1])

    padded = torch.cat([torch.full((3, 4), 7), IDS, torch.tensor([[5, 5], [6, 6], [7, 7]])], dim=1)
    prompt = torch.cat([torch.zeros(3, 4), torch.ones(3, 6), torch.zeros(3, 2)], dim=1).bool()
    attention = torch.cat([torch.zeros(3, 4), torch.ones(3, 8)], dim=1).long()
    more = {"attention_mask": attention, "position_ids": (attention.cumsum(1) - 1).clamp_min(0), "prompt": prompt}
    for neighbours in (padded, torch.cat([padded[:1], padded[:2] + 9])):
        route = Route(gates, [0, 2])
        run(model, live, ones(keys, 3), [route], input_ids=neighbours, **more)
        for site, chosen in alone.chosen.items():
            assert torch.allclose(route.chosen[site][0], chosen[0], atol=1e-5)


def test_rows_of_a_route_may_come_in_any_order() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters)
    randomise(gates)
    weightings = [Weighting((("first", 1.0),)), *ones(list(adapters), 2)]
    straight, turned = Route(gates, [0, 1, 2]), Route(gates, [2, 0, 1])
    expected = run(model, live, weightings, [straight])
    assert torch.allclose(run(model, live, weightings, [turned]), expected, atol=1e-5)
    for site, chosen in straight.chosen.items():
        assert torch.allclose(turned.chosen[site], chosen[[2, 0, 1]], atol=1e-5)


def test_gates_are_kept_until_the_next_prompt() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters)
    route = Route(randomise(gates), [0, 2])
    whole = run(model, live, ones(list(adapters), 3), [route])
    kept = {site: chosen.clone() for site, chosen in route.chosen.items()}
    live.prompt = None
    with torch.no_grad(), live:
        assert close(model(IDS).logits, whole)
        assert not close(model(IDS[[1, 0, 2]]).logits, whole[[1, 0, 2]]), "the rows keep the gates of their prompts"
    assert all(torch.equal(route.chosen[site], chosen) for site, chosen in kept.items())
    live.keep_rows(torch.tensor([2, 1]))
    with torch.no_grad(), live:
        assert close(model(IDS[[2, 1]]).logits, whole[[2, 1]])
    # A new prompt is a new choice.
    assert close(run(model, live, ones(list(adapters), 3), [Route(gates, [0, 2])]), whole)


def test_a_second_pass_with_gradients_does_not_reach_back_into_the_first() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters)
    other = make(adapters, granularity="module")[2]
    routes = [Route(randomise(gates), [0]), Route(randomise(other), [2])]
    live.set_rows(live.pool.row_weights(ones(list(adapters), 3)), routes)
    live.prompt = EVERY
    for _ in range(2):
        with live:
            model(IDS).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.parameters())


def test_no_hook_is_left_also_after_an_error() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters)
    run(model, live, ones(list(adapters), 3), [Route(gates, range(3))])
    live.prompt = EVERY[:, :2]
    with pytest.raises(RuntimeError), live:
        model(IDS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_loras_with_no_module_in_common() -> None:
    """Each is the only one somewhere; the gates still share between them, and the others see zeros there."""
    adapters = {
        "one": adapter("one", 1, 4, ("self_attn.q_proj", "mlp.up_proj")),
        "two": adapter("two", 2, 3, ("self_attn.k_proj", "mlp.down_proj")),
    }
    for granularity in ("module", "layer", "block", "network"):
        model, live, gates = make(adapters, granularity=granularity)
        found = run(model, live, ones(["one", "two"], 3), [Route(gates, range(3))])
        assert close(found, dense(adapters, {"one": 0.5, "two": 0.5}))
        one_hot(gates, 1)
        assert close(run(model, live, ones(["one", "two"], 3), [Route(gates, range(3))]), dense(adapters, {"two": 1.0}))


def test_what_does_not_fit_is_refused_before_the_model_runs() -> None:
    adapters = some_adapters()
    model, live, gates = make(adapters)
    rows = live.pool.row_weights(ones(list(adapters), 3))
    with pytest.raises(AdapterError, match=r"fisrt: is not among the gates' experts\. They mix: first, second, third"):
        live.set_rows(rows, [Route(gates, [0], masked=("fisrt",))])
    with pytest.raises(AdapterError, match="every expert is masked"):
        live.set_rows(rows, [Route(gates, [0], masked=tuple(adapters))])
    with pytest.raises(AdapterError, match="a row of the batch has two routes"):
        live.set_rows(rows, [Route(gates, [0, 1]), Route(gates, [1])])
    fewer = pool_for(some_adapters(["first", "third"]))
    with pytest.raises(AdapterError, match=r"is gated, but no loaded adapter has it\. Load the gates' own LoRAs"):
        Gated(model, fewer).set_rows({}, [Route(gates, [0])])
    renamed = pool_for({"x": adapters["first"], "second": adapters["second"], "third": adapters["third"]})
    with pytest.raises(AdapterError, match="first: is not in the pool of loaded adapters"):
        Gated(model, renamed).set_rows({}, [Route(gates, [0])])
    site = gates.sites[0]
    small = Gates(gates.config, gates.experts, [site], [7])
    with pytest.raises(AdapterError, match=r"model\.layers\.0: a gate reads 7 values, but these LoRAs give 144"):
        live.set_rows(rows, [Route(small, [0])])


def test_a_lora_of_another_architecture_is_refused() -> None:
    stranger = Adapter.from_factors(
        "stranger", {"transformer.h.0.attn.c_attn": Factors(torch.zeros(2, 24), torch.zeros(72, 2))}
    )
    with pytest.raises(AdapterError, match=r"stranger: module transformer\.h\.0\.attn\.c_attn .* is not in the model"):
        Gated(tiny_model(), pool_for({**some_adapters(), "stranger": stranger}))


def test_a_base_whose_weights_wait_elsewhere() -> None:
    """As with a ``device_map`` that offloads: accelerate brings each layer's weights when it runs."""
    adapters = some_adapters()
    model, live, gates = make(adapters)
    randomise(gates, 0)
    weightings = ones(list(adapters), len(IDS))
    expected = run(model, live, weightings, [Route(gates, range(len(IDS)))])
    offloaded = accelerate.cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    found = run(offloaded, Gated(offloaded, live.pool), weightings, [Route(gates, range(len(IDS)))])
    torch.testing.assert_close(found, expected)
