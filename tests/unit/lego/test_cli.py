"""The command line, as scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lego
from lego.__main__ import main
from tests.conftest import half_pair, write_peft

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two PEFT folders of different ranks."""
    q = "model.layers.0.self_attn.q_proj"
    one = write_peft(tmp_path / "one", half_pair(q, 4, seed=1), base_model_name_or_path="some/base")
    other = write_peft(tmp_path / "a=b", half_pair(q, 2, seed=2), r=2, base_model_name_or_path="some/base")
    return [str(one), str(other)]


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert {"sum", "average", "concat", "linear", "svd", "ties", "dare_ties", "lego"} <= set(listed)
    k = next(p for p in listed["lego"]["parameters"] if p["name"] == "k")
    assert (k["type"], k["default"]) == ("rank", "2r")
    assert all(p["help"] for method in listed.values() for p in method["parameters"])


def test_methods_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "-p density=0.5" in capsys.readouterr().out


def test_inspect(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", two[0], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["base_model"], facts["ranks"], facts["modules"][0]["scale"]) == ("some/base", [4], 2.0)
    assert main(["inspect", two[0]]) == 0
    assert "some/base" in capsys.readouterr().out


def test_merge_as_a_process(two: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lego", "merge", "-m", "lego", "-p", "k=3", "-p", "output_reweighting=false"]
    command += ["--seed", "5", "-o", str(out), f"{two[0]}=0.5", two[1]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "+0.5 × one" in done.stdout
    assert "norm ratio" in done.stdout
    merged = lego.read_adapter(out)
    assert (merged.ranks, merged.base_model) == ((3,), "some/base")
    recipe = lego.Recipe.from_yaml((out / "recipe.yaml").read_text())
    assert (recipe.seed, recipe.parameters["output_reweighting"]) == (5, False)


def test_a_path_with_an_equals_sign_is_a_path(two: list[str], tmp_path: Path) -> None:
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "x"), two[1]]) == 0
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "y"), f"{two[1]}=-1"]) == 0


BAD: list[tuple[Callable[[list[str]], list[str]], str]] = [
    (lambda two: ["-m", "nope", *two], "no merge method"),
    (lambda two: ["-m", "lego", "-p", "k", *two], "NAME=VALUE"),
    (lambda two: ["-m", "lego", "-p", "k=zero", *two], "number of units"),
    (lambda two: ["-m", "lego", "-p", "seed=3", *two], "no parameter 'seed'"),
    (lambda two: ["-m", "lego", two[0] + "=heavy"], "not a number"),
    (lambda two: ["-m", "lego", two[0] + "=0"], "all weights are 0"),
    (lambda two: ["-m", "lego", two[0] + "/nowhere"], "does not exist"),
    (lambda two: ["-m", "lego", two[0] + "/adapter_model.safetensors"], "is a file"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD)
def test_bad_input_is_exit_2_one_line_and_no_output(
    arguments: Callable[[list[str]], list[str]],
    reason: str,
    two: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["merge", "-o", str(tmp_path / "out"), *arguments(two)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_left_alone(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "out"), *two]) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_arguments_are_exit_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["merge"])
    assert stopped.value.code == 2
