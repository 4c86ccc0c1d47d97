"""Teacher-forced scores against whole forward passes of densely merged models, one row at a time."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import score as scoring
from backends.bases import TextBase
from backends.errors import BaseError
from backends.rows import tasks
from backends.score import Scores, common_prefix, score
from backends.variants import Variant
from lego import AdapterError
from mole.live import Weighting
from tests.tiny import merged, tiny_base, tiny_entry, tiny_gpt2

PROMPTS = ["What is the past of go?", "What is the past of be?", "What is the past of understand?", "What is it?"]
LENGTHS = [1, 3, 2, 4]


@pytest.fixture
def base() -> TextBase:
    return tiny_base()


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    first, second = tiny_entry(tmp_path / "first", 1).key, tiny_entry(tmp_path / "second", 2, rank=2, alpha=3).key
    return [
        Variant("base"),
        Variant("first", Weighting(((first, 1.0),))),
        Variant("both", Weighting(((first, 0.5), (second, -0.7)))),
    ]


def model_of(base: TextBase, variant: Variant) -> Any:
    return merged(base.model, dict(variant.weighting.adapters))


def chat(prompt: str) -> str:
    return f"user: {prompt}\na: "


@pytest.fixture
def rows(base: TextBase, variants: list[Variant]) -> list[dict[str, str]]:
    """Answers that the second variant gives greedily, so that some rows are right; whatever it says next ends its answer."""
    model, found, ends = model_of(base, variants[1]), [], {base.tokenizer.eos_token_id}
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        ids = torch.tensor([base.tokenizer(chat(prompt))["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length + 1, do_sample=False)
        made = out[0, ids.shape[1] :].tolist()
        found.append({"prompt": prompt, "answer": base.tokenizer.decode(made[:length])})
        ends.add(made[length])
    base.model.generation_config.eos_token_id = sorted(ends)
    found.append({"prompt": "How?", "answer": "no idea"})
    return found


def naive(base: TextBase, variant: Variant, row: dict[str, str]) -> tuple[bool, float, int]:
    """Exactly right or not, the sum of negative log-likelihoods, the number of tokens."""
    model, ends = model_of(base, variant), base.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    end = base.tokenizer.eos_token_id
    prompt = base.tokenizer(chat(row["prompt"]))["input_ids"]
    answer = [*base.tokenizer(row["answer"])["input_ids"], end]
    exact, nll = True, 0.0
    for i, token in enumerate(answer):
        logits = model(torch.tensor([prompt + answer[:i]])).logits[0, -1].double()
        nll -= float(logits.log_softmax(-1)[token])
        best = int(logits.argmax())
        exact = exact and (best in ends if token == end else best == token)
    return exact, nll, len(answer)


def last(states: Any) -> Scores:
    return list(states)[-1]


@pytest.mark.parametrize("at_once", [30, 64, 10_000])
def test_scores_are_those_of_whole_passes_one_row_at_a_time(
    base: TextBase, variants: list[Variant], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", {"cpu": at_once})
    found = last(score(base, variants, rows))
    for v, variant in enumerate(variants):
        each = [naive(base, variant, row) for row in rows]
        assert found.hits[v] == tuple(exact for exact, _, _ in each)
        assert found.exact[v] == pytest.approx(sum(exact for exact, _, _ in each) / len(rows))
        assert found.nll[v] == pytest.approx(sum(nll for _, nll, _ in each) / sum(n for _, _, n in each), rel=1e-4)
    assert found.hits[1][:4] == (True,) * 4
    assert not all(found.hits[0])
    assert found.names == ("base", "first", "both")
    assert (found.finished, found.done, found.total) == (True, 15, 15)


def test_positions_are_counted_without_the_padding(rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(model=tiny_gpt2())
    found = last(score(base, [Variant("base")], rows))
    each = [naive(base, Variant("base"), row) for row in rows]
    assert found.nll[0] == pytest.approx(sum(nll for _, nll, _ in each) / sum(n for _, _, n in each), rel=1e-4)


def test_the_shared_beginning_is_run_once_for_each_variant(
    base: TextBase, variants: list[Variant], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", {"cpu": 40})
    forward, seen = base.model.forward, []
    base.accepts  # noqa: B018 - remembered before the signature is hidden

    def watched(input_ids: torch.Tensor, **named: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **named)

    monkeypatch.setattr(base.model, "forward", watched)
    shared = len("user: What is ")
    last(score(base, variants, rows[:4]))
    assert seen.count((1, shared)) == len(variants)
    assert (
        max(tokens for count, tokens in seen)
        <= max(len(chat(p)) + n for p, n in zip(PROMPTS, LENGTHS, strict=True)) - shared
    )
    assert len(seen) > 2 * len(variants)


def test_running_out_of_memory_halves_the_batch(
    base: TextBase, variants: list[Variant], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = last(score(base, variants, rows))
    forward = base.model.forward
    base.accepts  # noqa: B018

    def limited(input_ids: torch.Tensor, **named: Any) -> Any:
        if len(input_ids) > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return forward(input_ids=input_ids, **named)

    monkeypatch.setattr(base.model, "forward", limited)
    limit = 2
    found = last(score(base, variants, rows))
    assert found.hits == whole.hits
    assert found.nll == pytest.approx(whole.nll, rel=1e-5)
    limit = 0
    with pytest.raises(BaseError, match="one row alone does not fit"):
        last(score(base, variants, rows))


def test_progress_and_stop(
    base: TextBase, variants: list[Variant], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", {"cpu": 1})
    states = list(score(base, variants, rows))
    assert [state.done for state in states] == list(range(3, 16))  # from when every variant has a row
    assert [state.finished for state in states] == [False] * 12 + [True]
    assert not any(math.isnan(value) for state in states for value in (*state.exact, *state.nll))
    stop, seen = threading.Event(), []
    for state in score(base, variants, rows, stop):
        seen.append(state.done)
        stop.set()
    assert seen == [3]
    assert sum(len(module._forward_hooks) for module in base.model.modules()) == 0


def test_the_interval_is_wilsons() -> None:
    hits = tuple([True] * 160 + [False] * 40 + [None] * 7)
    scores = Scores(("a", "b"), (0.8, 0.0), (0.0, 0.0), (hits, (None,) * 207), 200, 414, False, 1.0)
    # Published tables of the Wilson score interval give 0.739 to 0.849 for 160 of 200.
    assert scores.interval(0) == pytest.approx((0.7391, 0.8494), abs=5e-4)
    assert scores.interval(1) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1, 2, 3]], 2), ([[5], [5, 6]], 0), ([[1, 2], [3, 2]], 0)],
)
def test_the_common_prefix_leaves_a_token_for_every_prompt(prompts: list[list[int]], shared: int) -> None:
    assert common_prefix(prompts) == shared


def test_bad_requests_are_refused(base: TextBase, variants: list[Variant]) -> None:
    with pytest.raises(AdapterError, match="nothing to score"):
        last(score(base, variants, []))
    with pytest.raises(AdapterError, match="nothing to score"):
        last(score(base, [], [{"prompt": "a", "answer": "b"}]))
    with pytest.raises(BaseError, match="row 2 has 2"):
        last(score(base, variants, [{"prompt": "a", "answer": "b"}, {"prompt": "a" * 200, "answer": "b"}]))


def test_the_tasks_that_ship_are_read() -> None:
    found = tasks()
    assert found
    for name, task_rows in found.items():
        assert len(task_rows) >= 50, name
        assert all(
            row["prompt"] and row["answer"] and row["split"] in ("train", "tune", "held_out") for row in task_rows
        )
