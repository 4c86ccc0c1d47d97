"""The live layer beside convolutions, and in batches that hold their rows several times, against dense weights in fp64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lego import Adapter, AdapterError, Factors
from mole.live import Live, LivePool, Weighting, attach, device_of

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]
ROWS = [
    Weighting(),
    Weighting((("one", 1.0), ("two", -0.5))),
    Weighting((("two", 2.0),), frozenset({("two", "conv", 1)})),
]
IN, OUT, SIDE = 6, 5, 8


class Net(nn.Module):
    """A convolution and, beside it, what is added for the time step: a linear of inputs (samples, features)."""

    def __init__(self, **geometry: Any) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(IN, OUT, **geometry), nn.Linear(3, OUT)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        return self.conv(sample) + self.time(time)[:, :, None, None]


def net(**geometry: Any) -> Net:
    torch.manual_seed(0)
    return Net(**geometry).requires_grad_(False)


def adapter(model: Net, name: str, seed: int, rank: int) -> Adapter:
    draw, factors = torch.Generator().manual_seed(seed), {}
    for module, layer in (("conv", model.conv), ("time", model.time)):
        d_in = layer.weight[0].numel()
        down, up = torch.randn(rank, d_in, generator=draw), torch.randn(OUT, rank, generator=draw)
        factors[module] = Factors(down / d_in**0.5, up, 0.7, kernel=tuple(layer.weight.shape[2:]))
    return Adapter.from_factors(name, factors)


def adapters(model: Net) -> dict[str, Adapter]:
    return {"one": adapter(model, "one", 1, 3), "two": adapter(model, "two", 2, 2)}


def pool_for(model: Net, **given: Any) -> LivePool:
    return LivePool(adapters(model), "cpu", given.get("dtype", torch.float32))


def batch(samples: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(samples, IN, SIDE, SIDE, generator=draw), torch.randn(samples, 3, generator=draw)


def dense(model: Net, weighting: Weighting, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """One row's output with each unit's rank-one update added to the weights, in fp64."""
    model, sources = copy.deepcopy(model).double(), adapters(model)
    for key, weight in weighting.adapters:
        for module, layer in (("conv", model.conv), ("time", model.time)):
            f = sources[key][module]
            for unit in range(f.rank):
                if (key, module, unit) not in weighting.muted:
                    update = torch.outer(f.up[:, unit].double(), f.down[unit].double())
                    layer.weight += weight * f.scale * update.view_as(layer.weight)
    return model(*(x.double() for x in inputs))


def named(geometry: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in geometry.items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=named)
def test_a_convolution_of_any_geometry(geometry: dict[str, Any], layout: torch.memory_format) -> None:
    """Each row its own variant, the batch holding all rows twice."""
    model = net(**geometry)
    pool, inputs = pool_for(model), batch(6)
    with torch.no_grad(), attach(model.to(memory_format=layout), pool) as live:
        live.set_rows(pool.row_weights(ROWS))
        found = model(inputs[0].to(memory_format=layout), inputs[1])
    assert found.is_contiguous(memory_format=layout)
    for row in range(6):
        wanted = dense(model, ROWS[row % 3], (inputs[0][row : row + 1], inputs[1][row : row + 1]))
        torch.testing.assert_close(found[row].double(), wanted[0], rtol=1e-4, atol=1e-5)
    assert (found[4] - found[1]).abs().max() > 0.1


def test_equal_rows_are_folded() -> None:
    model = net(kernel_size=3, padding=1)
    pool, inputs = pool_for(model), batch(3)
    with torch.no_grad(), attach(model, pool) as live:
        live.set_rows(pool.row_weights(ROWS[2:] * 3))
        found = model(*inputs)
        assert all(branch.weights is None for branch in live._branches.values())
        assert live._branches["conv"].down.shape[0] == 1, "of the second's two units one is muted"
    torch.testing.assert_close(found.double(), dense(model, ROWS[2], inputs), rtol=1e-4, atol=1e-5)


def test_gradients_reach_weights_and_inputs() -> None:
    """Of the sum of squares, against the same with dense updates under autograd."""
    model = net(kernel_size=3, stride=2, padding=1).double()
    pool, (sample, time) = pool_for(model, dtype=torch.float64), tuple(x.double() for x in batch(4))
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x = sample.clone().requires_grad_()
    with attach(model, pool) as live:
        live.set_rows({"conv": weights})
        model(x, time).square().sum().backward()
    plain, y, total = weights.detach().clone().requires_grad_(), sample.clone().requires_grad_(), 0.0
    down, up = pool.modules["conv"]
    for row in range(4):
        delta = (up.T * plain[row % 2]) @ down.T
        weight = model.conv.weight + delta.view_as(model.conv.weight)
        out = torch.conv2d(y[row : row + 1], weight, model.conv.bias, 2, 1) + model.time(time[row])[:, None, None]
        total = total + out.square().sum()
    total.backward()
    torch.testing.assert_close(weights.grad, plain.grad)
    torch.testing.assert_close(x.grad, y.grad)


def test_in_half_precision() -> None:
    model = net(kernel_size=3, padding=1)
    wanted = [dense(model, row, batch(3)) for row in ROWS]
    model.to(torch.bfloat16)
    pool = pool_for(net(kernel_size=3, padding=1), dtype=torch.bfloat16)
    with torch.no_grad(), attach(model, pool) as live:
        live.set_rows(pool.row_weights(ROWS))
        found = model(*(x.bfloat16() for x in batch(3)))
    assert found.dtype == torch.bfloat16
    for row in range(3):
        assert (found[row] - wanted[row][row]).norm() < 0.02 * wanted[row][row].norm()


def test_a_matrix_fits_beside_a_convolution_of_one_and_the_other_way() -> None:
    """Files know ``proj_in`` as a matrix and as a convolution of 1 × 1, and so do models."""
    for kernel, layer in (((), nn.Conv2d(IN, OUT, 1)), ((1, 1), nn.Linear(IN, OUT))):
        factors = Factors(torch.randn(2, IN), torch.randn(OUT, 2), kernel=kernel)
        pool = LivePool({"a": Adapter.from_factors("a", {"m": factors})}, "cpu", torch.float32)
        model = nn.ModuleDict({"m": layer}).requires_grad_(False)
        x = torch.randn(3, IN, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(3, 4, IN)
        with torch.no_grad(), attach(model, pool) as live:
            bare = layer(x)
            live.set_rows(pool.row_weights([Weighting((("a", 1.0),))]))
            change = layer(x) - bare
        if isinstance(layer, nn.Conv2d):
            x, change = x.movedim(1, -1), change.movedim(1, -1)
        torch.testing.assert_close(change, x @ factors.delta().T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "kernel", "d_in", "told"),
    [
        (nn.Conv2d(4, 4, 3), (), 4, "bad: module m is 4 × 4 in the adapter but 4 × 4 × 3 × 3 in the model"),
        (nn.Conv2d(4, 4, 1), (3, 3), 36, "is 4 × 4 × 3 × 3 in the adapter but 4 × 4 in the model"),
        (nn.Conv2d(4, 4, (3, 1)), (1, 3), 12, "is 4 × 4 × 1 × 3 in the adapter but 4 × 4 × 3 × 1 in the model"),
        (nn.Conv2d(8, 4, 3), (3, 3), 36, "is 4 × 4 × 3 × 3 in the adapter but 4 × 8 × 3 × 3 in the model"),
        (nn.Linear(36, 4), (3, 3), 36, "is 4 × 4 × 3 × 3 in the adapter but 4 × 36 in the model"),
        (nn.Conv2d(4, 4, 3, groups=2), (3, 3), 18, "is a convolution in 2 groups in the model"),
        (nn.Conv1d(4, 4, 3), (3,), 12, "is a Conv1d in the model, neither a linear layer nor a convolution"),
    ],
)
def test_what_does_not_fit_is_refused(layer: nn.Module, kernel: tuple[int, ...], d_in: int, told: str) -> None:
    source = Adapter.from_factors("bad", {"m": Factors(torch.ones(1, d_in), torch.ones(4, 1), kernel=kernel)})
    with pytest.raises(AdapterError, match=told):
        attach(nn.ModuleDict({"m": layer}), LivePool({"bad": source}, "cpu", torch.float32))


def test_kernels_that_differ_between_adapters_are_refused() -> None:
    sources = {
        name: Adapter.from_factors(name, {"m": Factors(torch.ones(1, 36), torch.ones(4, 1), kernel=kernel)})
        for name, kernel in (("one", (3, 3)), ("two", ()))
    }
    with pytest.raises(AdapterError, match="two: module m is 4 × 36 here but 4 × 4 × 3 × 3 in one"):
        LivePool(sources, "cpu", torch.float32)


@pytest.mark.parametrize("samples", [4, 5, 2])
def test_batches_of_no_whole_number_of_rows_are_refused(samples: int) -> None:
    model = net(kernel_size=3)
    pool = pool_for(model)
    with torch.no_grad(), attach(model, pool) as live:
        live.set_rows(pool.row_weights(ROWS))
        with pytest.raises(AdapterError, match=rf"conv: got an input of shape \({samples}, 8, 8\) for 3 rows"):
            model(*batch(samples))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_samples_that_are_not_the_pass_s_are_refused() -> None:
    """A layer that gets other samples than its model, as when tokens were flattened in an order of their own."""
    model = net(kernel_size=3)
    pool, (sample, time) = pool_for(model), batch(3)
    with torch.no_grad(), attach(model, pool) as live:
        live.set_rows(pool.row_weights(ROWS))
        with pytest.raises(AdapterError, match=r"time: got an input of shape \(6,\) for 3 rows"):
            model(sample, time.repeat(2, 1))


class Holder(nn.Module):
    """Only names its parts, as a pipeline's do: they run one by one, on batches of their own."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_parts_of_a_model_that_does_not_run_itself() -> None:
    """A batch of six in one, of three in the other, whose part lies a level deeper."""
    one, two = net(kernel_size=3, padding=1), net(kernel_size=1)
    model = Holder(unet=one, text=Holder(inner=two))
    factors = {f"unet.{m}": adapter(one, "a", 1, 2)[m] for m in ("conv", "time")}
    factors |= {f"text.inner.{m}": adapter(two, "a", 2, 2)[m] for m in ("conv", "time")}
    pool = LivePool({"a": Adapter.from_factors("a", factors)}, "cpu", torch.float32)
    rows = [Weighting(), Weighting((("a", 1.0),)), Weighting((("a", -0.5),))]
    with torch.no_grad(), attach(model, pool) as live:
        live.set_rows(pool.row_weights(rows))
        for part, name, samples in ((one, "unet", 6), (two, "text.inner", 3), (one, "unet", 3)):
            inputs = batch(samples)
            found = part(sample=inputs[0], time=inputs[1])
            assert live.samples == samples
            for row in range(samples):
                plain = copy.deepcopy(part)
                for module in ("conv", "time"):
                    weight = dict(rows[row % 3].adapters).get("a", 0.0)
                    update = factors[f"{name}.{module}"].delta()
                    layer: Any = getattr(plain, module)
                    layer.weight += weight * update.view_as(layer.weight)
                for hooked in plain.modules():
                    hooked._forward_hooks.clear()
                    hooked._forward_pre_hooks.clear()
                    hooked._forward_pre_hooks_with_kwargs.clear()
                wanted = plain(inputs[0][row : row + 1], inputs[1][row : row + 1])
                torch.testing.assert_close(found[row], wanted[0], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_part_that_waits_elsewhere_says_where_it_computes() -> None:
    """diffusers' model offload moves whole parts; their layers cannot tell."""
    model = Holder(unet=net(kernel_size=3))
    assert device_of(model, "unet.conv", torch.device("cpu")) == torch.device("cpu")
    model.unet._hf_hook = SimpleNamespace(execution_device="meta")  # type: ignore[assignment]
    assert device_of(model, "unet.conv", torch.device("cpu")) == torch.device("meta")
    model.unet.conv._hf_hook = SimpleNamespace(execution_device="cuda:1")  # type: ignore[union-attr,assignment]
    assert device_of(model, "unet.conv", torch.device("cpu")) == torch.device("cuda:1")


def test_units_without_weight_take_no_part() -> None:
    model = net(kernel_size=3)
    live = Live(model, pool_for(model))
    live.set_rows(live.pool.row_weights([Weighting(), Weighting((("two", 1.0),))]))
    assert live._branches["conv"].down.shape == (2, IN, 3, 3)
    live.set_rows(live.pool.row_weights([Weighting()]))
    assert live.active == ()
