"""Training gates against the equations' own gradients, and what happens when it is stopped, continued, split or broken."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lego import AdapterError
from mole.batch import Batch
from mole.gate import GateConfig, Gates
from mole.losses import IGNORED, answer_loss, balance_of
from mole.pool import LivePool
from mole.sites import find_sites
from mole.train import Progress, TrainConfig, Trainer
from tests.naive_gates import Mixture, Naive, adapter, padded, pool_for, randomise, some_adapters
from tests.processes import SINGLE, UNEVEN, trained, two_processes
from tests.tiny import tiny_model

Texts = Sequence[tuple[list[int], list[int]]]
KINDS = [
    GateConfig(),
    GateConfig(granularity="layer", reads="hidden", normalise="l2"),
    GateConfig(granularity="network", normalise="l2", base_expert=True),
    GateConfig(granularity="module", reads="hidden", base_expert=True),
]
QUICK = TrainConfig(steps=4, batch=4, lr=0.01, warmup=2, calibration=6)


def texts(step: int, count: int, seed: int = 0) -> Texts:
    """Prompts and answers of different lengths, from the seed and the step's number alone."""
    draw = Random(f"{seed} {step}")
    return [
        ([draw.randrange(60) for _ in range(draw.randint(1, 6))], [draw.randrange(60) for _ in range(draw.randint(1, 3))])
        for _ in range(count)
    ]  # fmt: skip


def batch(some: Texts) -> Batch:
    inputs, prompt = padded([(prompt, answer[:-1]) for prompt, answer in some])
    labels = torch.full((len(some), max(len(answer) for _, answer in some)), IGNORED)
    for row, (_, answer) in enumerate(some):
        labels[row, -len(answer) :] = torch.tensor(answer)
    return Batch({**inputs, "use_cache": False}, prompt, labels)


def loss(out: Any, labels: Tensor) -> Tensor:
    return answer_loss(out.logits[:, -labels.shape[1] :], labels)


def trainer(config: TrainConfig = QUICK, kind: GateConfig = KINDS[0], seed: int = 0, **more: Any) -> Trainer:
    """A training on random texts."""
    model, pool = tiny_model(), pool_for(some_adapters())
    sites = find_sites(model, pool.modules, kind.granularity, lambda: model(torch.tensor([[1, 2]])))
    gates = Gates.fresh(kind, tuple(pool.keys), sites, pool)
    given = {"batch_of": lambda step, count: batch(texts(step, count, seed)), "loss": loss, **more}
    return Trainer(model, pool, gates, config=config, **given)


def numbers(of: Trainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in of.gates.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def gradients(of: Trainer, some: Texts) -> dict[str, Tensor]:
    of.gradients(batch(some), batch(some))
    return {name: p.grad.clone() for name, p in of.gates.named_parameters() if p.grad is not None}


def naive_gradients(of: Trainer, some: Texts, alpha: float) -> tuple[float, dict[str, Tensor]]:
    """L_D + α L_balance, sample by sample, and its gradient by autograd through the dense definition."""
    adapters = some_adapters()
    mixture = Mixture(adapters, dict.fromkeys(adapters, 1.0), of.gates)
    naive, rows, chosen = Naive(of.gated.model, mixture), [], []
    for prompt, answer in some:
        logits = naive(prompt + answer[:-1], len(prompt))[-len(answer) :]
        each = [-torch.log_softmax(row, -1)[token] for row, token in zip(logits, answer, strict=True)]
        rows.append(sum(each[1:], each[0]) / len(each))
        chosen.append(dict(mixture.chosen))
    q = [sum(c[site][i] for c in chosen for site in c) / sum(len(c) for c in chosen) for i in range(3)]
    total = sum(rows[1:], rows[0]) / len(rows) - alpha * sum(torch.log(share / sum(q)) for share in q)
    total.backward()
    found = {}
    for number, site in enumerate(of.gates.sites):
        of_gate = mixture.numbers[site.name]
        for name in ("weight", "log_temperature"):
            found[f"gates.{number}.{name}"] = getattr(of_gate, name).grad
    return float(total.detach()), found


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.granularity}-{kind.reads}-{kind.normalise}")
def test_gradients_are_those_of_the_equations(kind: GateConfig, alpha: float) -> None:
    one = trainer(replace_in(QUICK, alpha=alpha), kind)
    randomise(one.gates, 4)
    some = texts(7, 3)
    sums = one.gradients(batch(some), batch(some))
    total, expected = naive_gradients(one, some, alpha)
    balance = balance_of(sums[2:].view(len(one.gates.sites), -1).mean(dim=0), 3)
    assert float(sums[0] + alpha * balance) == pytest.approx(total, rel=1e-5)
    found = {name: p.grad for name, p in one.gates.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert (found[name].double() - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2


def replace_in(config: TrainConfig, **fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({**config.model_dump(), **fields})


def test_only_gates_learn() -> None:
    """Gold test 5: the base and the LoRAs are bit-identical after training and have no gradient; every e and τ has one."""
    one = trainer()
    model, pool = one.gated.model, one.gated.live.pool
    before = {key: value.clone() for key, value in model.state_dict().items()}
    units = {module: [half.clone() for half in halves] for module, halves in pool.modules.items()}
    first = numbers(one)
    assert len(list(one.run())) == 4
    assert same(model.state_dict(), before)
    for module, halves in pool.modules.items():
        assert all(torch.equal(half, old) for half, old in zip(halves, units[module], strict=True))
        assert not any(half.requires_grad for half in halves)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(p.grad is not None for p in one.gates.parameters())
    assert all(not torch.equal(value, first[key]) for key, value in one.gates.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_update_is_adamw_with_warm_up_and_clipping() -> None:
    """Three steps by hand from the gradients of each (Loshchilov and Hutter, algorithm 2)."""
    config = replace_in(QUICK, steps=3, warmup=2, lr=0.02, weight_decay=0.1, clip=0.05, alpha=0.0)
    one, shadow = trainer(config, KINDS[1]), trainer(config, KINDS[1])
    randomise(one.gates, 2)
    values = {name: p.detach().double().clone() for name, p in one.gates.named_parameters()}
    m, v = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    running = one.run()
    for step in range(3):
        shadow.gates.load_state_dict(one.gates.state_dict())
        found = {name: g.double() for name, g in gradients(shadow, texts(step, config.batch)).items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in found.values()))
        assert norm > config.clip, "else nothing would be clipped"
        next(running)
        lr = config.lr * min(1, (step + 1) / 2)
        for name, p in one.gates.named_parameters():
            g = found[name] * config.clip / norm
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            fast, slow = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            values[name] = values[name] * (1 - lr * 0.1) - lr * fast / (slow.sqrt() + 1e-8)
            assert torch.allclose(p.detach().double(), values[name], rtol=1e-4, atol=3e-5), name


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("micro", [1, 3])
def test_parts_of_a_batch_give_its_gradient(micro: int, alpha: float) -> None:
    """Also that of the balance, which is of the whole batch: each sample alone may trust one LoRA."""
    config = replace_in(QUICK, batch=7, alpha=alpha)
    whole, split = trainer(config), trainer(replace_in(config, micro_batch=micro))
    for one in (whole, split):
        randomise(one.gates, 3)
    expected, found = gradients(whole, texts(0, 7)), gradients(split, texts(0, 7))
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    progress = [next(one.run()) for one in (whole, split)]
    assert progress[1].loss == pytest.approx(progress[0].loss, abs=1e-5)
    assert progress[1].entropy == pytest.approx(progress[0].entropy, abs=1e-5)
    assert progress[1].balance == pytest.approx(progress[0].balance, abs=1e-5)
    assert torch.allclose(progress[1].shares, progress[0].shares, atol=1e-5)


def watch(one: Trainer, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Rows of every pass; more than so many run out of memory halfway through the model."""
    forward, sizes = one.gated.model.lm_head.forward, []

    def limited(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    monkeypatch.setattr(one.gated.model.lm_head, "forward", limited)
    return sizes


@pytest.mark.parametrize(("alpha", "passes"), [(0.0, 14), (0.5, 28)])
def test_memory_that_runs_out_halves_the_parts(monkeypatch: pytest.MonkeyPatch, alpha: float, passes: int) -> None:
    """The balance of a batch in parts takes a look at them all first."""
    config = replace_in(QUICK, steps=2, batch=7, alpha=alpha, calibration=3)
    free, tight = trainer(config), trainer(config)
    sizes = watch(tight, monkeypatch, 2)
    assert [found.step for found in tight.run()] == [1, 2]
    assert sizes == [3, 1, 1, 1] + [1] * passes
    list(free.run())
    for key, value in numbers(free).items():
        assert torch.allclose(tight.gates.state_dict()[key], value, atol=1e-5), key


def test_memory_that_runs_out_under_a_whole_batch_does_not_change_its_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace_in(QUICK, steps=2, batch=7, lr=0.05)
    free, tight = trainer(config, KINDS[1]), trainer(config, KINDS[1])
    for one in (free, tight):
        randomise(one.gates, 3)
    watch(tight, monkeypatch, 3)
    for one, other in zip(free.run(), tight.run(), strict=True):
        assert other.balance == pytest.approx(one.balance, abs=1e-5)
    for key, value in numbers(free).items():
        assert torch.allclose(tight.gates.state_dict()[key], value, atol=1e-5), key


def test_memory_that_runs_out_midway_through_a_batch_counts_no_part_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace_in(QUICK, alpha=0.0, batch=4, micro_batch=2)
    one = trainer(config)
    randomise(one.gates, 3)
    expected = gradients(one, texts(0, 4))
    forward, passes = one.gated.model.lm_head.forward, []

    def limited(x: Tensor) -> Tensor:
        passes.append(len(x))
        if len(passes) == 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        return forward(x)

    monkeypatch.setattr(one.gated.model.lm_head, "forward", limited)
    found = gradients(one, texts(0, 4))
    assert passes == [2, 2, 1, 1, 1, 1]
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


def test_one_sample_too_large_for_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer()
    before = numbers(one)
    watch(one, monkeypatch, 0)
    with pytest.raises(
        AdapterError, match=r"one sample alone does not fit into memory for training\. Use shorter samples or a smaller"
    ):
        list(one.run())
    assert same(numbers(one), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.gated.model.modules())


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(out: Any, labels: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(trainer(loss=broken).run())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_gates(bad: float) -> None:
    calls = 0

    def breaks(out: Any, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(out, labels) * (bad if calls == 4 else 1.0)

    config, kind = replace_in(QUICK, steps=9), KINDS[1]  # not centred: one pass for each step
    one = trainer(config, kind, loss=breaks)
    found = list(one.run())
    assert [progress.stopped for progress in found[:-1]] == [None] * 3
    last = found[-1]
    assert last.stopped == f"step 4: its loss is {bad}; the gates are those of step {last.step}, the last good one"
    assert 2 <= last.step <= 3
    assert len(found) == calls == 4
    good = trainer(replace_in(config, steps=last.step), kind)
    list(good.run())
    assert same(numbers(one), numbers(good))
    assert math.isfinite(last.loss)
    assert bool(last.shares.isfinite().all())


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    """Also where the loss is finite, and at the last step of all."""

    def breaks(out: Any, labels: Tensor) -> Tensor:
        calls.append(loss(out, labels))
        slope = (calls[-1] - calls[-1].detach()).abs().sqrt()  # ∞ at 0
        return calls[-1] + slope if len(calls) == 3 else calls[-1]

    calls: list[Tensor] = []
    one = trainer(replace_in(QUICK, steps=3), KINDS[1], loss=breaks)
    found = list(one.run())
    assert found[-1].stopped is not None
    assert found[-1].stopped.startswith("step 3: its gradient is not finite; the gates are those of step ")
    assert all(bool(value.isfinite().all()) for value in numbers(one).values())


def test_a_loss_that_is_not_finite_at_the_first_step() -> None:
    one = trainer(loss=lambda out, labels: loss(out, labels) * math.nan)
    before = [p.detach().clone() for p in one.gates.parameters()]
    found = list(one.run())
    assert len(found) == 1
    assert found[0].step == one.step == 0
    assert found[0].stopped == "step 1: its loss is nan; the gates are those of step 0, the last good one"
    assert all(torch.equal(p, old) for p, old in zip(one.gates.parameters(), before, strict=True))


def test_stop_keeps_what_was_learned() -> None:
    one, stop = trainer(replace_in(QUICK, steps=9)), threading.Event()
    for progress in one.run(stop):
        if progress.step == 3:
            stop.set()
    assert progress.step == one.step == 3
    assert progress.stopped is None
    three = trainer(replace_in(QUICK, steps=3))
    list(three.run())
    assert same(numbers(one), numbers(three))


@pytest.mark.parametrize("kind", KINDS[:2], ids=["centred", "l2"])
def test_a_state_goes_on_bit_for_bit(kind: GateConfig, tmp_path: Path) -> None:
    config = replace_in(QUICK, steps=6)
    whole = trainer(config, kind)
    history = list(whole.run())
    first = trainer(config, kind)
    for progress in first.run():
        if progress.step == 2:
            break
    save_file(first.state(), tmp_path / "state.safetensors")
    list(first.run())  # what comes after the state was taken does not reach into it
    second = trainer(config, kind)
    second.resume(load_file(tmp_path / "state.safetensors"))
    rest = list(second.run())
    assert [told(progress) for progress in rest] == [told(progress) for progress in history[2:]]
    assert same(second.state(), whole.state())
    assert same(first.state(), whole.state())


def told(progress: Progress) -> tuple[object, ...]:
    return (*list(replace(progress, seconds=0.0).__dict__.values())[:5], progress.shares.tolist())


def test_after_a_state_a_bad_loss_goes_back_no_further_than_it() -> None:
    first = trainer(replace_in(QUICK, steps=2), KINDS[1])
    list(first.run())
    second = trainer(QUICK, KINDS[1], loss=lambda out, labels: loss(out, labels) * math.nan)
    second.resume(first.state())
    assert [progress.step for progress in second.run()] == [2]
    assert same(numbers(second), numbers(first))


def test_states_of_other_gates_or_damaged_ones_are_refused() -> None:
    one = trainer()
    list(one.run())
    state, untouched = one.state(), trainer()
    fresh = untouched.state()
    damaged: dict[str, dict[str, Tensor]] = {
        r"belongs to other gates or is damaged \(gates": {k: v for k, v in state.items() if not k.startswith("gates.gates.0")},
        r"damaged \(optimizer.1.exp_avg_sq\)": {k: v for k, v in state.items() if k != "optimizer.1.exp_avg_sq"},
        r"damaged \(optimizer.0.exp_avg\)": {**state, "optimizer.0.exp_avg": torch.zeros(3)},
        r"damaged \(optimizer.77.exp_avg\)": {**state, "optimizer.77.exp_avg": torch.zeros(3)},
        r"damaged \(what\)": {**state, "what": torch.zeros(3)},
        r"damaged \(optimizer.what\)": {**state, "optimizer.what": torch.zeros(3)},
        "does not say its step": {k: v for k, v in state.items() if k != "step"},
        "does not say its ste": {**state, "step": torch.tensor(math.nan)},
        "does not say its st": {**state, "step": torch.tensor([1, 2])},
        r"not finite \(optimizer.0.exp_avg\)": {
            **state, "optimizer.0.exp_avg": torch.full_like(state["optimizer.0.exp_avg"], math.nan)
        },
    }  # fmt: skip
    other = trainer(kind=KINDS[1])
    for message, given in damaged.items():
        with pytest.raises(AdapterError, match=message):
            untouched.resume(given)
    with pytest.raises(AdapterError, match="other gates"):
        other.resume(state)
    assert same(untouched.state(), fresh)


def test_the_seed_decides() -> None:
    found = []
    for seed in (0, 0, 1):
        one = trainer(seed=seed)
        list(one.run())
        found.append(numbers(one))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def favoured(alpha: float) -> list[Progress]:
    """A training whose answers are those that the first LoRA gives."""
    adapters = some_adapters()
    naive = Naive(tiny_model(), Mixture(adapters, {"first": 1.0}))

    def batch_of(step: int, count: int) -> Batch:
        prompts = [prompt for prompt, _ in texts(step, count)]
        with torch.no_grad():
            return batch([(prompt, [int(naive(prompt, 0)[-1].argmax())]) for prompt in prompts])

    return list(trainer(replace_in(QUICK, steps=25, lr=0.05, batch=6, alpha=alpha), batch_of=batch_of).run())


def test_gates_learn_and_balance_keeps_them_from_one_lora_alone() -> None:
    """Equation 16: α > 0 raises the entropy of q; without it the LoRA that gives the answers takes most."""
    free, even = favoured(0.0), favoured(2.0)
    assert sum(p.loss for p in free[-5:]) < sum(p.loss for p in free[:5]) - 0.5

    def q(found: list[Progress]) -> list[float]:
        return torch.stack([progress.shares for progress in found[-5:]]).mean((0, 1)).tolist()

    def spread(shares: list[float]) -> float:
        return -sum(share * math.log(share) for share in shares)

    assert q(free)[0] > 0.5
    assert q(free)[0] == max(q(free))
    assert spread(q(even)) > spread(q(free)) + 0.1
    assert even[-1].balance < free[-1].balance - 0.1


def test_progress_tells_what_a_step_saw() -> None:
    one = trainer(replace_in(QUICK, steps=1), KINDS[1])
    first = next(one.run())
    assert (first.step, first.steps, first.stopped) == (1, 1, None)
    gates = len(one.gates.sites)
    assert torch.allclose(first.shares, torch.full((gates, 3), 1 / 3)), "the first step's gates trust all alike"
    assert first.entropy == pytest.approx(math.log(3), abs=1e-5)
    assert first.balance == pytest.approx(3 * math.log(3), abs=1e-5)
    fresh = trainer(kind=KINDS[1])
    assert first.loss == pytest.approx(naive_gradients(fresh, texts(0, 4), 0.0)[0], rel=1e-5)


def test_loras_with_no_module_in_common_train() -> None:
    adapters = {
        "one": adapter("one", 1, 4, ("self_attn.q_proj",)),
        "two": adapter("two", 2, 3, ("mlp.down_proj",)),
    }
    model, pool = tiny_model(), LivePool(adapters, "cpu", torch.float32)
    for granularity in ("module", "block"):
        kind = GateConfig(granularity=granularity)  # type: ignore[arg-type]
        sites = find_sites(model, pool.modules, kind.granularity, lambda: model(torch.tensor([[1, 2]])))
        gates = Gates.fresh(kind, ("one", "two"), sites, pool)
        one = Trainer(model, pool, gates, lambda step, count: batch(texts(step, count)), loss, QUICK)
        found = list(one.run())
        assert found[-1].step == 4
        assert math.isfinite(found[-1].loss)


def test_in_half_precision_the_gates_stay_in_full() -> None:
    """A bf16 base and bf16 LoRAs, as on GPUs: the gates' gradients are those of fp32 but for rounding."""
    full, half = trainer(kind=KINDS[1]), trainer(kind=KINDS[1])
    model, pool = tiny_model().bfloat16(), LivePool(some_adapters(), "cpu", torch.bfloat16)
    half = Trainer(model, pool, half.gates, half.batch_of, loss, QUICK)
    some = texts(0, 4)
    for one in (full, half):
        randomise(one.gates, 3)
    expected, found = gradients(full, some), gradients(half, some)
    flat, other = (torch.cat([g.flatten() for g in each.values()]) for each in (expected, found))
    assert torch.cosine_similarity(flat, other, dim=0) > 0.99
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.gates.parameters() if p.grad is not None)
    list(half.run())
    assert half.step == 4


def test_a_base_whose_weights_wait_elsewhere_trains_the_same_gates() -> None:
    """As with a ``device_map`` that offloads: accelerate brings each layer's weights when it runs."""
    here = trainer()
    model = accelerate.cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    there = Trainer(model, here.gated.live.pool, trainer().gates, here.batch_of, loss, QUICK)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    losses = [[progress.loss for progress in one.run()] for one in (here, there)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for key, value in numbers(here).items():
        torch.testing.assert_close(there.gates.state_dict()[key], value)


def test_two_processes_train_the_gates_of_one(tmp_path: Path) -> None:
    two_processes("-m", "tests.processes", str(tmp_path))
    for name, config in (("uneven", UNEVEN), ("single", SINGLE)):
        one, other = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2))
        assert same(one, other)
        for key, value in trained(config)[1].items():
            assert torch.allclose(one[key], value, atol=1e-5), key
        assert float(one["gates.0.weight"].abs().max()) > 0.01
    assert [int(load_file(tmp_path / f"stopped-{rank}.safetensors")["step"]) for rank in range(2)] == [3, 3]
