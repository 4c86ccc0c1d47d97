"""One gate and all gates of a training, against the equations written as loops (MoLE, arXiv 2404.13628)."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lego import AdapterError
from mole.gate import BASE, Gate, GateConfig, Gates
from mole.losses import IGNORED, answer_loss, balance_loss, entropy
from mole.sites import Site, find_sites
from tests.naive_gates import pool_for, some_adapters
from tests.tiny import tiny_model

NAMES = ("first", "second", "third")


def gate(features: int = 6, experts: int = 3, seed: int = 0) -> Gate:
    torch.manual_seed(seed)
    made = Gate(features, experts)
    torch.nn.init.normal_(made.weight)
    return made


def reads(rows: int = 5, features: int = 6) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(9))


def all_gates(experts: tuple[str, ...] = NAMES, length: int = 1, **config: Any) -> Gates:
    model, pool = tiny_model(), pool_for(some_adapters())
    made = GateConfig(**config)
    sites = find_sites(model, pool.modules, made.granularity, lambda: model(torch.tensor([[1, 2]])))
    return Gates.fresh(made, experts, sites, pool, length)


def test_gates_without_weights_trust_all_alike() -> None:
    """Gold test 1, of the gate and the balance loss."""
    for count in (1, 2, 3, 7):
        chosen = Gate(6, count)(reads()).detach()
        assert torch.equal(chosen, torch.full((5, count), 1 / count))
        assert float(balance_loss([chosen] * 4, count)) == pytest.approx(count * math.log(count), abs=1e-6)
        assert float(entropy([chosen])) == pytest.approx(math.log(count), abs=1e-6)


def test_temperature() -> None:
    """Gold test 2: τ → ∞ gives uniform gates, τ → 0 the largest logit; the gates of a sample sum to 1."""
    made, read = gate(), reads()
    with torch.no_grad():
        best = torch.stack([(row @ made.weight).argmax() for row in read])
        for log_temperature in (-3.0, 0.0, 2.0):
            made.log_temperature.fill_(log_temperature)
            assert torch.allclose(made(read).sum(1), torch.ones(5))
        made.log_temperature.fill_(12.0)
        assert torch.allclose(made(read), torch.full((5, 3), 1 / 3), atol=1e-4)
        made.log_temperature.fill_(-12.0)
        assert torch.equal(made(read), torch.nn.functional.one_hot(best, 3).float())
        assert torch.isfinite(made(read * 1e6)).all()


def test_the_choice_entry_by_entry() -> None:
    made, read = gate(), reads()
    with torch.no_grad():
        made.log_temperature.fill_(0.4)
        made.mean.copy_(torch.arange(6) / 10)
        made.spread.fill_(1.5)
        for row, chosen in zip(read, made(read), strict=True):
            logits = [
                sum(float((row[k] - k / 10) / 1.5 * made.weight[k, i]) for k in range(6)) / math.exp(0.4) for i in range(3)
            ]  # fmt: skip
            powers = [math.exp(logit) for logit in logits]
            assert chosen.tolist() == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)


def test_masks_keep_the_ratios_of_what_is_kept() -> None:
    """Gold test 4, of the gate: G'_i = m_i G_i / Σ_j m_j G_j; a mask of ones changes nothing; a single one kept gets 1."""
    made, read = gate(), reads()
    with torch.no_grad():
        free = made(read)
        for kept in product([False, True], repeat=3):
            if not any(kept):
                continue
            chosen = made(read, torch.tensor(kept).expand(5, -1))
            for row, all_of_it in zip(chosen.tolist(), free.tolist(), strict=True):
                total = sum(g for g, keep in zip(all_of_it, kept, strict=True) if keep)
                assert row == pytest.approx(
                    [g / total * keep for g, keep in zip(all_of_it, kept, strict=True)], abs=1e-6
                )
        assert torch.equal(made(read, torch.ones(5, 3, dtype=torch.bool)), free)
        assert torch.equal(
            made(read, torch.tensor([False, True, False]).expand(5, -1)), torch.tensor([[0.0, 1, 0]] * 5)
        )


def test_masks_by_name() -> None:
    gates = all_gates(base_expert=True)
    assert gates.columns == (*NAMES, BASE)
    assert gates.mask(()) is None
    assert gates.mask(("second", BASE)).tolist() == [True, False, True, False]  # type: ignore[union-attr]
    with pytest.raises(
        AdapterError, match=r"sceond: is not among the gates' experts\. They mix: first, second, third, base"
    ):
        gates.mask(("first", "sceond"))
    with pytest.raises(AdapterError, match=r"every expert is masked\. Keep at least one"):
        gates.mask((*NAMES, BASE))
    with pytest.raises(AdapterError, match="base: is not among"):
        all_gates().mask((BASE,))
    assert gates.mask(NAMES).tolist() == [False, False, False, True]  # type: ignore[union-attr]


def test_the_balance_loss_trains_gates() -> None:
    """Gold test 6: its gradient at non-uniform gates is that of −Σ log q by hand, and not zero; at uniform gates it is least."""
    logits = [torch.randn(4, 3, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in range(3)]
    loss = balance_loss([logit.softmax(1) for logit in logits], 3)
    q = [sum(float(logit[r].detach().softmax(0)[i]) for logit in logits for r in range(4)) / 12 for i in range(3)]
    assert float(loss.detach()) == pytest.approx(-sum(math.log(share) for share in q), abs=1e-6)
    assert float(loss.detach()) > 3 * math.log(3)
    loss.backward()
    for logit in logits:
        g = logit.detach().softmax(1)
        # ∂(−Σ_i log q_i)/∂ε_j of one row = −Σ_i G_i (δ_ij − G_j) / (12 q_i)
        by_hand = [
            [-sum(float(g[r, i]) * (float(i == j) - float(g[r, j])) / (12 * q[i]) for i in range(3)) for j in range(3)]
            for r in range(4)
        ]
        assert logit.grad is not None
        assert torch.allclose(logit.grad, torch.tensor(by_hand), atol=1e-6)
        assert float(logit.grad.abs().max()) > 1e-3


def test_the_balance_of_loras_is_apart_from_the_base_expert() -> None:
    chosen = [torch.tensor([[0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])]
    assert float(balance_loss(chosen, 2)) == pytest.approx(2 * math.log(2), abs=1e-6)
    only_base = balance_loss([torch.tensor([[0.0, 0.0, 1.0]])], 2)
    assert torch.isfinite(only_base)
    assert float(only_base) > 10
    uneven = [torch.tensor([[0.1, 0.3, 0.6]])]
    assert float(balance_loss(uneven, 2)) == pytest.approx(-math.log(0.25) - math.log(0.75), abs=1e-6)


def test_entropy_by_hand() -> None:
    chosen = [torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.0, 1.0]])]
    rows = [math.log(2), 0.0, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), 0.0]
    assert float(entropy(chosen)) == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_permuting_the_loras_permutes_the_gates() -> None:
    """Gold test 6: columns and blocks of e, moved as the LoRAs were, choose the same LoRAs."""
    pool = pool_for(some_adapters())
    straight, turned = all_gates(NAMES), all_gates(("third", "first", "second"))
    places = [2, 0, 1]  # of each of the turned ones among the straight ones
    noise = torch.Generator().manual_seed(1)
    for (site, one), (_, other) in zip(straight.items(), turned.items(), strict=True):
        with torch.no_grad():
            torch.nn.init.normal_(one.weight, generator=noise)
            blocks = one.weight.view(3, -1, 3)
            other.weight.copy_(blocks[places][:, :, places].reshape(other.weight.shape))
        x = torch.randn(4, 7, pool.modules[site.readers[0]][0].shape[0], generator=noise)
        prompt = torch.ones(4, 7, dtype=torch.bool)
        found = [gate(made.read(site, x, prompt, pool)) for made, gate in ((straight, one), (turned, other))]
        assert torch.allclose(found[0][:, places], found[1], atol=1e-6)
        assert (found[0].amax(1) - found[0].amin(1)).min() > 1e-3


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("reads", ["outputs", "hidden"])
@pytest.mark.parametrize(("pooling", "length"), [("mean", 1), ("flatten", 5)])
def test_parameters_of_each_gate(reads: str, pooling: str, length: int, base: bool) -> None:
    """Gold test 7: e ∈ R^{(N·L·d) × N} and τ. d is what the readers give: q 24, k 12, v 12 in attention; gate 40, up 40."""
    gates = all_gates(granularity="layer", reads=reads, pooling=pooling, length=length, base_expert=base)
    columns = 3 + base
    attention, feed = ((24, 24) if reads == "hidden" else (3 * (24 + 12 + 12), 3 * (40 + 40)))  # fmt: skip
    for site, one in gates.items():
        d = attention if site.name.endswith("self_attn") else feed
        assert tuple(one.weight.shape) == (length * d, columns)
    assert gates.parameter_count == 2 * (length * attention * columns + 1 + length * feed * columns + 1)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@pytest.mark.parametrize("normalise", ["l2", "centred"])
def test_padding_and_answers_never_reach_a_gate(pooling: str, normalise: str) -> None:
    pool = pool_for(some_adapters())
    gates = all_gates(length=6 if pooling == "flatten" else 1, pooling=pooling, normalise=normalise)
    site = gates.sites[0]
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    prompt = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    before = gates.read(site, x, prompt, pool)
    changed = torch.where(prompt[..., None], x, torch.randn(2, 6, 24) * 100)
    assert torch.allclose(gates.read(site, changed, prompt, pool), before, atol=1e-5)
    alone = gates.read(site, x[1:], prompt[1:], pool)
    assert torch.allclose(alone, before[1:], atol=1e-6)


def test_flatten_refuses_another_length() -> None:
    gates, pool = all_gates(pooling="flatten", length=5), pool_for(some_adapters())
    with pytest.raises(AdapterError, match=r"gets 6 tokens, but the gate was made for 5. Use pooling: mean"):
        gates.read(gates.sites[0], torch.zeros(1, 6, 24), torch.ones(1, 6, dtype=torch.bool), pool)


def test_calibration_takes_mean_and_spread_off() -> None:
    made, samples = gate(), reads(50) * 3 + 7
    made.calibrate(samples)
    read = (samples - made.mean) / made.spread
    assert torch.allclose(read.mean(0), torch.zeros(6), atol=1e-5)
    assert float(read.square().mean()) == pytest.approx(1, abs=1e-4)


def test_calibration_on_samples_that_hardly_differ() -> None:
    """Rounding must not be taken for what tells samples apart."""
    made = gate()
    samples = reads(1).expand(20, -1) * (1 + 1e-7 * torch.arange(20)[:, None])
    made.calibrate(samples)
    assert float(((samples - made.mean) / made.spread).abs().max()) < 1e-2
    made.calibrate(torch.zeros(20, 6))
    assert torch.isfinite(made(torch.zeros(2, 6))).all()


def test_nothing_to_choose_from_is_refused() -> None:
    site = Site("", ("m",), ("m",))
    for experts, sites in (((), (site,)), (("a",), ())):
        with pytest.raises(AdapterError, match="there is nothing to gate"):
            Gates(GateConfig(), experts, sites, [3] * len(sites))
    with pytest.raises(AdapterError, match="a LoRA is named twice"):
        Gates(GateConfig(), ("a", "a"), (site,), [3])


def test_answer_loss_is_the_mean_over_rows_of_the_mean_over_tokens() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORED, IGNORED, 1, 2], [0, 1, 2, 3], [IGNORED, IGNORED, IGNORED, 4]])
    rows = []
    for row in range(3):
        each = [
            -math.log(math.exp(float(logits[row, at, label])) / sum(math.exp(float(v)) for v in logits[row, at]))
            for at, label in enumerate(labels[row].tolist())
            if label != IGNORED
        ]
        rows.append(sum(each) / len(each))
    assert float(answer_loss(logits, labels)) == pytest.approx(sum(rows) / 3, abs=1e-5)
