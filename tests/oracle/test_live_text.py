"""The built-in base with the adapters that ship: one batch against one variant at a time, against PEFT, and against plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backends import library
from backends.bases import BUILTIN, TextBase, load_base
from backends.text import Grid, Sampling, Variant, generate, score, tasks
from mole.live import Weighting

pytestmark = pytest.mark.model

PROMPTS = [
    "What is the past tense of 'ban'? Answer with one word.",
    "Write a short poem about the sea.",
    "Is this review positive or negative?\nAn enthralling aesthetic experience, one that's steeped in mystery and a ravishing beauty.",
    "Which language is this phrase?\nbotón NEW",
    "Hello!",
    "Say something in Japanese, and add three emoji.",
]
GREEDY = Sampling(max_new_tokens=20)
ADAPTERS = ("past-tense", "sentiment", "king-james", "plural")


@pytest.fixture(scope="module")
def base() -> TextBase:
    return load_base(BUILTIN)


@cache
def entries() -> dict[str, library.Entry]:
    every = {entry.name: entry for entry in library.builtin()}
    chosen = {name: every[name] for name in ADAPTERS if name in every}
    assert len(chosen) >= 2, "the built-in adapters are missing"
    return chosen


def variants() -> list[Variant]:
    keys = {name: entry.key for name, entry in entries().items()}
    average = tuple((key, 1 / len(keys)) for key in keys.values())
    ones = [Variant(name, Weighting(((key, 1.0),))) for name, key in keys.items()]
    return [Variant("base"), *ones, Variant("average", Weighting(average))]


@pytest.fixture(scope="module")
def peft(base: TextBase) -> Any:
    """A second copy of the base with the same adapters in PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base.folder).to(base.device)
    first, *rest = entries().values()
    wrapped = PeftModel.from_pretrained(model, first.path, adapter_name=first.name)
    for entry in rest:
        wrapped.load_adapter(entry.path, adapter_name=entry.name)
    return wrapped.eval()


def last(states: Iterator[Grid]) -> Grid:
    return list(states)[-1]


@pytest.fixture(scope="module")
def together(base: TextBase) -> Grid:
    """All variants and prompts in one batch, greedily."""
    return last(generate(base, variants(), PROMPTS, GREEDY))


def peft_tokens(base: TextBase, model: Any, prompt: str, most: int) -> list[int]:
    chat = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([base.tokenizer(chat, add_special_tokens=False)["input_ids"]], device=base.device)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def peft_text(base: TextBase, model: Any, prompt: str, most: int) -> str:
    return base.tokenizer.decode(peft_tokens(base, model, prompt, most), skip_special_tokens=True)


def test_each_text_is_what_peft_generates(base: TextBase, together: Grid, peft: Any) -> None:
    for v, variant in enumerate(variants()[:-1]):
        for p, prompt in enumerate(PROMPTS):
            if variant.name == "base":
                with peft.disable_adapter():
                    wanted = peft_text(base, peft, prompt, GREEDY.max_new_tokens)
            else:
                peft.set_adapter(variant.name)
                wanted = peft_text(base, peft, prompt, GREEDY.max_new_tokens)
            assert together.texts[v][p] == wanted, (variant.name, prompt)


def test_the_adapters_change_the_texts(together: Grid) -> None:
    for row in together.texts[1:]:
        assert row != together.texts[0]


def test_each_text_is_what_the_variant_gives_alone(base: TextBase, together: Grid) -> None:
    for v, variant in enumerate(variants()):
        assert last(generate(base, [variant], PROMPTS, GREEDY)).texts[0] == together.texts[v]
        for p in (1, 4):
            assert last(generate(base, [variant], [PROMPTS[p]], GREEDY)).texts[0][0] == together.texts[v][p]


def test_sampled_texts_do_not_depend_on_the_batch(base: TextBase) -> None:
    drawn = Sampling(max_new_tokens=16, temperature=0.8, top_p=0.9, seed=5)
    every = last(generate(base, variants(), PROMPTS[:3], drawn))
    one = last(generate(base, [variants()[2]], PROMPTS[:3], drawn))
    assert one.texts[0] == every.texts[2]


def test_the_base_is_bit_identical_afterwards(base: TextBase, together: Grid) -> None:
    fresh = AutoModelForCausalLM.from_pretrained(base.folder).to(base.device).state_dict()
    state = base.model.state_dict()
    assert list(state) == list(fresh)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in state.items())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in base.model.modules())


def test_scores_are_those_of_greedy_decoding(base: TextBase, peft: Any) -> None:
    name = next(iter(entries()))
    rows = [row for row in tasks()[name] if row["split"] == "held_out"][:16]
    found = list(score(base, variants()[:2], rows))[-1]
    peft.set_adapter(name)
    for hit, row in zip(found.hits[1], rows, strict=True):
        answer = base.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        assert hit == (
            peft_tokens(base, peft, row["prompt"], len(answer) + 1) == [*answer, base.tokenizer.eos_token_id]
        ), row
    assert 0 < sum(bool(hit) for hit in found.hits[1]) < len(rows), (
        "some must be right and some wrong for this to tell anything"
    )
    assert found.exact[1] > found.exact[0]
    assert found.nll[1] < found.nll[0]


def test_likelihoods_are_those_of_whole_passes(base: TextBase, peft: Any) -> None:
    name = next(iter(entries()))
    rows = [row for row in tasks()[name] if row["split"] == "held_out"][:8]
    found = list(score(base, variants()[1:2], rows))[-1]
    peft.set_adapter(name)
    total, tokens = 0.0, 0
    for row in rows:
        chat = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        prompt = base.tokenizer(chat, add_special_tokens=False)["input_ids"]
        answer = [*base.tokenizer(row["answer"], add_special_tokens=False)["input_ids"], base.tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer], device=base.device)
        labels = torch.tensor([[-100] * len(prompt) + answer], device=base.device)
        with torch.no_grad():
            loss = peft(input_ids=ids, labels=labels).loss
        total, tokens = total + float(loss) * len(answer), tokens + len(answer)
    assert found.nll[0] == pytest.approx(total / tokens, rel=1e-3)
