"""Many variants in one batch against each of them alone, on a tiny model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import decode as decoding
from backends import library
from backends.bases import TextBase
from backends.errors import BaseError
from backends.text import Grid, Sampling, Variant, generate
from backends.variants import pool_of
from lego import AdapterError
from mole.live import Live, Weighting
from tests.conftest import half_pair, write_peft
from tests.tiny import END, merged, tiny_base, tiny_entry, tiny_gpt2

PROMPTS = ["Hello", "What is this?", "a", "one two three four five"]
GREEDY = Sampling(max_new_tokens=20, chat=False)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)


@pytest.fixture
def base() -> TextBase:
    return tiny_base()


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    first, second = tiny_entry(tmp_path / "first", 1).key, tiny_entry(tmp_path / "second", 2, rank=2, alpha=3).key
    mute = frozenset({(first, "model.layers.0.mlp.up_proj", unit) for unit in range(4)})
    return [
        Variant("base"),
        Variant("first", Weighting(((first, 1.0),))),
        Variant("second", Weighting(((second, 1.0),))),
        Variant("both", Weighting(((first, 0.5), (second, -0.7)))),
        Variant("muted", Weighting(((first, 1.0),), mute)),
    ]


def last(grids: Iterator[Grid]) -> Grid:
    return list(grids)[-1]


def alone(base: TextBase, variant: Variant, prompt: str, most: int = 20) -> str:
    """What transformers' own generate gives for the densely merged model."""
    model = merged(base.model, dict(variant.weighting.adapters))
    ids = torch.tensor([base.tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def hooks(base: TextBase) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.model.modules())


def test_greedy_texts_are_those_of_the_merged_models_alone(base: TextBase, variants: list[Variant]) -> None:
    grid = last(generate(base, variants, PROMPTS, GREEDY))
    for v, variant in enumerate(variants[:4]):
        for p, prompt in enumerate(PROMPTS):
            assert grid.texts[v][p] == alone(base, variant, prompt), (variant.name, prompt)
    assert len({text for row in grid.texts for text in row}) > 12, "the variants must differ for this to tell anything"
    assert grid.finished
    assert all(all(row) for row in grid.ended)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_a_text_does_not_depend_on_its_neighbours(base: TextBase, variants: list[Variant], sampling: Sampling) -> None:
    grid = last(generate(base, variants, PROMPTS, sampling))
    for v, variant in enumerate(variants):
        assert last(generate(base, [variant], PROMPTS, sampling)).texts[0] == grid.texts[v]
    assert last(generate(base, variants, PROMPTS[:1], sampling)).texts == tuple(row[:1] for row in grid.texts)


def test_muting_every_unit_of_an_adapter_gives_the_base(base: TextBase, variants: list[Variant]) -> None:
    key = variants[1].weighting.adapters[0][0]
    every = frozenset({(key, module, unit) for module in pool_of(base, variants[1:2]).modules for unit in range(4)})
    silent = Variant("silent", Weighting(((key, 1.0),), every))
    grid = last(generate(base, [variants[0], silent, variants[1], variants[4]], PROMPTS, GREEDY))
    assert grid.texts[1] == grid.texts[0]
    assert grid.texts[2] != grid.texts[0]
    assert grid.texts[3] != grid.texts[2]


def test_equal_variants_share_their_noise_and_seeds_differ(base: TextBase, variants: list[Variant]) -> None:
    grid = last(generate(base, [variants[1], replace(variants[1], name="again")], PROMPTS, DRAWN))
    assert grid.texts[0] == grid.texts[1]
    assert last(generate(base, variants[1:2], PROMPTS, replace(DRAWN, seed=8))).texts[0] != grid.texts[0]
    assert last(generate(base, variants[1:2], PROMPTS, DRAWN)).texts[0] == grid.texts[0]


def test_texts_stream_token_by_token(base: TextBase, variants: list[Variant]) -> None:
    grids = list(generate(base, variants, PROMPTS, GREEDY))
    assert [list(row) for row in grids[0].tokens] == [[1, 0, 0, 0]] * len(variants), "the first prompt is read first"
    assert len(grids) == 1 + max(max(row) for row in grids[-1].tokens)
    for before, after in pairwise(grids):
        for v in range(len(variants)):
            for p in range(len(PROMPTS)):
                assert after.texts[v][p].startswith(before.texts[v][p])
                assert after.tokens[v][p] - before.tokens[v][p] in (0, 1)
    assert [len(text) for row in grids[-1].texts for text in row] == [n for row in grids[-1].tokens for n in row]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_that_the_first_prompt_is_read_first_changes_no_text(
    base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    for prompts in (PROMPTS, PROMPTS[::-1]):  # shorter and longer than the others
        early = last(generate(base, variants, prompts, sampling))
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "stages", lambda base, rows, variants: [slice(0, len(rows))])
            assert last(generate(base, variants, prompts, sampling)).texts == early.texts


def test_the_end_token_ends_a_text_and_is_not_shown(base: TextBase, variants: list[Variant]) -> None:
    free = last(generate(base, variants, PROMPTS, GREEDY))
    common = max("abcdefghijklmnopqrstuvwxyz", key="".join(text for row in free.texts for text in row).count)
    base.model.generation_config.eos_token_id = [base.tokenizer.eos_token_id, base.tokenizer(common)["input_ids"][0]]
    ended = last(generate(base, variants, PROMPTS, GREEDY))
    for v in range(len(variants)):
        for p in range(len(PROMPTS)):
            assert ended.texts[v][p] == free.texts[v][p].split(common)[0]
    assert {len(text) for row in ended.texts for text in row} != {20}
    assert END not in "".join(text for row in ended.texts for text in row)


def test_ended_rows_leave_the_batch(base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    widths = watch_forward(base, monkeypatch)
    free = last(generate(base, variants, PROMPTS, GREEDY))
    common = max("abcdefghijklmnopqrstuvwxyz", key="".join(text for row in free.texts for text in row).count)
    base.model.generation_config.eos_token_id = [base.tokenizer.eos_token_id, base.tokenizer(common)["input_ids"][0]]
    widths.clear()
    ended = last(generate(base, variants, PROMPTS, GREEDY))
    assert widths[:2] == [5, 15]
    assert widths[2] > widths[-1]
    assert [text for row in ended.texts for text in row] == [
        text.split(common)[0] for row in free.texts for text in row
    ]


def watch_forward(
    base: TextBase, monkeypatch: pytest.MonkeyPatch, most: Callable[[int], int] | None = None
) -> list[int]:
    """Rows of every forward pass; one with more than ``most(pass)`` runs out of memory."""
    forward, widths = base.model.forward, []

    def watched(input_ids: torch.Tensor, **named: Any) -> Any:
        if most is not None and len(input_ids) > most(len(widths)):
            widths.append(-len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        widths.append(len(input_ids))
        return forward(input_ids=input_ids, **named)

    base.accepts  # noqa: B018 - remembered before the signature is hidden
    monkeypatch.setattr(base.model, "forward", watched)
    return widths


def test_batches_are_split_by_memory(base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = last(generate(base, variants, PROMPTS, DRAWN))
    monkeypatch.setattr(decoding, "rows_at_once", lambda base, tokens: 3)
    widths = watch_forward(base, monkeypatch)
    assert last(generate(base, variants, PROMPTS, DRAWN)).texts == whole.texts
    assert max(widths) == 3


@pytest.mark.parametrize("fails_at", [0, 9])
def test_running_out_of_memory_halves_the_batch_and_goes_on(
    base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    whole = last(generate(base, variants, PROMPTS, DRAWN))
    widths = watch_forward(base, monkeypatch, lambda step: 6 if step >= fails_at else 99)
    grids = list(generate(base, variants, PROMPTS, DRAWN))
    assert grids[-1].texts == whole.texts
    assert min(widths) < -6
    assert len(grids) > 20
    assert hooks(base) == 0


def test_one_row_too_large_for_memory_is_an_error(base: TextBase, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_forward(base, monkeypatch, lambda step: 0)
    with pytest.raises(BaseError, match="one text alone does not fit into memory"):
        last(generate(base, [Variant("base")], PROMPTS, GREEDY))
    assert hooks(base) == 0


def test_stop_is_heard_at_every_token(base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    widths, stop = watch_forward(base, monkeypatch), threading.Event()
    grids = []
    for grid in generate(base, variants, PROMPTS, GREEDY, stop):
        grids.append(grid)
        if len(grids) == 3:
            stop.set()
    assert len(grids) == len(widths) == 3
    assert not grids[-1].finished
    assert hooks(base) == 0


def test_an_abandoned_generator_leaves_the_base_alone(base: TextBase, variants: list[Variant]) -> None:
    running = generate(base, variants, PROMPTS, GREEDY)
    next(running)
    assert hooks(base) == 0
    assert not base.lock.locked()
    assert not torch.is_inference_mode_enabled()


def test_two_visitors_take_turns(base: TextBase, variants: list[Variant]) -> None:
    wanted = [last(generate(base, chosen, PROMPTS, GREEDY)).texts for chosen in (variants[:2], variants[2:])]
    one, two = generate(base, variants[:2], PROMPTS, GREEDY), generate(base, variants[2:], PROMPTS, GREEDY)
    pairs = list(zip(one, two, strict=False))
    assert [grid.texts for grid in pairs[-1]] == wanted


def test_visitors_in_threads_do_not_disturb_each_other(base: TextBase, variants: list[Variant]) -> None:
    wanted = [last(generate(base, [variant], PROMPTS, GREEDY)).texts for variant in variants]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = last(generate(base, [variants[i]], PROMPTS, GREEDY)).texts

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(variants))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(variants))] == wanted


def test_the_chat_template_and_the_system_message_are_used(base: TextBase) -> None:
    chat = last(generate(base, [Variant("base")], ["Hello"], replace(GREEDY, chat=True)))
    assert chat.texts[0][0] == alone(base, Variant("base"), "user: Hello\na: ")
    system = last(generate(base, [Variant("base")], ["Hello"], replace(GREEDY, chat=True, system="Be brief")))
    assert system.texts[0][0] == alone(base, Variant("base"), "system: Be brief\nuser: Hello\na: ")


def test_bad_requests_are_refused(base: TextBase, variants: list[Variant]) -> None:
    with pytest.raises(AdapterError, match="nothing to generate"):
        last(generate(base, [], PROMPTS))
    with pytest.raises(AdapterError, match="nothing to generate"):
        last(generate(base, variants, []))
    with pytest.raises(BaseError, match="prompt 2 has 128 tokens, but the base reads at most 128"):
        last(generate(base, variants, ["a", "a" * 128], GREEDY))
    with pytest.raises(AdapterError, match="there is no adapter with this key"):
        last(generate(base, [Variant("gone", Weighting((("0123456789ab", 1.0),)))], PROMPTS))
    base.tokenizer.chat_template = None
    with pytest.raises(BaseError, match="has no chat template"):
        last(generate(base, variants, PROMPTS))


def test_positions_are_counted_without_the_padding() -> None:
    base = tiny_base(model=tiny_gpt2())  # learns a vector for every position, unlike the rotary models
    grid = last(generate(base, [Variant("base")], PROMPTS, GREEDY))
    assert list(grid.texts[0]) == [alone(base, Variant("base"), prompt) for prompt in PROMPTS]


def test_the_context_limits_the_answer(base: TextBase) -> None:
    grid = last(generate(base, [Variant("base")], ["a" * 120], GREEDY))
    assert grid.tokens[0][0] == 8


def test_an_adapter_of_another_base_is_told_by_name(base: TextBase, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "stranger", half_pair("model.layers.0.self_attn.q_proj", d_in=48, d_out=48))
    key = library.add_folder(folder).key
    with pytest.raises(
        AdapterError,
        match=r"stranger: module model\.layers\.0\.self_attn\.q_proj is 48 × 48 in the adapter but 24 × 24",
    ):
        last(generate(base, [Variant("x", Weighting(((key, 1.0),)))], PROMPTS, GREEDY))


def test_hooks_are_in_effect_during_the_forward_pass_only(
    base: TextBase, variants: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = []
    monkeypatch.setattr(Live, "_note_pass", lambda self, *args: inside.append(hooks(base)))
    outside = [hooks(base) for _ in generate(base, variants, PROMPTS, GREEDY)]
    assert set(outside) == {0}
    assert min(inside) > 0
