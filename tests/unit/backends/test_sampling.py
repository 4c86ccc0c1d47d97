"""Sampling with shared Gumbel noise against the distribution it must have."""

from __future__ import annotations

import pytest
import torch

from backends.sampling import Sampling, choose, gumbel, nucleus
from lego import AdapterError


def naive_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The most likely tokens one after the other, until they hold enough."""
    held, kept = 0.0, set()
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if held >= top_p:
            break
        kept.add(token)
        held += probabilities[token]
    return kept


@pytest.mark.parametrize("size", [7, 2000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_the_nucleus_is_the_smallest_set_that_holds_enough(size: int, top_p: float, sharpness: float) -> None:
    scores = torch.randn(3, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * sharpness
    found = nucleus(scores, top_p)
    for row in range(3):
        assert set(found[row].nonzero().flatten().tolist()) == naive_nucleus(scores[row].softmax(-1).tolist(), top_p)


def test_a_nucleus_is_never_empty() -> None:
    assert nucleus(torch.tensor([[0.0, 9.0, 1.0]]), 1e-9).tolist() == [[False, True, False]]


def test_greedy_takes_the_most_likely() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]]), Sampling(), [0, 0], [0, 0]).tolist() == [1, 0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.3, 0.7)])
def test_frequencies_are_those_of_the_tempered_softmax(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, -3.0])
    wanted = (logits / temperature).softmax(-1)
    kept = naive_nucleus(wanted.tolist(), top_p)
    wanted = torch.tensor([p if token in kept else 0.0 for token, p in enumerate(wanted.tolist())])
    wanted = wanted / wanted.sum()
    draws = 6000
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=5)
    found = choose(logits.expand(draws, -1), sampling, [0] * draws, range(draws)).bincount(minlength=5) / draws
    # Four standard errors of a frequency.
    assert bool(((found - wanted).abs() <= 4 * (wanted * (1 - wanted) / draws).sqrt() + 1e-9).all()), (found, wanted)


def test_noise_depends_on_seed_prompt_and_step_only() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.0, seed=3)
    together = choose(logits, sampling, [0, 0, 1, 1], [4, 4, 2, 2]).tolist()
    alone = [
        choose(logits[i : i + 1], sampling, [p], [s]).item()
        for i, (p, s) in enumerate([(0, 4), (0, 4), (1, 2), (1, 2)])
    ]
    assert together == alone
    noises = [gumbel(*place, size=50) for place in ((3, 0, 4), (3, 0, 5), (3, 1, 4), (4, 0, 4))]
    assert torch.equal(noises[0], gumbel(3, 0, 4, size=50))
    for i, first in enumerate(noises):
        assert not any(torch.equal(first, other) for other in noises[i + 1 :])


def test_noise_is_standard_gumbel() -> None:
    drawn = gumbel(0, 0, 0, size=200_000).double()
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1.6449, abs=0.04)
    assert bool(drawn.isfinite().all())


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(AdapterError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
