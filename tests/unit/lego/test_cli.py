"""The command line, as scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import lego
import lego.run
from lego.__main__ import main
from lego.cli import outside
from lego.cli.merge import split_weight
from tests.conftest import half_pair, write_peft

ROOT = Path(__file__).parents[3]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two PEFT folders of different ranks."""
    one = write_peft(tmp_path / "one", half_pair(Q, 4, seed=1), base_model_name_or_path="some/base")
    other = write_peft(tmp_path / "a=b", half_pair(Q, 2, seed=2), r=2, base_model_name_or_path="some/base")
    return [str(one), str(other)]


@pytest.fixture
def merged(two: list[str], tmp_path: Path) -> Path:
    """A merge with its recipe."""
    assert main(["merge", "-m", "lego", "-p", "k=3", "--seed", "5", "-o", str(tmp_path / "out"), *two]) == 0
    return tmp_path / "out"


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert {"sum", "average", "concat", "linear", "svd", "ties", "dare_ties", "lego"} <= set(listed)
    k = next(p for p in listed["lego"]["parameters"] if p["name"] == "k")
    assert (k["type"], k["default"]) == ("rank", "2r")
    assert all(p["help"] for method in listed.values() for p in method["parameters"])
    assert main(["methods", "ties", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed["ties"]


def test_methods_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "-p density=0.5" in capsys.readouterr().out


def test_one_method_in_detail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "ties"]) == 0
    told, method = capsys.readouterr().out, lego.method("ties")
    assert method.paper
    for fact in (method.title, method.summary, method.paper, method.equations, "float, -10 to 10"):
        assert fact in told
    assert all(parameter.help in told and parameter.name in told for parameter in method.parameters)
    assert main(["methods", "tie"]) == 2


def test_inspect(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", two[0], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["base_model"], facts["ranks"], facts["modules"][0]["scale"]) == ("some/base", [4], 2.0)
    assert main(["inspect", two[0]]) == 0
    assert "some/base" in capsys.readouterr().out


def test_preflight_tells_each_and_says_no_by_its_status(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", *two]) == 0
    assert capsys.readouterr().out.count("can be merged") == 2
    dora = str(write_peft(tmp_path / "dora", half_pair(Q), use_dora=True))
    assert main(["preflight", two[0], dora, "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["adapter"], good["reasons"], good["ranks"], good["base_model"]) == (two[0], [], [4], "some/base")
    assert "DoRA" in " ".join(bad["reasons"])
    assert main(["preflight", dora]) == 1
    assert "because" in capsys.readouterr().out
    assert main(["preflight", str(tmp_path / "nowhere")]) == 2


def test_compare_knows_a_merge_among_its_sources(
    two: list[str], merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["compare", *two, str(merged), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapters"] == ["one", "a=b", "out"]
    report = json.loads((merged / "report.json").read_text())
    assert found["merges"][0]["relative_error"] == pytest.approx(report["relative_error"], rel=1e-2)
    assert main(["compare", *two]) == 0
    assert "cosine" in capsys.readouterr().out
    assert main(["compare", two[0]]) == 2


def test_merge_as_a_process(two: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lego", "merge", "-m", "lego", "-p", "k=3", "-p", "output_reweighting=false"]
    command += ["--seed", "5", "-o", str(out), f"{two[0]}=0.5", two[1]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "+0.5 × one" in done.stdout
    assert "norm ratio" in done.stdout
    assert done.stderr == ""
    merged = lego.read_adapter(out)
    assert (merged.ranks, merged.base_model) == ((3,), "some/base")
    recipe = lego.Recipe.from_yaml((out / "recipe.yaml").read_text())
    assert (recipe.seed, recipe.parameters["output_reweighting"]) == (5, False)


def test_startup_imports_nothing_heavy() -> None:
    code = (
        "import sys, lego.__main__ as m; m.main(['methods', '--json']); print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"transformers", "diffusers", "peft", "scipy", "sklearn", "ray", "backends", "huggingface_hub", "filelock"}
    assert not heavy & set(done.stderr.split())


def test_a_recipe_gives_what_its_arguments_give(two: list[str], merged: Path, tmp_path: Path) -> None:
    recipe = {"sources": ["one", {"path": "a=b"}], "method": "lego", "parameters": {"k": 3}, "seed": 5}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["merge", str(tmp_path / "my.yaml"), "-o", str(tmp_path / "again")]) == 0
    assert weights(tmp_path / "again") == weights(merged)


def test_what_is_given_beside_a_recipe_wins(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yaml").write_text("sources: [one]\nparameters: {k: 3}\nseed: 5\noutput: {dtype: float16}")
    command = ["merge", str(tmp_path / "my.yaml"), "-p", "k=2", "--seed", "7", "--dtype", "float32", "--json"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["parameters"]["k"], report["seed"], report["rank_max"]) == (2, 7, 2)
    assert {t.dtype.itemsize for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {4}


def test_the_format_may_be_chosen(two: list[str], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("sources: [one]\nmethod: sum")
    assert main(["merge", str(tmp_path / "my.yaml"), "--format", "nope", "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_path_with_an_equals_sign_is_a_path(two: list[str], tmp_path: Path) -> None:
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "x"), two[1]]) == 0
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "y"), f"{two[1]}=-1"]) == 0


def test_weights_by_patterns(two: list[str], tmp_path: Path) -> None:
    one, equal = two
    patterns = {"*": 0.5, "q_proj": 0.0, "*.layers.1.*": -2.0}
    assert split_weight(f"{one}=0.5,q_proj=0,*.layers.1.*=-2") == (one, patterns)
    assert split_weight(f"{equal}=q_proj=0.5") == (equal, {"q_proj": 0.5})
    assert split_weight(f"{equal}=3") == (equal, 3.0)
    assert split_weight(equal) == (equal, 1.0)
    assert split_weight("owner/name@main=0.5,q_proj=1") == ("owner/name@main", {"*": 0.5, "q_proj": 1.0})
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "out"), f"{one}=0.5,q_proj=2", equal]) == 0
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert written["sources"][0]["weight"] == {"*": 0.5, "q_proj": 2.0}


BAD: list[tuple[Callable[[list[str]], list[str]], str]] = [
    (lambda two: ["-m", "nope", *two], "no merge method"),
    (lambda two: ["-m", "lego", "-p", "k", *two], "NAME=VALUE"),
    (lambda two: ["-m", "lego", "-p", "k=zero", *two], "number of units"),
    (lambda two: ["-m", "lego", "-p", "seed=3", *two], "no parameter 'seed'"),
    (lambda two: ["-m", "lego", two[0] + "=heavy"], "not a number"),
    (lambda two: ["-m", "lego", two[0] + "=0.5,q_proj=heavy"], "not a number"),
    (lambda two: ["-m", "lego", two[0] + "=0.5,q_proj=1,q_proj=2"], "two weights for 'q_proj'"),
    (lambda two: ["-m", "lego", two[0] + "=0.5,0.7"], "two weights for '*'"),
    (lambda two: ["-m", "lego", two[0] + "=0.5,nothing=1"], "matches none of its modules"),
    (lambda two: ["-m", "lego", two[0] + "=0"], "all weights are 0"),
    (lambda two: ["-m", "lego", two[0] + "=nan"], "finite"),
    (lambda two: ["-m", "lego", two[0] + "/nowhere"], "does not exist"),
    (lambda two: ["-m", "lego", two[0] + "/adapter_config.json"], "adapter_config.json"),
    (lambda two: ["-m", "lego", "--device", "gpu", *two], "no device 'gpu'"),
    (lambda two: two, "no method given"),
    (lambda two: ["-m", "lego", "-p", "k=2", "-p", "k=3", *two], "parameter 'k' is given twice"),
    (lambda two: ["-m", "lego", "some.yaml"], "some.yaml: is a recipe, which names its method. Give it alone"),
    (lambda two: ["-m", "lego", "https://huggingface.co/some/lora"], "is the address of a page"),
    (lambda two: ["nowhere.yaml"], "nowhere.yaml: cannot be read"),
    (lambda two: ["-m", "sum", "--tune-strength", "nowhere.jsonl", *two], "nowhere.jsonl: cannot be read"),
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


def test_ctrl_c_is_one_line(
    two: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lego.run, "run_recipe", interrupted)
    assert main(["merge", "-m", "sum", "-o", "out", *two]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_without_the_app_the_hub_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'backends'", name="backends")

    monkeypatch.setattr(outside.pkgutil, "resolve_name", missing)
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "out"), "some/lora"]) == 2
    assert "the hub needs backends, which is not here" in capsys.readouterr().err


def test_verify_says_equal(merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "deep" / "renamed"
    moved.parent.mkdir()
    merged.rename(moved)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["verify", str(moved)]) == 0
    assert capsys.readouterr().out.startswith("equal: sha256 ")
    assert sorted(tmp_path.rglob("*")) == before


def test_verify_measures_changed_tensors(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = merged / "adapter_model.safetensors"
    tensors, header = load_file(file), (merged / "recipe.yaml").read_text()
    up = next(key for key in tensors if "lora_B" in key)
    tensors[up] = tensors[up] * 1.25
    save_file(tensors, file, metadata={"brickyard_recipe": header, "format": "pt"})
    capsys.readouterr()
    assert main(["verify", str(merged), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    # ΔW made again is 0.8 times what is there.
    assert found["errors"] == [{"module": Q, "relative_error": pytest.approx(0.2, rel=1e-2)}]
    assert found["again"] != found["sha256"]
    assert main(["verify", str(merged)]) == 1
    assert "more than rounding to float16" in capsys.readouterr().out
    assert main(["verify", str(merged), "--tolerance", "0.21"]) == 0


def test_verify_knows_equal_tensors_in_another_file(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = merged / "adapter_model.safetensors"
    header = (merged / "recipe.yaml").read_text()
    save_file(load_file(file), file, metadata={"brickyard_recipe": header, "format": "pt", "more": "words"})
    assert main(["verify", str(merged)]) == 1
    assert "the tensors are equal, the file around them is not" in capsys.readouterr().out


def test_verify_names_a_changed_source(two: list[str], merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = json.loads((merged / "report.json").read_text())["sources"][0]["sha256"]
    save_file(half_pair(Q, 4, seed=9), Path(two[0]) / "adapter_model.safetensors")
    new = lego.read_adapter(two[0]).sha256
    assert main(["verify", str(merged)]) == 1
    said = capsys.readouterr().out
    assert all(part in said for part in (f"source {two[0]}: has changed", old, new))


def test_verify_without_a_source_or_a_recipe_is_an_error(
    two: list[str], merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(two[1]).rename(Path(two[1]).with_name("gone"))
    assert main(["verify", str(merged)]) == 2
    assert f"{two[1]}: does not exist" in capsys.readouterr().err
    assert main(["verify", two[0]]) == 2
    assert f"{two[0]}: has no recipe.yaml. Give the folder of a merge." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("date: 2020-01-01", "2020-01-01"),
        ("date: .nan", "nan"),
        ("date: !!set {a}", ["a"]),
        ("2020-01-01: 3", None),
        ("date: {1: [2]}", {"1": [2]}),
    ],
)
def test_any_card_can_be_told_as_json(
    field: str, value: object, two: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(two[0]) / "README.md").write_text(f"---\n{field}\n---\n")
    assert main(["inspect", two[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"].get("date") == value


def test_a_card_with_aliases_is_refused(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (Path(two[0]) / "README.md").write_text("---\nlicense: &l [*l]\n---\n")
    assert main(["inspect", two[0], "--json"]) == 2
    assert "README.md: has front matter that is not valid YAML (an alias" in capsys.readouterr().err


def test_a_strength_was_tuned_for_one_seed(two: list[str], tmp_path: Path) -> None:
    tuned = {"rows": "0" * 64, "count": 3, "base": "some/base"}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"sources": two, "method": "dare_linear", "tuned_on": tuned}))
    for name, options, kept in (("same", [], True), ("other", ["--seed", "7"], False)):
        assert main(["merge", str(path), "-o", str(tmp_path / name), *options]) == 0
        assert (lego.Recipe.read(tmp_path / name / "recipe.yaml").tuned_on is not None) is kept


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "twice the strength": ({"lora_alpha": 6}, "1 modules differ, by a relative error of at most 0.5"),
    "another scaling": ({"use_rslora": True}, "has other values than the recipe makes: use_rslora"),
    "another base": (
        {"base_model_name_or_path": "else"},
        "other values than the recipe makes: base_model_name_or_path",
    ),
}


@pytest.mark.parametrize("changed", CONFIGS)
def test_verify_sees_a_config_that_changes_what_equal_weights_do(
    changed: str, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, told = CONFIGS[changed]
    config = json.loads((merged / "adapter_config.json").read_text())
    (merged / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    assert main(["verify", str(merged)]) == 1
    assert told in capsys.readouterr().out
    assert main(["verify", str(merged), "--tolerance", "0.4"]) == 1


def rewrite(merged: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a merge, its recipe kept in the header."""
    file = merged / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"brickyard_recipe": (merged / "recipe.yaml").read_text(), "format": "pt"})


def test_verify_measures_a_changed_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bias = f"base_model.model.{Q}.lora_B.bias"
    write_peft(tmp_path / "one", {**half_pair(Q), bias: torch.ones(24)}, lora_bias=True)
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "out"), str(tmp_path / "one")]) == 0
    rewrite(tmp_path / "out", lambda tensors: tensors[bias].mul_(2))
    assert main(["verify", str(tmp_path / "out"), "--tolerance", "0.4"]) == 1
    assert f"0.5  {Q}" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out"), "--tolerance", "0.6"]) == 0


def test_verify_of_another_shape_is_different(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        key = f"base_model.model.{Q}.lora_A.weight"
        tensors[key] = torch.cat([tensors[key]] * 2, 1)

    rewrite(merged, widen)
    assert main(["verify", str(merged), "--tolerance", "10"]) == 1
    assert f"inf  {Q}" in capsys.readouterr().out


@pytest.mark.parametrize("tolerance", ["inf", "nan", "-1"])
def test_a_tolerance_that_is_none(tolerance: str, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(merged), "--tolerance", tolerance]) == 2
    assert "a tolerance is a finite number from 0 on" in capsys.readouterr().err


def test_verify_refuses_a_report_that_is_none(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (merged / "report.json").write_text("{}")
    assert main(["verify", str(merged)]) == 2
    assert "report.json: is not the report of a merge" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_verify_of_single_files(form: str, tmp_path: Path) -> None:
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    a, b = half_pair(Q).values()
    save_file({key.format("A"): a, key.format("B"): b}, tmp_path / "one.safetensors")
    command = ["merge", "-m", "svd", "-p", "rank=2", "--format", form, "-o", str(tmp_path / "out")]
    assert main([*command, str(tmp_path / "one.safetensors")]) == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert main(["verify", str(moved)]) == 0
    assert lego.Recipe.read(moved / "recipe.yaml").output.format == form


def test_verify_compares_the_two_recipes(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = merged / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 5", "seed: 6"))
    assert main(["verify", str(merged)]) == 1
    assert "is not the one in recipe.yaml" in capsys.readouterr().out
