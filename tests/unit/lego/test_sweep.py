"""Sweeps: which points there are, what they make, and that they can be stopped at any moment."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import lego
from lego import AdapterError, Recipe
from lego.__main__ import main
from lego.points import Scorer, Settings, markdown, run_sweep
from lego.sweep import point_name, read_sweep, values_of
from tests.conftest import half_pair, write_peft

ROOT = Path(__file__).parents[3]
LAYERS = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Two adapters of two layers."""
    tensors = [{k: v for m in LAYERS for k, v in half_pair(m, 4, seed=seed + len(m)).items()} for seed in (1, 2)]
    return [write_peft(tmp_path / name, tensors[i]) for i, name in enumerate(("one", "two"))]


def write(tmp_path: Path, **fields: object) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"sources": ["one", "two"], "method": "lego", **fields}))
    return path


RANGES = {
    "4..16 | 4": (4, 8, 12, 16),
    "1..3": (1, 2, 3),
    "0..1 | 0.25": (0, 0.25, 0.5, 0.75, 1),
    "0.1..0.5|0.1": (0.1, 0.2, 0.3, 0.4, 0.5),
    "1..2 | 0.4": (1, 1.4, 1.8),
    "1..-1 | -1": (1, 0, -1),
    "5..5": (5,),
    "1e-1..2e-1 | 1e-1": (0.1, 0.2),
}


@pytest.mark.parametrize(("text", "values"), RANGES.items())
def test_ranges(text: str, values: tuple[float, ...]) -> None:
    found = values_of(text, "k", "x")
    assert found == values
    assert [type(value) for value in found or ()] == [type(value) for value in values]


def test_plain_values_are_no_axis() -> None:
    assert [values_of(value, "k", "x") for value in ("2r", "95%", 3, 0.5, "all", None, {"a": 1}, "1.5")] == [None] * 8


BAD = {
    "{parameters: {k: []}}": "k is an empty list",
    "{parameters: {k: 8..4}}": "k: the range '8..4' does not reach its end",
    "{parameters: {k: 4..8 | 0}}": "does not reach its end",
    "{parameters: {k: 4..8 | -1}}": "does not reach its end",
    "{parameters: {strength: 0..1 | 1e-9}}": "1,000,000,001 values, more than 10,000",
    "{parameters: {k: 1..200}, seed: 1..200}": "40,000 points, more than the 10,000 allowed",
    "{parameters: {k: [2, 2]}}": "k has the same value twice",
    "{parameters: {k: [4, 4.0]}}": "k=4 and k=4.0 are the same merge",
    "{parameters: {strength: [1, 1.0, 2]}}": "strength=1 and strength=1.0 are the same merge",
    "{parameters: {k: [2r, 2R]}}": "k=2r and k=2R are the same merge",
    "{parameters: {strength: 0..1e-400 | 1e-401}}": "numbers too large or too small",
    "{parameters: {strength: 1e99999999..1e9999999999}}": "numbers too large or too small",
    "{sources: [{path: one, weight: [1, 0]}, {path: two, weight: [1, 0]}]}": "all weights are 0 at weight-of-one=0",
    "{parameters: {k: [2, none]}}": "number of units",
    "{parameters: {density: [0.5, 1]}}": "has no parameter 'density'",
    "{seed: [a, b]}": "seed takes a whole number, not 'a'",
    "{method: [lego, nope]}": "no merge method 'nope'",
    "{sources: [{path: one, weight: [1, heavy]}]}": "sources[0].weight takes a number",
    "{sources: 3}": "sources takes a list",
    "{parameters: 3}": "parameters takes",
}


@pytest.mark.parametrize(("text", "reason"), BAD.items())
def test_bad_sweeps_end_before_the_first_merge(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, **yaml.safe_load(text))
    assert main(["sweep", str(path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_points_are_the_product_of_all_axes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        sources=["one", {"path": "two", "weight": "0..1 | 0.5"}, {"path": "a/two", "weight": {"q_proj": [1, -1]}}],
        parameters={"k": [2, "r"], "strength": 0.5},
        seed="0..1",
    )
    sweep = read_sweep(path)
    assert str(sweep) == (
        "k (2, r) × seed (0, 1) × weight of two 2 (0, 0.5, 1) × weight of two 3 q_proj (1, -1): 24 points"
    )
    wanted = set(itertools.product((2, "r"), (0, 1), (0, 0.5, 1), (1, -1)))
    found = [
        (p.recipe.parameters["k"], p.recipe.seed, p.recipe.sources[1].weight, p.recipe.sources[2].weight["q_proj"])  # type: ignore[index]
        for p in sweep.points
    ]
    assert set(found) == wanted
    assert len({point.name for point in sweep.points}) == len(found) == len(wanted)


def test_names_are_short_and_tell_points_apart() -> None:
    assert point_name({"k": "2r", "strength": 0.5}) == "k=2r,strength=0.5"
    assert point_name({}) == "point"
    a, b = (point_name({f"weight of {sign}/x": 1}) for sign in "*?")
    assert a != b
    assert "/" not in a
    assert len(point_name({f"parameter{i}": i for i in range(100)})) < 120


def test_a_sweep_makes_what_single_merges_make(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, parameters={"k": "2..4 | 2", "strength": [0.5, 1]}, seed=3)
    out = tmp_path / "out"
    assert main(["sweep", str(path), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("k (2, 4) × strength (0.5, 1): 4 points\n")
    assert shown.endswith((out / "table.md").read_text())
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["k"], row["strength"]) for row in rows] == [("2", "0.5"), ("2", "1"), ("4", "0.5"), ("4", "1")]
    for row in rows:
        alone = lego.merge(
            [lego.read_adapter(source) for source in sources],
            method="lego", seed=3, k=int(row["k"]), strength=float(row["strength"]),
        )  # fmt: skip
        assert alone.report is not None
        assert float(row["relative error"]) == pytest.approx(alone.report.relative_error)
        assert float(row["norm ratio"]) == pytest.approx(alone.report.norm_ratio)
        assert row["rank"] == row["k"]
        point = lego.read_adapter(out / row["folder"])
        assert point.ranks == (int(row["k"]),)
        assert int(row["bytes"]) == (out / row["folder"] / "adapter_model.safetensors").stat().st_size
        written = Recipe.read(out / row["folder"] / "recipe.yaml")
        assert (written.parameters["strength"], written.seed) == (float(row["strength"]), 3)
    assert main(["verify", str(out / rows[0]["folder"])]) == 0


def test_the_table_keeps_a_rank_that_was_asked_for(sources: list[Path], tmp_path: Path) -> None:
    path = write(tmp_path, method="svd", parameters={"rank": [2, "2r"]})
    assert main(["sweep", str(path), "-o", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    made = ["–".join(map(str, lego.read_adapter(tmp_path / "out" / row["folder"]).ranks)) for row in rows]
    assert [row["rank"] for row in rows] == ["2", "2r"]
    assert [row["rank of the merge"] for row in rows] == made


def test_a_name_with_a_bar_stays_in_its_cell() -> None:
    assert markdown([{"weight of a|b": 1}]) == "| weight of a\\|b |\n| --- |\n| 1 |\n"


def test_a_sweep_of_a_tuned_recipe_was_tuned_on_nothing(tmp_path: Path) -> None:
    tuned = {"rows": "0" * 64, "count": 3, "base": "some/base"}
    path = write(tmp_path, tuned_on=tuned, parameters={"strength": [0.5, 1]})
    assert [point.recipe.tuned_on for point in read_sweep(path).points] == [None, None]
    alone = read_sweep(write(tmp_path, tuned_on=tuned)).points[0].recipe.tuned_on
    assert alone is not None
    assert alone.count == 3


def test_a_recipe_without_axes_is_one_point(sources: list[Path], tmp_path: Path) -> None:
    assert main(["sweep", str(write(tmp_path)), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert (tmp_path / "out" / "point" / "recipe.yaml").is_file()


def inodes(out: Path) -> dict[str, int]:
    """Every point's weights file, told apart from one made again."""
    return {path.parent.name: path.stat().st_ino for path in out.glob("[!.]*/adapter_model.safetensors")}


def test_what_is_done_is_not_done_again(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(write(tmp_path, seed=[0, 1])), "-o", str(out)]) == 0
    before, table = inodes(out), (out / "table.csv").read_text()
    (out / "table.csv").unlink()
    assert main(["sweep", str(write(tmp_path, seed=[0, 1])), "-o", str(out)]) == 0
    assert (inodes(out), (out / "table.csv").read_text()) == (before, table)
    assert main(["sweep", str(write(tmp_path, seed=[0, 1, 2])), "-o", str(out)]) == 0
    after = inodes(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 3


@pytest.mark.parametrize("change", ["a parameter", "a source's file", "the format", "the base"])
def test_points_of_another_recipe_are_refused(
    sources: list[Path], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["sweep", str(write(tmp_path, seed=[0, 1])), "-o", out]) == 0
    fields: dict[str, dict[str, object]] = {
        "a parameter": {"parameters": {"k": 2}}, "the format": {"output": {"format": "kohya"}}, "the base": {"base_model": "a/b"}
    }  # fmt: skip
    if change in fields:
        path = write(tmp_path, seed=[0, 1], **fields[change])
    else:
        path = write(tmp_path, seed=[0, 1])
        write_peft(sources[0], half_pair(LAYERS[0], seed=9))
    assert main(["sweep", str(path), "-o", out]) == 2
    assert "seed=0: holds a point of another recipe" in capsys.readouterr().err


def test_a_folder_in_the_way_is_left_alone(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "seed=0").mkdir(parents=True)
    (tmp_path / "out" / "seed=0" / "mine.txt").write_text("mine")
    assert main(["sweep", str(write(tmp_path, seed=[0, 1])), "-o", str(tmp_path / "out")]) == 2
    assert [file.name for file in (tmp_path / "out" / "seed=0").iterdir()] == ["mine.txt"]


def test_two_sweeps_do_not_share_a_folder(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sweep = read_sweep(write(tmp_path))
    with FileLock(out / ".lock"), pytest.raises(AdapterError, match="another sweep is running in it"):
        run_sweep(sweep, Settings(out, sweep.folder))


def test_points_are_scored_once(sources: list[Path], tmp_path: Path) -> None:
    asked: list[str] = []

    def score(folder: Path) -> dict[str, float]:
        asked.append(folder.name)
        return {"exact": len(asked) / 10}

    sweep = read_sweep(write(tmp_path, seed=[0, 1]))
    out = tmp_path / "out"
    for of, count in ({"rows": "a"}, 2), ({"rows": "a"}, 2), ({"rows": "b"}, 4):
        lines = run_sweep(sweep, Settings(out, sweep.folder, scorer=Scorer(score, of)))
        assert len(asked) == count
        assert [line["exact"] for line in lines] == [(count - 1) / 10, count / 10]
    assert asked == ["seed=0", "seed=1"] * 2
    (out / "seed=0" / "scores.json").write_text("[]")
    with pytest.raises(AdapterError, match=r"scores\.json: holds no scores"):
        run_sweep(sweep, Settings(out, sweep.folder, scorer=Scorer(score, of)))
    assert "exact" in (out / "table.csv").read_text()
    assert "exact" not in run_sweep(sweep, Settings(out, sweep.folder))[0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_was_stopped_goes_on(sources: list[Path], tmp_path: Path, how: signal.Signals) -> None:
    path, out = write(tmp_path, seed="0..299"), tmp_path / "out"
    command = [sys.executable, "-m", "lego", "sweep", str(path), "-o", str(out)]
    # A job in the background ignores the interrupt, and so would what it starts.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    )
    try:
        started = time.monotonic()
        while len(inodes(out)) < 5 and running.poll() is None and time.monotonic() < started + 60:
            time.sleep(0.01)
        running.send_signal(how)
        assert running.stderr is not None
        said = running.stderr.read()
    finally:
        running.kill()
        running.wait()
    done = inodes(out)
    assert 5 <= len(done) < 300, "it should have been stopped midway"
    if how is signal.SIGINT:
        assert running.returncode == 130
        assert said.splitlines()[-1] == "stopped"
        assert "Traceback" not in said
    for name in done:
        assert json.loads((out / name / "report.json").read_text())["modules"] == 2
        assert lego.read_adapter(out / name)[LAYERS[1]].rank == 8
    # A merge that was killed while it wrote.
    left = out / ".seed=299.12345678"
    left.mkdir()
    (left / "adapter_model.safetensors").write_bytes(os.urandom(10))
    write(tmp_path, seed=f"0..{len(done) + 2}")
    assert main(["sweep", str(path), "-o", str(out)]) == 0
    write(tmp_path, seed=[0, 299])
    assert main(["sweep", str(path), "-o", str(out)]) == 0
    after = inodes(out)
    assert {name: after[name] for name in done} == done
    assert not [name for name in os.listdir(out) if name.startswith(".seed")]
