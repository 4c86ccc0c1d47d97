"""Gates at work in a UNet: what uniform, one-hot and masked gates must compute, densely; steps, training and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lego import Adapter, AdapterError
from mole.batch import Batch
from mole.checkpoint import Base, Expert, load_gates, save_gates
from mole.gate import GateConfig, Gates
from mole.gated import EVERYWHERE, Gated, Route
from mole.live import Weighting
from mole.losses import balance_loss, denoising_loss
from mole.places import mean_patch, patches
from mole.recipe import GateRecipe
from mole.sites import Site, find_sites
from mole.trace import course, trace
from mole.train import TrainConfig, Trainer
from tests.naive_gates import close, one_hot, pool_for, randomise
from tests.tiny_unet import SIDE, noisy, rows_of, small_unet, unet_adapters

NAMES = ("first", "second", "third")
INPUTS = noisy(4, side=SIDE // 2)


def make(**config: Any) -> tuple[nn.Module, dict[str, Adapter], Gated, Gates]:
    """A small UNet, the adapters beside it, and gates of no weights."""
    unet, made = small_unet(), GateConfig(**config)
    adapters = unet_adapters(unet)
    pool = pool_for(adapters)
    with torch.no_grad():
        sites = find_sites(unet, pool.modules, made.granularity, lambda: unet(**rows_of(INPUTS, [0])))
    live = Gated(unet, pool)
    live.prompt = EVERYWHERE
    return unet, adapters, live, Gates.fresh(made, NAMES, sites, pool)


def ones(rows: int, keys: Sequence[str] = NAMES) -> list[Weighting]:
    return [Weighting(tuple((key, 1.0) for key in keys))] * rows


def run(unet: nn.Module, live: Gated, routes: Sequence[Route], rows: int = 2, inputs: Any = INPUTS) -> Tensor:
    """The prediction for a batch that holds the rows twice."""
    live.set_rows(live.pool.row_weights(ones(rows)), routes)
    with torch.no_grad(), live:
        return unet(**inputs).sample


def dense(adapters: Mapping[str, Adapter], weights: Mapping[str, float]) -> Tensor:
    """The prediction with Σ w s B A added to the UNet's weights."""
    unet = copy.deepcopy(small_unet()).double()
    for key, weight in weights.items():
        for module in adapters[key].modules:
            parameter: Any = unet.get_submodule(module).weight
            f = adapters[key][module]
            parameter += weight * f.scale * (f.up.double() @ f.down.double()).view_as(parameter)
    with torch.no_grad():
        return unet(**{k: v.double() if v.is_floating_point() else v for k, v in INPUTS.items()}).sample


@pytest.mark.parametrize("granularity", ["module", "layer", "block", "network"])
def test_gates_without_weights_are_the_average(granularity: str) -> None:
    """Gold test 1: e = 0 gives uniform gates, the output of NLA with 1/N, and L_balance = N log N."""
    unet, adapters, live, gates = make(granularity=granularity)
    route = Route(gates, range(2))
    found = run(unet, live, [route])
    assert close(found, dense(adapters, dict.fromkeys(NAMES, 1 / 3)))
    assert not close(found, dense(adapters, {}))
    assert float(balance_loss(route.chosen.values(), 3)) == pytest.approx(3 * math.log(3), abs=1e-5)
    assert {len(chosen) for chosen in route.chosen.values()} == {4}


@pytest.mark.parametrize("key", NAMES)
def test_one_hot_gates_and_masks_of_all_others_are_one_lora_alone(key: str) -> None:
    """Gold tests 3 and 4: the base with LoRA i alone, at weight 1."""
    unet, adapters, live, gates = make()
    expected = dense(adapters, {key: 1.0})
    masked = Route(randomise(gates), range(2), masked=tuple(name for name in NAMES if name != key))
    assert close(run(unet, live, [masked]), expected)
    one_hot(gates, NAMES.index(key))
    assert close(run(unet, live, [Route(gates, range(2))]), expected)


def test_the_base_expert_is_the_base() -> None:
    unet, adapters, live, gates = make(base_expert=True)
    one_hot(gates, 3)
    assert close(run(unet, live, [Route(gates, range(2))]), dense(adapters, {}))


def test_samples_choose_for_themselves() -> None:
    """Neither its neighbours nor its place in the batch changes what a sample's gates choose."""
    unet, _, live, gates = make(granularity="layer")
    route = Route(randomise(gates), [0, 1])
    whole = run(unet, live, [route])
    chosen = dict(route.chosen)
    alone = Route(gates, [0])
    for sample in range(4):
        found = run(unet, live, [alone], rows=1, inputs=rows_of(INPUTS, [sample]))
        assert close(found[0], whole[sample])
        for site, given in chosen.items():
            torch.testing.assert_close(alone.chosen[site][0], given[sample], rtol=0, atol=1e-5)
    spread = torch.stack([given.amax(0) - given.amin(0) for given in chosen.values()])
    assert float(spread.max()) > 0.01, "all samples alike would tell nothing"


def test_the_course_of_a_denoising() -> None:
    """What was chosen at every step, by hand from one pass after another."""
    unet, _, live, gates = make()
    route = Route(randomise(gates), [1])
    live.set_rows(live.pool.row_weights(ones(2)), [route])
    expected = []
    for step in range(3):
        with torch.no_grad(), live:
            unet(**noisy(4, step, side=SIDE // 2))
        expected.append(torch.stack([chosen.clone() for chosen in route.chosen.values()]))
    made = course([route])
    assert made.sites == tuple(site.name for site in gates.sites)
    assert torch.equal(made.choices, torch.stack(expected))
    assert made.choices.shape == (3, len(gates.sites), 2, 3)
    assert torch.equal(trace([route]).choices, expected[-1])
    torch.testing.assert_close(made.by_gate, sum(expected[1:], expected[0]).mean(1) / 3)
    torch.testing.assert_close(made.by_step, torch.stack([given.mean((0, 1)) for given in expected]))
    assert torch.equal(made.of(slice(1, None)).choices, torch.stack(expected)[:, :, 1:])
    assert not torch.equal(expected[0], expected[1])
    live.set_rows(live.pool.row_weights(ones(2)), [route])
    with pytest.raises(AdapterError, match="this gate has chosen nothing yet"):
        course([route])


def test_a_batch_of_no_whole_number_of_rows_is_refused() -> None:
    unet, _, live, gates = make()
    with pytest.raises(AdapterError, match="got 4 samples for 3 rows of weights"):
        run(unet, live, [Route(gates, [0])], rows=3)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize("reads", ["outputs", "hidden"])
def test_flattening_gates_know_their_places(reads: str, tmp_path: Any) -> None:
    """Gold test 7 with L of each gate: 8 × 8 pixels outside, 4 × 4 inside, by hand; kept in the checkpoint; refused elsewhere."""
    unet, _, live, gates = make(reads=reads, pooling="flatten", normalise="l2")
    by_name = {site.name: gate for site, gate in gates.items()}
    pixels = {"conv_in": 64, "down_blocks.0.resnets.0": 64, "down_blocks.1.resnets.0": 16, "mid_block.resnets.0": 16}
    outputs = {"conv_in": 8, "down_blocks.0.resnets.0": 8, "down_blocks.1.resnets.0": 12, "mid_block.resnets.0": 12}
    inputs = {"conv_in": 4, "down_blocks.0.resnets.0": 8, "down_blocks.1.resnets.0": 8, "mid_block.resnets.0": 12}
    for name, count in pixels.items():
        wanted = count * (3 * outputs[name] if reads == "outputs" else inputs[name])
        assert tuple(by_name[name].weight.shape) == (wanted, 3), name
    sampler = by_name["down_blocks.0.downsamplers.0"].weight
    assert len(sampler) == (3 * 16 * 8 if reads == "outputs" else 64 * 8), "its output is a quarter of its input"
    randomise(gates)
    experts = [Expert(name=name, fingerprint=f"{number}" * 64) for number, name in enumerate(NAMES)]
    recipe = GateRecipe.check({"sources": list(NAMES), "data": ["d"], "gates": gates.config.model_dump()}, "test")
    folder = tmp_path / "gates"
    save_gates(folder, gates, Base(id="unet", fingerprint="f" * 64), experts, recipe, {"step": torch.tensor(1)})
    again = load_gates(folder, NAMES)
    assert [site.places for site in again.sites] == [site.places for site in gates.sites]
    assert torch.equal(run(unet, live, [Route(again, [0])]), run(unet, live, [Route(gates, [0])]))
    with pytest.raises(AdapterError, match=r"gets \d+ tokens, but the gate was made for"):
        run(unet, live, [Route(again, [0])], inputs=noisy(4, side=SIDE))


def test_the_mean_patch_is_the_mean_of_patches() -> None:
    """Also at borders, with strides and dilation: of the patches that torch unfolds."""
    x = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    for layer in (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, (3, 1), stride=(1, 3), dilation=(2, 1), padding=(2, 0)),
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    ):
        weight = layer.weight.detach().flatten(1)
        with torch.no_grad():
            wanted = (layer(x) - layer.bias[:, None, None]).flatten(2).mean(2)
        torch.testing.assert_close(mean_patch(x, layer)[:, 0] @ weight.T, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close((patches(x, layer) @ weight.T).mean(1), wanted, rtol=1e-5, atol=1e-6)


def test_sites_of_parts_that_a_model_only_holds() -> None:
    """Names as a pipeline's parts have; what lies right in a part is gated alone."""
    unet = small_unet()
    holder = nn.ModuleDict({"unet": unet})
    with torch.no_grad():
        found = find_sites(
            holder, ["unet.conv_out", "unet.conv_in", "unet.mid_block.resnets.0.conv1", "unet.time_embedding.linear_1"], "block",
            lambda: unet(**rows_of(INPUTS, [0])),
        )  # fmt: skip
    time, first, middle, last = ("time_embedding.linear_1", "conv_in", "mid_block.resnets.0.conv1", "conv_out")
    assert found == tuple(
        Site(f"unet.{name}", (f"unet.{module}",), (f"unet.{module}",))
        for name, module in (
            ("time_embedding", time),
            ("conv_in", first),
            ("mid_block.resnets.0", middle),
            ("conv_out", last),
        )
    )
    assert [site.places for site in found] == [(1, 1), (64, 64), (16, 16), (64, 64)]


QUICK = TrainConfig(steps=6, batch=4, lr=0.02, warmup=0, calibration=4, alpha=0.0)


def trainer(config: TrainConfig = QUICK, **kind: Any) -> Trainer:
    """Gates that learn to predict as the UNet with the first LoRA does."""
    unet, adapters, live, gates = make(**kind)
    teacher = copy.deepcopy(unet)
    for module in adapters["first"].modules:
        parameter: Any = teacher.get_submodule(module).weight
        parameter += adapters["first"][module].delta().view_as(parameter)

    def batch(step: int, count: int) -> Batch:
        inputs = noisy(count, step + 10, side=SIDE // 2)
        with torch.no_grad():
            return Batch(inputs, None, teacher(**inputs).sample)

    return Trainer(unet, live.pool, gates, batch, lambda out, target: denoising_loss(out.sample, target), config)


def test_training_lowers_the_denoising_loss_and_changes_gates_only() -> None:
    """Gold test 5 on a UNet."""
    one = trainer()
    model, pool = one.gated.model, one.gated.live.pool
    before = {key: value.clone() for key, value in model.state_dict().items()}
    units = {module: [half.clone() for half in halves] for module, halves in pool.modules.items()}
    probe = one.batch_of(99, 4)
    with torch.no_grad():
        start = float(one.gated(probe)[0])
    assert len(list(one.run())) == 6
    with torch.no_grad():
        loss, route = one.gated(probe)
    assert float(loss) < 0.9 * start
    shares = torch.stack([chosen.mean(0) for chosen in route.chosen.values()]).mean(0)
    assert int(shares.argmax()) == 0, "the first LoRA is what the targets were made with"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(a, b) for m, halves in pool.modules.items() for a, b in zip(halves, units[m], strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(p.grad is not None for p in one.gates.parameters())


def test_a_training_goes_on_exactly_where_it_was() -> None:
    """In parts of a batch too, whose prompts are None."""
    whole, first, rest = trainer(), trainer(), trainer()
    list(whole.run())
    running = first.run()
    for _ in range(3):
        next(running)
    rest.resume(first.state())
    list(rest.run())
    for key, value in whole.gates.state_dict().items():
        assert torch.equal(value, rest.gates.state_dict()[key])
    some = whole.batch_of(50, 4)
    grads = []
    for micro in (4, 1):
        whole.micro = micro
        whole.gradients(some, some)
        grads.append([parameter.grad.clone() for parameter in whole.gates.parameters()])  # type: ignore[union-attr]
    for at_once, in_parts in zip(*grads, strict=True):
        torch.testing.assert_close(at_once, in_parts, rtol=1e-3, atol=1e-6)
