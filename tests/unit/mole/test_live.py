"""The live layer against plain matrices: one row, one unit at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lego import Adapter, AdapterError, Factors
from lego.unitset import UnitSet
from mole.live import LivePool, Weighting, attach

D_IN, D_OUT = 6, 5
GIVEN = {"first": (3, 0.5, 1), "second": (2, 2.0, 2)}


class Net(nn.Module):
    """Two linears one after the other, and one that no adapter touches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.free = nn.Linear(D_IN, D_OUT), nn.Linear(D_OUT, D_OUT, bias=False), nn.Linear(D_OUT, 3)
        self.norm = nn.LayerNorm(D_OUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.norm(self.two(torch.tanh(self.one(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def adapter(name: str, rank: int, scale: float, seed: int, shape: tuple[int, int] = (D_IN, D_OUT)) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"one": shape, "two": (D_OUT, D_OUT)} if name != "second" else {"one": shape}
    factors = {
        module: Factors(torch.randn(rank, i, generator=generator), torch.randn(o, rank, generator=generator), scale)
        for module, (i, o) in sizes.items()
    }
    return Adapter.from_factors(name, factors)


def pool(dtype: torch.dtype = torch.float32) -> LivePool:
    return LivePool({name: adapter(name, *given) for name, given in GIVEN.items()}, "cpu", dtype)


def expected(model: Net, x: np.ndarray, weighting: Weighting) -> np.ndarray:
    """The net's output for one row in float64, adding each unit's rank-one update to the matrices."""
    weights = dict(weighting.adapters)
    matrices = {module: getattr(model, module).weight.double().numpy().copy() for module in ("one", "two")}
    for name, given in GIVEN.items():
        source = adapter(name, *given)
        for module in source.modules:
            factors = source[module]
            for unit in range(factors.rank):
                if (name, module, unit) not in weighting.muted:
                    b, a = factors.up[:, unit].double().numpy(), factors.down[unit].double().numpy()
                    times = np.prod([factor for units, factor in weighting.scaled if (name, module, unit) in units])
                    matrices[module] += times * weights.get(name, 0.0) * factors.scale * np.outer(b, a)
    hidden = np.tanh(x @ matrices["one"].T + model.one.bias.double().numpy()) @ matrices["two"].T
    normed = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + model.norm.eps)
    return normed @ model.free.weight.double().numpy().T + model.free.bias.double().numpy()


VARIANTS = [
    Weighting(),
    Weighting((("first", 1.0),)),
    Weighting((("second", 1.0),)),
    Weighting((("first", 0.5), ("second", -2.0))),
    Weighting(
        (("first", 1.0), ("second", 1.0)), frozenset({("first", "one", 0), ("first", "two", 2), ("second", "one", 1)})
    ),
    Weighting(
        (("first", 0.5), ("second", 1.0)),
        frozenset({("first", "one", 0)}),
        scaled=(
            (UnitSet.of([("first", "one", 0), ("first", "one", 1), ("second", "one", 0)]), 2.5),
            (UnitSet.of([("first", "one", 1), ("first", "two", 2)]), -0.5),
        ),
    ),
]


@pytest.mark.parametrize(
    "chosen", [VARIANTS, VARIANTS[1:2] * 2, VARIANTS[3:4] * 3, VARIANTS[4:5] * 2, VARIANTS[5:] * 2, VARIANTS[:2]]
)
def test_every_row_computes_its_own_variant(chosen: list[Weighting]) -> None:
    model, units = net(), pool()
    x = torch.randn(len(chosen), 4, D_IN)
    with torch.no_grad(), attach(model, units) as live:
        live.set_rows(units.row_weights(chosen))
        found = model(x)
    for row, variant in enumerate(chosen):
        wanted = expected(model, x[row].double().numpy(), variant)
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=2e-4, atol=2e-5)


def test_rows_of_weight_zero_are_bit_identical_to_the_base() -> None:
    model, units = net(), pool()
    x = torch.randn(3, 4, D_IN)
    with torch.no_grad():
        bare = model(x)
        with attach(model, units) as live:
            live.set_rows(units.row_weights([Weighting(), VARIANTS[3], Weighting()]))
            found = model(x)
    assert torch.equal(found[0], bare[0])
    assert torch.equal(found[2], bare[2])
    assert not torch.allclose(found[1], bare[1])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_after_the_block(fails: bool) -> None:
    model, units, x = net(), pool(), torch.randn(2, 4, D_IN)
    before, attributes, bare = state(model), set(model.one.__dict__), model(x)
    try:
        with attach(model, units) as live:
            live.set_rows(units.row_weights(VARIANTS[1:3]))
            with torch.no_grad():
                model(x)
            assert hooks(model) > 0
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert hooks(model) == 0
    assert state(model) == before
    assert set(model.one.__dict__) == attributes
    assert torch.equal(model(x), bare)


def test_only_modules_with_active_units_get_a_hook() -> None:
    model, units = net(), pool()
    with attach(model, units) as live:
        live.set_rows(units.row_weights([VARIANTS[2], Weighting()]))  # the second adapter has units in `one` only
        assert live.active == ("one",)
        assert (len(model.one._forward_hooks), len(model.two._forward_hooks), len(model.free._forward_hooks)) == (
            1,
            0,
            0,
        )
        live.set_rows(units.row_weights([Weighting(), Weighting()]))
        assert live.active == ()
        assert len(model.one._forward_hooks) == 0


def test_weights_can_change_while_attached() -> None:
    model, units, x = net(), pool(), torch.randn(1, 2, D_IN)
    with torch.no_grad(), attach(model, units) as live:
        live.set_rows(units.row_weights(VARIANTS[1:2]))
        for module, weights in units.row_weights(VARIANTS[2:3]).items():
            live.set_module(module, weights)
        found = model(x)
    np.testing.assert_allclose(
        found[0].numpy(), expected(model, x[0].double().numpy(), VARIANTS[2]), rtol=2e-4, atol=2e-5
    )


def test_keeping_rows_keeps_their_variants() -> None:
    model, units, x = net(), pool(), torch.randn(4, 2, D_IN)
    with torch.no_grad(), attach(model, units) as live:
        live.set_rows(units.row_weights(VARIANTS[:4]))
        every = model(x)
        live.keep_rows(torch.tensor([3, 1]))
        torch.testing.assert_close(model(x[[3, 1]]), every[[3, 1]], rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_weights_only() -> None:
    model, units, x = net(), pool(), torch.randn(2, 3, D_IN)
    weights = {m: w.clone().requires_grad_() for m, w in units.row_weights([VARIANTS[3], Weighting()]).items()}
    with attach(model, units) as live:
        live.set_rows(weights)
        model(x).square().sum().backward()

    def loss(values: torch.Tensor) -> float:
        with torch.no_grad(), attach(model, units) as live:
            live.set_rows({"one": values, "two": weights["two"].detach()})
            return float(model(x).square().sum())

    gradient = weights["one"].grad
    assert gradient is not None
    for row, unit in ((0, 0), (0, 4), (1, 2)):  # the second row has weight 0 and a gradient all the same
        step = torch.zeros_like(gradient)
        step[row, unit] = 1e-2
        numeric = (loss(weights["one"].detach() + step) - loss(weights["one"].detach() - step)) / 2e-2
        assert float(gradient[row, unit]) == pytest.approx(numeric, rel=0.03, abs=2e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_also_pass_through_rows_of_one_weight() -> None:
    model, units = net(), pool()
    x = torch.randn(2, 3, D_IN, requires_grad=True)
    with attach(model, units) as live:
        live.set_rows(units.row_weights(VARIANTS[1:2] * 2))
        model(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_the_scale_is_folded_in_before_the_cast() -> None:
    factors = Factors(torch.ones(1, D_IN), torch.full((D_OUT, 1), 3e-8), 1e4)  # 3e-8 is 0 in fp16
    units = LivePool({"tiny": Adapter.from_factors("tiny", {"one": factors})}, "cpu", torch.float16)
    assert units.modules["one"][1].dtype == torch.float16
    torch.testing.assert_close(units.modules["one"][1].float(), torch.full((1, D_OUT), 3e-4), rtol=1e-3, atol=0)


def test_a_model_in_half_precision_keeps_its_type() -> None:
    model, units = net().to(torch.bfloat16), pool(torch.bfloat16)
    x = torch.randn(2, 4, D_IN).to(torch.bfloat16)
    with torch.no_grad(), attach(model, units) as live:
        live.set_rows(units.row_weights(VARIANTS[1:3]))
        assert model(x).dtype == torch.bfloat16


class Flattening(nn.Module):
    """Flattens rows and tokens before its linear, as OPT does."""

    def __init__(self, name: str = "one") -> None:
        super().__init__()
        self.add_module(name, nn.Linear(D_IN, D_OUT))
        self.name = name

    def forward(self, inputs_embeds: torch.Tensor, keep: int | None = None) -> torch.Tensor:
        flat = inputs_embeds.reshape(-1, D_IN)[:keep]
        return getattr(self, self.name)(flat)


def test_flattened_rows_find_their_weights() -> None:
    torch.manual_seed(0)
    model, units, x = (
        Flattening(),
        LivePool({"second": adapter("second", *GIVEN["second"])}, "cpu", torch.float32),
        torch.randn(2, 3, D_IN),
    )
    delta = adapter("second", *GIVEN["second"])["one"].delta()
    with torch.no_grad(), attach(model, units) as live:
        bare = x @ model.one.weight.T + model.one.bias
        live.set_rows(units.row_weights([Weighting((("second", 1.0),)), Weighting()]))
        for found in (model(x), model(inputs_embeds=x)):
            wanted = torch.stack([bare[0] + x[0] @ delta.T, bare[1]]).view(6, D_OUT)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        with pytest.raises(AdapterError, match=r"one: got an input of shape \(5,\) for 2 rows"):
            model(x, keep=5)
    assert hooks(model) == 0


def test_what_does_not_fit_is_refused_with_both_shapes() -> None:
    model = net()
    wrong = LivePool({"k": adapter("wide", 2, 1.0, 0, shape=(7, D_OUT))}, "cpu", torch.float32)
    with pytest.raises(AdapterError, match=r"wide: module one is 5 × 7 in the adapter but 5 × 6 in the model"):
        attach(model, wrong)
    foreign = LivePool(
        {"k": Adapter.from_factors("far", {"layers.3.q": Factors(torch.ones(1, 2), torch.ones(3, 1))})},
        "cpu",
        torch.float32,
    )
    with pytest.raises(AdapterError, match=r"far: module layers\.3\.q \(3 × 2\) is not in the model"):
        attach(model, foreign)
    norm = LivePool(
        {"k": Adapter.from_factors("odd", {"norm": Factors(torch.ones(1, 5), torch.ones(5, 1))})}, "cpu", torch.float32
    )
    with pytest.raises(AdapterError, match=r"odd: module norm .* is a LayerNorm"):
        attach(model, norm)
    both = {"a": adapter("first", *GIVEN["first"]), "b": adapter("wide", 2, 1.0, 0, shape=(7, D_OUT))}
    with pytest.raises(AdapterError, match=r"wide: module one is 5 × 7 here but 5 × 6 in first"):
        LivePool(both, "cpu", torch.float32)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("weighting", "told"),
    [
        (Weighting((("third", 1.0),)), "third: is not in the pool"),
        (Weighting((("first", 1.0), ("first", 2.0))), "names the same adapter twice"),
        (Weighting((), frozenset({("first", "one", 3)})), "first: has no unit 3 in module one"),
        (Weighting((), frozenset({("first", "one", -1)})), "first: has no unit -1"),
        (Weighting((), frozenset({("second", "two", 0)})), "second: has no unit 0 in module two"),
    ],
)
def test_weightings_that_name_nothing_are_refused(weighting: Weighting, told: str) -> None:
    with pytest.raises(AdapterError, match=told):
        pool().row_weights([weighting])


def test_wrong_numbers_of_weights_are_refused() -> None:
    live = attach(net(), pool())
    with pytest.raises(AdapterError, match=r"one: weights have shape \(1, 4\) for 5 units"):
        live.set_module("one", torch.ones(1, 4))
    with pytest.raises(AdapterError, match="free: is not a module"):
        live.set_module("free", torch.ones(1, 4))


def test_the_pool_knows_where_units_lie() -> None:
    units = pool()
    assert (units.units("first", "one"), units.units("second", "one"), units.units("second", "two")) == (
        slice(0, 3),
        slice(3, 5),
        slice(0, 0),
    )
    assert units.owners("two") == ["first"]
    assert units.nbytes == 4 * (5 * (D_IN + D_OUT) + 3 * (D_OUT + D_OUT))
