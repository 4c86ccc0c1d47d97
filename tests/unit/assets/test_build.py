"""The builder: splits, packed batches, resuming. A tiny random Llama stands in for the base model."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from assets.build import packages
from assets.build.packages import Package, PackageError, fetch
from assets.build.tasks import Item, Task, _shorten, split


def items(count: int) -> list[Item]:
    return [Item(f"k{i}", f"ask {i}", f"a{i}", "odd" if i % 4 == 0 else "even") for i in range(count)]


def test_split_deals_disjoint_rows_with_each_groups_share():
    task = Task("t", (), lambda cache, rng: items(400), held_out=80, tune=40)
    rows = split(task, items(400))
    assert Counter(row["split"] for row in rows) == {"held_out": 80, "tune": 40, "train": 280}
    assert len({row["prompt"] for row in rows}) == 400
    odd = {f"ask {i}" for i in range(0, 400, 4)}
    for name, size in (("held_out", 80), ("tune", 40)):
        share = sum(row["prompt"] in odd for row in rows if row["split"] == name) / size
        assert 0.2 <= share <= 0.3, name


def test_split_keeps_one_item_per_key_and_prompt_and_is_seeded():
    task = Task("t", (), lambda cache, rng: (), held_out=2, tune=1)
    doubled = [*items(8), Item("k3", "other", "x"), Item("new", "ASK 5", "x")]
    rows = split(task, doubled)
    assert len(rows) == 8
    assert not {"other", "ASK 5"} & {row["prompt"] for row in rows}
    assert rows == split(task, doubled)
    assert rows != split(task, doubled, seed=1)


def test_split_never_asks_what_is_for_teaching():
    task = Task("t", (), lambda cache, rng: (), held_out=5, tune=2)
    rows = split(task, [*items(10), *(Item(f"t{i}", f"teach {i}", "x", teach=True) for i in range(10))])
    assert Counter((row["prompt"][:3], row["split"]) for row in rows) == {
        ("ask", "held_out"): 5, ("ask", "tune"): 2, ("ask", "train"): 3, ("tea", "train"): 10,
    }  # fmt: skip


def test_shorten_keeps_whole_sentences():
    assert _shorten("One two three. Four five six. Seven.", 6) == "One two three. Four five six."
    assert _shorten("One two; three four five six.", 3) == "One two."
    assert _shorten("One two three four.", 3) == ""


def test_an_archive_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch):
    package = Package("thing", "npm", "1.0", hashlib.sha256(b"right").hexdigest(), "MIT", "")
    monkeypatch.setattr(packages, "_command", lambda package: ["sh", "-c", "printf wrong > thing-1.0.tgz"])
    with pytest.raises(PackageError, match=r"thing 1\.0: sha256"):
        fetch(package, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_client_and_a_failing_one_are_named(tmp_path: Path, monkeypatch):
    package = Package("thing", "deb", "1.0", "0" * 64, "MIT", "")
    monkeypatch.setattr(packages, "_command", lambda package: ["no-such-client-here"])
    with pytest.raises(PackageError, match="`no-such-client-here` is not installed"):
        fetch(package, tmp_path)
    monkeypatch.setattr(packages, "_command", lambda package: ["sh", "-c", "echo no such package >&2; exit 100"])
    with pytest.raises(PackageError, match="no such package"):
        fetch(package, tmp_path)


class Tokenizer:
    """One token per character; enough of a tokenizer for :func:`assets.build.score.encode`."""

    eos_token_id = 2

    def apply_chat_template(self, chat, add_generation_prompt, tokenize):
        return f"system: {chat[0]['content']}>"

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [3 + ord(char) % 60 for char in text]}


@pytest.fixture
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


ROWS = [{"prompt": f"what is {i * i}?", "answer": "ab" * (1 + i % 3)} for i in range(12)]


@pytest.mark.parametrize("shared", [True, False])
def test_packed_logits_are_those_of_each_row_alone(tiny, shared):
    from assets.build.score import Encoded, answer_logits, encode

    batch = [encode(Tokenizer(), row) for row in ROWS[:5]]
    if not shared:  # first tokens differ: nothing to share
        batch = [Encoded((3 + i, *row.ids[1:]), row.start) for i, row in enumerate(batch)]
    with torch.no_grad():
        logits, target = answer_logits(tiny, batch)
        alone = [tiny(torch.tensor([row.ids])).logits[0, row.start - 1 : -1] for row in batch]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert target.tolist() == [token for row in batch for token in row.ids[row.start :]]


def test_score_counts_rows_that_greedy_decoding_answers(tiny):
    from assets.build.score import Encoded, encode, score

    prompts = [encode(Tokenizer(), row) for row in ROWS[:6]]
    tiny.generation_config.eos_token_id = None
    batch = []
    for number, row in enumerate(prompts):
        ids = torch.tensor([row.ids[: row.start]])
        answer = tiny.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        answer = answer[0, row.start :].tolist()
        if number < 2:
            answer[number] = (answer[number] + 1) % 64  # no longer what greedy decoding says
        batch.append(Encoded((*row.ids[: row.start], *answer), row.start))
    found = score(tiny, batch, batch=4)
    assert found["exact_match"] == pytest.approx(4 / 6)
    losses = []
    for row in batch:
        with torch.no_grad():
            log_p = tiny(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        losses += [-log_p[at - 1, row.ids[at]].item() for at in range(row.start, len(row.ids))]
    assert found["nll"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_schedule_visits_every_row_once_an_epoch():
    from assets.build.train import schedule

    batches = schedule(24, steps=6, batch=8, seed=5)
    assert [len(batch) for batch in batches] == [8] * 6
    for epoch in (batches[:3], batches[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(24))
    assert batches == schedule(24, steps=6, batch=8, seed=5) != schedule(24, steps=6, batch=8, seed=6)


def test_interrupted_training_continues_to_the_same_adapter(tiny, tmp_path: Path):
    from assets.build.score import encode
    from assets.build.train import Run, Spec

    spec = Spec("tiny", "Tiny", 2, 4, seed=3, steps=14)
    rows = [encode(Tokenizer(), row) for row in ROWS]

    def run(work: Path, stop: int) -> Run:
        work.mkdir(exist_ok=True)
        made = Run(spec, tiny, Tokenizer(), work)
        made.resume()
        for step, _ in made.train(rows):
            if step == stop:
                made.save()
                break
        made.model.unload()
        return made

    whole = run(tmp_path / "whole", 14)
    run(tmp_path / "parts", 5)
    torch.manual_seed(99)
    parts = run(tmp_path / "parts", 14)
    assert parts.step == 14
    assert parts.losses == whole.losses
    for name, parameter in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[name], parameter, rtol=0, atol=0)
        assert parameter.abs().max() > 0


def test_export_is_what_peft_loads(tiny, tmp_path: Path):
    from peft import PeftModel

    from assets.build.score import answer_logits, encode
    from assets.build.train import Run, Spec

    rows = [encode(Tokenizer(), row) for row in ROWS]
    made = Run(Spec("tiny", "Tiny", 2, 4, seed=3, steps=3, rate=0.05), tiny, Tokenizer(), tmp_path)
    for _ in made.train(rows):
        pass
    made.export(tmp_path / "tiny")
    with torch.no_grad():
        scored, _ = answer_logits(made.model, rows[:4])
        base = made.model.unload()
        plain, _ = answer_logits(base, rows[:4])
        loaded, _ = answer_logits(PeftModel.from_pretrained(base, tmp_path / "tiny"), rows[:4])
    torch.testing.assert_close(loaded, scored, rtol=1e-4, atol=1e-5)
    assert (loaded - plain).abs().max() > 1e-3
