"""``python -m mole``: recipe to gates, gates to text and scores; bad input in one line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from mole import checkpoint, cli
from mole.__main__ import main
from mole.checkpoint import load_gates, read_tensors
from mole.train import Progress
from tests.conftest import write_peft
from tests.processes import two_processes
from tests.tiny import tiny_model, tiny_tensors, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base, two LoRAs of different ranks, rows, and a recipe for them, in one folder."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    for seed, rank in ((1, 4), (2, 2)):
        write_peft(tmp_path / f"lora{seed}", tiny_tensors(seed, rank), r=rank, lora_alpha=2)
    splits = ["train"] * 6 + ["held_out"] * 2
    rows = [{"prompt": f"say {n}", "answer": "ab"[n % 2] * 3, "split": split} for n, split in enumerate(splits)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_recipe(tmp_path / "recipe.yaml")
    return tmp_path


def write_recipe(path: Path, **changes: object) -> Path:
    """The recipe, changed at its top level."""
    training = {"steps": 4, "batch": 3, "calibration": 4, "lr": 0.01}
    recipe = {
        "base": str(path.parent / "base"),
        "sources": ["lora1", "lora2"],
        "data": ["rows.jsonl"],
        "training": training,
    }
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def test_from_a_recipe_to_text_and_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "gates"
    assert main(["train", str(place / "recipe.yaml"), "-o", str(out)]) == 0
    assert "2 gates" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {
        "gates.safetensors", "gate_config.json", "training.safetensors", "recipe.yaml", "README.md"
    }  # fmt: skip
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in out.iterdir())

    assert main(["generate", str(out), "--prompt", "say 7", "--prompt", "say 8", "--tokens", "5"]) == 0
    plain = capsys.readouterr().out
    assert (
        main(["generate", str(out), "--prompt", "say 7", "--prompt", "say 8", "--tokens", "5", "--mask", "lora1"]) == 0
    )
    assert capsys.readouterr().out != plain

    assert main(["eval", str(out), "--mask", "lora2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "Base",
        "lora1",
        "lora2",
        "Average",
        "gates",
        "gates without lora2",
    ]
    assert lines[0].split()[-2:] == ["rows", "mean"]

    assert main(["show", str(out)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["steps"] == 4
    assert main(["show", str(out), "--prompt", "say 7"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["gate", "lora1", "lora2"]
    assert [row[0] for row in table[1:]] == ["model.layers.0", "model.layers.1"]
    assert all(float(row[1]) + float(row[2]) == pytest.approx(1, abs=0.011) for row in table[1:])


def test_the_recipe_that_gates_carry_makes_them_again(place: Path) -> None:
    assert main(["train", str(place / "recipe.yaml"), "-o", str(place / "one")]) == 0
    assert main(["train", str(place / "one" / "recipe.yaml"), "-o", str(place / "two")]) == 0
    one, two = (read_tensors(place / name / checkpoint.WEIGHTS) for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_checkpoint_goes_on_where_it_was(place: Path) -> None:
    assert main(["train", str(place / "recipe.yaml"), "-o", str(place / "whole"), "--every", "2"]) == 0
    step = place / "whole.step2"
    assert checkpoint.read_config(step).steps == 2
    assert main(["train", str(place / "recipe.yaml"), "-o", str(place / "rest"), "--resume", str(step)]) == 0
    whole, rest = (read_tensors(place / name / checkpoint.TRAINING) for name in ("whole", "rest"))
    assert set(whole) == set(rest)
    assert all(torch.equal(whole[key], rest[key]) for key in whole)


def test_two_processes_write_one_folder(place: Path) -> None:
    """``accelerate launch -m mole train``: the first process writes and speaks, and what it writes is what one alone learns."""
    assert main(["train", str(place / "recipe.yaml"), "-o", str(place / "one")]) == 0
    arguments = ["train", str(place / "recipe.yaml"), "-o", str(place / "two"), "--every", "3"]
    first, second = two_processes("-m", "mole", *arguments)
    assert "two: 2 gates" in first
    assert "loss" in first
    assert "loss" not in second
    assert sorted(path.name for path in place.glob("two*")) == ["two", "two.step3"]
    one, two = (read_tensors(place / name / checkpoint.WEIGHTS) for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_ctrl_c_keeps_what_was_learned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(place / "long.yaml", training={"steps": 100_000, "batch": 2, "calibration": 2, "seed": 3})
    told = cli.line

    def press(progress: Progress, first: Progress) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return told(progress, first)

    monkeypatch.setattr(cli, "line", press)
    assert main(["train", str(recipe), "-o", str(place / "stopped")]) == 0
    assert 0 < checkpoint.read_config(place / "stopped").steps < 100_000
    assert load_gates(place / "stopped").parameter_count > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    {
        "no such file": ({"data": ["nothing.jsonl"]}, "neither a file nor a built-in task"),
        "no data": ({"data": []}, "data"),
        "bad row": ({"data": ["bad.jsonl"]}, 'bad.jsonl, line 1: is not a row: it takes {"prompt"'),
        "all held out": ({"data": [{"rows": "rows.jsonl", "split": "none"}]}, "no rows of the split 'none'"),
        "changed rows": ({"data": [{"rows": "rows.jsonl", "sha256": "0" * 64}]}, "has changed"),
        "one LoRA": ({"sources": ["lora1"]}, "one LoRA leaves nothing to choose"),
        "twice": ({"sources": ["lora1", "lora1"]}, "named twice"),
        "a weight": ({"sources": [{"path": "lora1", "weight": 2}, "lora2"]}, "gates decide that"),
        "another LoRA": ({"sources": [{"path": "lora1", "sha256": "0" * 64}, "lora2"]}, "has changed"),
        "no LoRA": ({"sources": ["nowhere", "lora1"]}, "neither a file or folder nor a built-in adapter"),
        "a built-in LoRA of another base": ({"sources": ["kind", "lora1"]}, "different bases"),
        "unknown field": ({"gates": {"size": 3}}, "has no field 'size'"),
        "bad granularity": ({"gates": {"granularity": "head"}}, "granularity"),
        "bad steps": ({"training": {"steps": 0}}, "steps"),
    }.values(),
)
def test_bad_recipes_are_one_line(
    place: Path, changes: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.jsonl").write_text('{"prompt": "a"}\n')
    recipe = write_recipe(place / "other.yaml", **changes)
    assert main(["train", str(recipe), "-o", str(place / "gates")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error
    assert not (place / "gates").exists()


def test_what_does_not_fit_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "gates"
    assert main(["train", str(place / "recipe.yaml"), "-o", str(out)]) == 0
    for arguments, told in (
        (["train", str(place / "recipe.yaml"), "-o", str(out)], "exists already"),
        (["generate", str(place), "--prompt", "a"], "holds no trained gates"),
        (["generate", str(out), "--prompt", "a", "--mask", "nobody"], "is not among the gates' experts"),
        (["generate", str(out), "--prompt", "a", "--mask", "lora1", "lora2"], "every expert is masked"),
        (["eval", str(out), "--rows", str(place / "none.jsonl")], "neither a file nor a built-in task"),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err
    write_peft(place / "lora2", tiny_tensors(9, 2), r=2, lora_alpha=2)
    assert main(["generate", str(out), "--prompt", "a"]) == 2
    assert "has changed" in capsys.readouterr().err
