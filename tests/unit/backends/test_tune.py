"""The strength that is best on rows: against scores of densely merged models, and from the command line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lego
from backends import bases, library, score, tune
from backends.bases import TextBase
from backends.rows import Rows, read_rows
from backends.tune import Trial, best_strength, score_at
from lego import AdapterError, Recipe
from lego.__main__ import main
from tests.conftest import write_peft
from tests.tiny import merged, tiny_base, tiny_tensors

PROMPTS = ["What is it?", "Who goes there?", "How many are there?", "Why?", "Where?", "When?"]


@pytest.fixture
def base() -> TextBase:
    return tiny_base()


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    folders = [write_peft(tmp_path / f"source{i}", tiny_tensors(i), r=4, lora_alpha=2) for i in (1, 2)]
    return [str(folder) for folder in folders]


@pytest.fixture
def rows(base: TextBase, sources: list[str], tmp_path: Path) -> Path:
    """Two greedy tokens of the sum of the sources at strength 0.6, as a file; any token may end an answer."""
    keys = {library.add_folder(source).key: 0.6 for source in sources}
    model, lines = merged(base.model, keys), []
    for prompt in PROMPTS:
        ids = torch.tensor([base.tokenizer(f"user: {prompt}\na: ")["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
        lines.append({"prompt": prompt, "answer": base.tokenizer.decode(out[0, ids.shape[1] :])})
    base.model.generation_config.eos_token_id = list(range(base.model.config.vocab_size))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def summed(sources: list[str], out: Path) -> Path:
    lego.merge_into(out, [lego.read_adapter(source) for source in sources], method="sum", dtype=torch.float32)
    return out


def test_a_trial_is_the_score_of_the_model_merged_at_that_strength(
    base: TextBase, sources: list[str], rows: Path, tmp_path: Path
) -> None:
    found = score_at(base, summed(sources, tmp_path / "sum"), read_rows(rows), [0.3, 0.6])
    for trial in found:
        model = merged(base.model, {library.add_folder(source).key: trial.strength for source in sources})
        alone = replace(base, model=model)
        *_, dense = score.score(alone, [score.Variant("dense")], read_rows(rows).rows)
        assert trial.exact == dense.exact[0]
        assert trial.nll == pytest.approx(dense.nll[0], rel=1e-4)


def test_the_strength_that_made_the_rows_is_found(
    base: TextBase, sources: list[str], rows: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    strength, trials = best_strength(
        base,
        summed(sources, tmp_path / "sum"),
        read_rows(rows),
        (0.2, 0.5, 1.0),
        lambda done, of: seen.append((done, of)),
    )
    by_strength = {trial.strength: trial for trial in trials}
    assert list(by_strength) == sorted(by_strength)
    assert {0.2, 0.5, 1.0} < set(by_strength)
    assert by_strength[strength].quality == max(trial.quality for trial in trials)
    assert abs(strength - 0.6) <= 0.15
    assert by_strength[strength].exact > by_strength[0.2].exact
    assert [done for done, _ in seen] == list(range(len(trials)))


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Any) -> None:
    monkeypatch.setattr(tune, "score_at", lambda base, folder, rows, at: [Trial(s, *scores(s)) for s in at])


def test_ties_are_broken_by_the_loss_and_the_ends_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    some, rows = Path("x"), Rows((), "")
    scripted(monkeypatch, lambda s: (0.5, abs(s - 0.4)))
    strength, trials = best_strength(None, some, rows, (0.2, 0.5, 1.0))  # type: ignore[arg-type]
    assert [trial.strength for trial in trials] == [0.2, 0.275, 0.35, 0.425, 0.5, 0.75, 1.0]
    assert strength == 0.425
    scripted(monkeypatch, lambda s: (s, 1.0))
    assert best_strength(None, some, rows, (0.5, 1.0))[0] == 2.25  # type: ignore[arg-type]
    scripted(monkeypatch, lambda s: (-s, 1.0))
    assert best_strength(None, some, rows, (0.5, 1.0))[0] == 0.125  # type: ignore[arg-type]


BAD = {
    "": "holds no rows",
    "{": "line 1: is not JSON",
    '{"prompt": "a", "answer": "b"}\n\n["a"]': "line 3: is not a row",
    '{"prompt": "a"}': "line 1: is not a row",
    '{"prompt": "a", "answer": 3}': "line 1: is not a row",
    '{"prompt": "a", "answer": "b", "split": "tune"}\n{"prompt": "a", "answer": "b", "split": "held_out"}': (
        r"holds rows of several splits \(tune, held_out\).*--split"
    ),
}


@pytest.mark.parametrize(("text", "reason"), BAD.items(), ids=range(len(BAD)))
def test_bad_rows_are_named(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(AdapterError, match=reason):
        read_rows(path)


def test_rows_of_one_split(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": s, "answer": "b", "split": s}) + "\n" for s in ("tune", "test")))
    found = read_rows(path, "tune")
    assert [row["prompt"] for row in found.rows] == ["tune"]
    assert (found.sha256, found.split) == (hashlib.sha256(path.read_bytes()).hexdigest(), "tune")
    with pytest.raises(AdapterError, match="holds no rows of the split 'train'"):
        read_rows(path, "train")


def test_the_command_writes_the_strength_and_what_it_was_chosen_on(
    base: TextBase, sources: list[str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(bases, "load_base", lambda id: base if id == "tiny" else None)
    out = tmp_path / "out"
    command = ["merge", "-m", "sum", "--tune-strength", str(rows), "--base", "tiny", "-o", str(out), *sources]
    assert main(command) == 0
    shown = capsys.readouterr().out
    recipe = Recipe.read(out / "recipe.yaml")
    strength = recipe.parameters["strength"]
    assert next(line for line in shown.splitlines() if line.endswith("best")).split()[0] == f"{strength:g}"
    assert recipe.tuned_on is not None
    assert recipe.tuned_on.model_dump() == {
        "rows": hashlib.sha256(rows.read_bytes()).hexdigest(), "count": len(PROMPTS), "split": None, "base": "tiny",
    }  # fmt: skip
    wanted, _ = best_strength(base, summed(sources, tmp_path / "sum"), read_rows(rows))
    assert strength == wanted
    expected = lego.merge([lego.read_adapter(source) for source in sources], method="sum", strength=wanted)
    written = lego.read_adapter(out)
    for module in expected.modules:
        torch.testing.assert_close(written[module].delta(), expected[module].delta(), rtol=5e-3, atol=5e-3)
    assert main(["verify", str(out)]) == 0


def test_a_sweep_is_scored_on_rows(
    base: TextBase, sources: list[str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(bases, "load_base", lambda id: base if id == "tiny" else None)
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"sources": sources, "method": "sum", "parameters": {"strength": [0.2, 0.6]}}))
    out = str(tmp_path / "out")
    assert main(["sweep", str(path), "-o", out, "--rows", str(rows), "--base", "tiny", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    trials = score_at(base, summed(sources, tmp_path / "sum"), read_rows(rows), [0.2, 0.6])
    assert [line["exact"] for line in table] == [trial.exact for trial in trials]
    assert [line["loss"] for line in table] == pytest.approx([trial.nll for trial in trials], rel=1e-2)
