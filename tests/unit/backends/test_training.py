"""Rows as samples of gates: mixed by their shares, the same for the same seed; what trained gates choose and score."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import gates as store
from backends.bases import TextBase
from backends.gated import choices, scores
from backends.score import Example, score
from backends.training import Mixture, Training
from backends.training_text import text_batch
from backends.variants import Variant
from lego import AdapterError
from mole.losses import IGNORED
from mole.pool import Weighting
from mole.recipe import GateRecipe
from tests.tiny import tiny_entry

ROWS = [
    {"prompt": f"say {number}", "answer": "abc"[: 1 + number % 3], "split": "held_out" if number > 6 else "train"}
    for number in range(10)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def training(
    base: TextBase, tmp_path: Path, rows: Path, steps: int = 3, order: int = 1, lr: float = 0.02, **gates: Any
) -> Training:
    keys = [tiny_entry(tmp_path / f"lora{seed}", seed, rank).key for seed, rank in ((1, 4), (2, 2))][::order]
    options = {"steps": steps, "batch": 4, "calibration": 4, "lr": lr}
    document = {"sources": ["a", "b"], "data": [str(rows)], "gates": gates, "training": options}
    return Training(base, keys, GateRecipe.check(document, "test"))


def examples(name: int, count: int) -> list[Example]:
    return [Example(number, [name], [number]) for number in range(count)]


def test_samples_come_by_their_shares_and_each_row_before_any_again() -> None:
    sets, shares = [examples(0, 5), examples(1, 3), examples(2, 7)], [1.0, 2.0, 0.5]
    drawn = Mixture(sets, shares, "seed").take(0, 70)
    assert Counter(example.prompt[0] for example in drawn) == {0: 20, 1: 40, 2: 10}
    for start in range(0, 70, 7):
        counts = Counter(example.prompt[0] for example in drawn[start : start + 7])
        assert abs(counts[0] - 2) <= 1, "shares hold within a batch, not only in the long run"
    for name, size in ((0, 5), (1, 3), (2, 7)):
        numbers = [example.number for example in drawn if example.prompt[0] == name]
        for start in range(0, len(numbers) - size + 1, size):
            assert sorted(numbers[start : start + size]) == list(range(size))


def test_samples_depend_on_seed_and_place_alone() -> None:
    sets = [examples(0, 9), examples(1, 9)]
    first = Mixture(sets, [1, 1], 3)
    late = Mixture(sets, [1, 1], 3).take(24, 12)
    assert [first.take(start, 12) for start in (0, 12, 24)][2] == late
    assert Mixture(sets, [1, 1], 4).take(24, 12) != late


def test_gates_read_prompts_and_the_loss_reads_answers(base: TextBase) -> None:
    batch = text_batch(base, [Example(0, [5, 6, 7], [8, 9]), Example(1, [5], [9]), Example(2, [1, 2, 3, 4], [7, 8, 9])])
    assert batch.inputs["input_ids"].tolist() == [[0, 0, 5, 6, 7, 8], [0, 0, 0, 0, 0, 5], [1, 2, 3, 4, 7, 8]]
    assert batch.prompt.int().tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [[IGNORED, 8, 9], [IGNORED, IGNORED, 9], [7, 8, 9]]


def test_held_out_rows_are_never_trained_on(base: TextBase, tmp_path: Path, rows: Path) -> None:
    made = training(base, tmp_path, rows)
    assert len(made.samples.sets[0]) == 7
    only_held_out = tmp_path / "held.jsonl"
    only_held_out.write_text(json.dumps(ROWS[-1]) + "\n")
    with pytest.raises(AdapterError, match=r"held.jsonl: holds no rows but those of the split 'held_out'"):
        training(base, tmp_path, only_held_out)


def test_the_expected_time_is_that_of_the_steps_and_the_calibration(
    base: TextBase, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("backends.training.time.perf_counter", lambda: next(clock))  # a forward pass takes a second
    seconds = [training(base, tmp_path, rows, steps).expected_seconds() for steps in (3, 6)]
    assert seconds[1] - seconds[0] == pytest.approx(3 * 4 * 3.2 / 2)  # two samples a pass; back takes 2.2 times as long
    centred, plain = (
        training(base, tmp_path, rows, 3, normalise=kind).expected_seconds() for kind in ("centred", "l2")
    )
    assert centred - plain == pytest.approx(4 / 2)


def test_choices_of_a_prompt_do_not_depend_on_the_others(base: TextBase, tmp_path: Path, rows: Path) -> None:
    made = training(base, tmp_path, rows, base_expert=True)
    list(made.run())
    entry = made.add("mine")
    together = choices(base, entry, ["say 7", "a longer prompt", "x"])
    assert together.sites == ("model.layers.0", "model.layers.1")
    assert together.experts == (*entry.experts, "base")
    torch.testing.assert_close(together.choices.sum(dim=2), torch.ones(2, 3))
    for number, prompt in enumerate(("say 7", "a longer prompt", "x")):
        alone = choices(base, entry, [prompt])
        torch.testing.assert_close(alone.choices[:, 0], together.choices[:, number])
    masked = choices(base, entry, ["x"], (entry.experts[0],))
    assert masked.choices[0, 0, 0] == 0
    kept = together.choices[0, 2, 1:]  # the first gate sees the same with and without a mask
    torch.testing.assert_close(masked.choices[0, 0, 1:], kept / kept.sum())
    with pytest.raises(AdapterError, match="there is no prompt"):
        choices(base, entry, [])


def test_scores_are_those_of_each_variant(base: TextBase, tmp_path: Path, rows: Path) -> None:
    made = training(base, tmp_path, rows)
    list(made.run())
    entry = made.add("mine")
    found = scores(base, entry, masked=["lora1"])["rows"]
    assert found.names == ("Base", "lora1", "lora2", "Average", "mine", "mine without lora1")
    first, second = entry.experts
    held_out = [row for row in ROWS if row["split"] == "held_out"]
    for name, weighting in (
        ("Average", Weighting(((first, 0.5), (second, 0.5)))),
        ("mine without lora1", entry.weighting((first,))),
        ("lora2", Weighting(((second, 1.0),))),
    ):
        *_, alone = score(base, [Variant("it", weighting)], held_out)
        place = found.names.index(name)
        assert (found.hits[place], found.nll[place]) == (alone.hits[0], pytest.approx(alone.nll[0], rel=1e-5))
    assert found.nll[5] == pytest.approx(found.nll[2], rel=1e-5), "all but one masked is that one"


def test_what_learned_otherwise_is_not_gone_on_with(base: TextBase, tmp_path: Path, rows: Path) -> None:
    made = training(base, tmp_path, rows)
    list(made.run())
    made.save(tmp_path / "gates")
    training(base, tmp_path, rows, steps=5).resume(tmp_path / "gates")
    moved = rows.with_name("moved.jsonl")
    moved.write_bytes(rows.read_bytes())
    training(base, tmp_path, moved).resume(tmp_path / "gates")
    with pytest.raises(AdapterError, match="other gates than the recipe's"):
        training(base, tmp_path, rows, granularity="module").resume(tmp_path / "gates")
    with pytest.raises(AdapterError, match=r"learned with lr 0\.02, where the recipe says 0\.01"):
        training(base, tmp_path, rows, lr=0.01).resume(tmp_path / "gates")
    with pytest.raises(AdapterError, match="the LoRAs lora1, lora2, where the recipe has lora2, lora1"):
        training(base, tmp_path, rows, order=-1).resume(tmp_path / "gates")
    moved.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + "\n")
    with pytest.raises(AdapterError, match="other data than the recipe's"):
        training(base, tmp_path, moved).resume(tmp_path / "gates")
    (tmp_path / "gates" / "training.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"training.safetensors: is not a readable safetensors file"):
        training(base, tmp_path, rows).resume(tmp_path / "gates")
    assert store.add_folder(tmp_path / "gates").saved.steps == 3, "gates without their training's state still run"
