"""Recipes as people write them: short forms, errors of one line, sources found and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from lego import AdapterError, Recipe
from lego.run import run_recipe
from lego.sources import open_sources
from tests.conftest import half_pair, write_peft

Q = "model.layers.0.self_attn.q_proj"


def test_a_short_recipe_is_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "some" / "folder").mkdir(parents=True)
    text = """
sources:
  - a
  - some/folder
  - some/lora
  - some/lora@v1.0
  - {path: b, weight: 0.5}
  - {hub: owner/name, revision: main, weight: {q_proj: 0, "*.1.*": -2}}
parameters: {k: 2r}
"""
    recipe = Recipe.from_yaml(text, folder=tmp_path)
    found = [source.model_dump(exclude_none=True) for source in recipe.sources]
    assert found == [
        {"path": "a", "weight": 1.0},
        {"path": "some/folder", "weight": 1.0},
        {"hub": "some/lora", "weight": 1.0},
        {"hub": "some/lora", "revision": "v1.0", "weight": 1.0},
        {"path": "b", "weight": 0.5},
        {"hub": "owner/name", "revision": "main", "weight": {"q_proj": 0.0, "*.1.*": -2.0}},
    ]
    assert (recipe.method, recipe.parameters, recipe.seed, recipe.output.dtype) == ("lego", {"k": "2r"}, 0, "float16")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    text = "sources: [{path: a, weight: {q_proj: 2}}]\nseed: 3\noutput: {format: kohya, dtype: float32}"
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["output"] == {"format": "kohya", "dtype": "float32"}


BAD = {
    "": "is not a recipe but None",
    "- a": "is not a recipe but ['a']",
    "a: [": "is not YAML",
    "[" * 3000: "is not YAML",
    "a: !!python/object:os.system {}": "is not YAML",
    "sources: [a]\nmethod: lego\nmethod: ties": "the key 'method' stands twice",
    "method: lego": "lacks sources: it takes a list",
    "sources: []": "sources takes a list of at least one",
    "sources: a": "sources takes a list of at least one",
    "sources: [3]": "sources[0] takes a path",
    "sources: [a]\nstrength: 3": "has no field 'strength'. It takes: brickyard, base_model, sources, method, parameters",
    "sources: [a, {pth: b}]": "sources[1] has no field 'pth'. It takes: name, path, hub, revision, sha256, weight",
    "sources: [{path: b, weight: heavy}]": "sources[0].weight takes a number, or numbers by pattern",
    "sources: [{path: b, weight: {q_proj: heavy}}]": "sources[0].weight takes a number, or numbers by pattern",
    "sources: [{path: b, sha256: 12ab}]": "sources[0].sha256 takes the weights file's SHA-256",
    "sources: [{path: b, hub: c/d}]": "sources[0] has a path and a hub id",
    "sources: [{path: b, revision: main}]": "sources[0] has a revision but no hub id",
    "sources: [{hub: name}]": "sources[0].hub takes a hub id, owner/name",
    "sources: [a]\nseed: many": "seed takes a whole number, not 'many'",
    "sources: [a]\nparameters: 3": "parameters takes the method's own",
    "sources: [a]\noutput: {dtype: int8}": "output.dtype takes float16 or bfloat16 or float32, not 'int8'",
    "sources: [a]\noutput: {typ: int8}": "output has no field 'typ'. It takes: format, dtype",
    "sources: [{path: b, weight: yes}]": "sources[0].weight takes a number, or numbers by pattern",
    "sources: [{path: b, weight: {q_proj: no}}]": "sources[0].weight takes a number, or numbers by pattern",
    "sources: [a]\nseed: yes": "seed takes a whole number, not True",
    "sources: [a]\n1: 2": "has the name 1 where a text is expected",
    "sources: [a]\nparameters: {1: 2}": "has the name 1 where a text is expected",
    "sources: ['https://huggingface.co/a/b']": "sources[0] https://huggingface.co/a/b is the address of a page",
    "sources: [a]\nseed: !!bool x": "is not YAML",
    "sources: [a]\nseed: !!timestamp x": "is not YAML",
    "sources: &a [*a]": "sources[0] takes a path",
    "? [a]\n: b": "is not YAML",
    "a: " + "b" * 1_000_000: "has 1,000,003 characters, more than the 1,000,000 of any recipe",
    "sources: [a]\ntuned_on: {rows: 12}": "tuned_on.rows takes the SHA-256 of the rows' file, not 12",
}


@pytest.mark.parametrize(("text", "reason"), BAD.items(), ids=range(len(BAD)))
def test_errors_are_one_line_that_names_the_field(text: str, reason: str) -> None:
    with pytest.raises(AdapterError) as raised:
        Recipe.from_yaml(text, "my.yaml")
    said = str(raised.value)
    assert said.startswith("my.yaml: ")
    assert reason in said
    assert "\n" not in said
    assert "pydantic" not in said


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    + "seed: *a29",
    "merge keys": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_recipe_made_to_explode_is_refused(name: str) -> None:
    """Recipes come in the headers of other people's files; written out, the first would have 9**29 entries."""
    with pytest.raises(AdapterError) as raised:
        Recipe.from_yaml("sources: [a]\n" + BOMBS[name], "my.yaml")
    assert len(str(raised.value)) < 3000


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path / "none.yaml", "cannot be read"), (tmp_path / "binary.yaml", "not text in UTF-8")):
        with pytest.raises(AdapterError, match=reason):
            Recipe.read(path)


def test_relative_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_peft(tmp_path / "recipes" / "one", half_pair(Q, seed=1))
    (tmp_path / "recipes" / "my.yaml").write_text("sources: [one]\nmethod: sum")
    monkeypatch.chdir(tmp_path)
    path = Path("recipes/my.yaml")
    run_recipe(Recipe.read(path), Path("out"), folder=path.parent)
    written = Recipe.read(Path("out/recipe.yaml"))
    # The written recipe finds its sources from anywhere.
    monkeypatch.chdir("/")
    assert open_sources(written.sources, tmp_path / "elsewhere")[0].name == "one"


def test_a_source_with_another_hash_is_refused_with_both(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "one", half_pair(Q, seed=1))
    real = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    right = Recipe.check({"sources": [{"path": "one", "sha256": real}]}, "x")
    assert open_sources(right.sources, tmp_path)[0].sha256 == real
    wrong = Recipe.check({"sources": [{"path": "one", "sha256": "0" * 64}]}, "x")
    with pytest.raises(AdapterError) as raised:
        open_sources(wrong.sources, tmp_path)
    assert real in str(raised.value)
    assert "0" * 64 in str(raised.value)


def test_a_hub_source_needs_someone_who_fetches(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "one", half_pair(Q, seed=1))
    recipe = Recipe.check({"sources": [{"hub": "some/lora", "revision": "v1", "name": "mine"}]}, "x")
    with pytest.raises(AdapterError, match=r"some/lora: comes from the hub"):
        open_sources(recipe.sources, tmp_path)
    asked = []

    def fetch(hub_id: str, revision: str | None) -> object:
        from lego import read_adapter

        asked.append((hub_id, revision))
        return read_adapter(folder)

    assert open_sources(recipe.sources, tmp_path, fetch)[0].name == "mine"  # type: ignore[arg-type]
    assert asked == [("some/lora", "v1")]


def test_a_source_without_a_place(tmp_path: Path) -> None:
    recipe = Recipe.check({"sources": [{"name": "mine"}]}, "x")
    with pytest.raises(AdapterError, match="mine: has neither a path nor a hub id"):
        open_sources(recipe.sources, tmp_path)


def test_the_base_of_the_recipe_is_the_sources(tmp_path: Path) -> None:
    write_peft(tmp_path / "silent", half_pair(Q, seed=1))
    write_peft(tmp_path / "named", half_pair(Q, seed=2), base_model_name_or_path="some/base")
    document = {"sources": ["silent"], "method": "sum", "base_model": "some/base"}
    run_recipe(Recipe.check(document, "x", tmp_path), tmp_path / "out", folder=tmp_path)
    assert Recipe.read(tmp_path / "out" / "recipe.yaml").base_model == "some/base"
    document |= {"sources": ["silent", "named"], "base_model": "other/base"}
    with pytest.raises(AdapterError, match="named: is for some/base, but the recipe's base_model is other/base"):
        run_recipe(Recipe.check(document, "x", tmp_path), tmp_path / "no", folder=tmp_path)
