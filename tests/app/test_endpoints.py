"""The named endpoints, called as a program calls them; expected numbers come from the adapters' files themselves."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from safetensors.numpy import load_file

ADAPTERS = Path(__file__).parents[2] / "assets" / "text" / "adapters"
IMAGE_ADAPTERS = ADAPTERS.parents[1] / "image" / "adapters"
SOURCES = ["past-tense", "sentiment"]
MODULE = "model.layers.3.self_attn.q_proj"


def halves(folder: Path, module: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A, B and the scaling of one module, straight from the files."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("alpha_pattern")
    tensors = load_file(folder / "adapter_model.safetensors")
    down, up = (tensors[f"base_model.model.{module}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    rank = config.get("rank_pattern", {}).get(module, config["r"])
    alpha = config["lora_alpha"]
    return down, up, alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def test_only_the_named_endpoints_are_public(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/adapters", "/inspect", "/unit_map", "/merge", "/compare", "/draw", "/train_gate", "/gates"}


def test_adapters_lists_everything_that_ships(client: Client) -> None:
    listed = {entry["name"]: entry for entry in client.predict(api_name="/adapters")}
    texts, images = (
        ADAPTERS.glob("*/adapter_model.safetensors"),
        IMAGE_ADAPTERS.glob("*/pytorch_lora_weights.safetensors"),
    )
    files = {file.parent.name: file for file in (*texts, *images)}
    assert {name: entry["size_bytes"] for name, entry in listed.items()} == {
        n: f.stat().st_size for n, f in files.items()
    }
    for config in ADAPTERS.glob("*/adapter_config.json"):
        assert listed[config.parent.name]["ranks"] == [json.loads(config.read_text())["r"]]


def test_inspect_tells_what_the_files_hold(client: Client) -> None:
    facts = client.predict("sentiment", api_name="/inspect")
    tensors = load_file(ADAPTERS / "sentiment" / "adapter_model.safetensors")
    assert len(facts["modules"]) == len(tensors) / 2
    assert facts["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert client.predict(facts["key"], api_name="/inspect")["sha256"] == facts["sha256"]


def test_unit_map_has_every_unit_with_its_norm(client: Client) -> None:
    found = client.predict(SOURCES, MODULE, k=3, api_name="/unit_map")
    expected = []
    for name in SOURCES:
        down, up, scale = halves(ADAPTERS / name, MODULE)
        expected += list(np.sqrt(scale * ((down**2).sum(1) + (up**2).sum(0))))
    units = found["units"]
    assert found["shown"] == found["total"] == len(expected)
    np.testing.assert_allclose(units["norm"], expected, rtol=1e-4)
    assert set(units["cluster"]) == {0, 1, 2}
    assert all(len(values) == len(expected) for values in units.values())


def test_unit_map_of_a_kind_spans_the_layers(client: Client) -> None:
    found = client.predict(SOURCES, "q_proj", api_name="/unit_map")
    assert sorted(set(found["units"]["layer"])) == list(range(30))


def test_merge_gives_an_adapter_its_report_and_its_recipe(client: Client, tmp_path: Path) -> None:
    weights = [1.0, 0.5]
    made = client.predict(SOURCES, "svd", weights, {"rank": 8}, name="two tasks", api_name="/merge")
    with zipfile.ZipFile(made["file"]) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "two-tasks"
    assert {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "README.md"} <= {
        f.name for f in folder.iterdir()
    }
    assert (folder / "recipe.yaml").read_text() == made["recipe"]

    target = 0
    for name, weight in zip(SOURCES, weights, strict=True):
        down, up, scale = halves(ADAPTERS / name, MODULE)
        target = target + weight * scale * (up @ down)
    down, up, scale = halves(folder, MODULE)
    error = np.linalg.norm(scale * (up @ down) - target) / np.linalg.norm(target)
    reported = next(m for m in made["report"]["per_module"] if m["module"] == MODULE)
    assert down.shape[0] == reported["rank"] == 8
    assert reported["relative_error"] == pytest.approx(error, rel=0.02)


def test_merges_are_reproducible_from_their_seed(client: Client, tmp_path: Path) -> None:
    def tensors(seed: int, name: str) -> dict[str, np.ndarray]:
        made = client.predict(SOURCES, "dare_ties", None, {"density": 0.5}, seed, name, api_name="/merge")
        with zipfile.ZipFile(made["file"]) as archive:
            return load_file(archive.extract(f"{name}/adapter_model.safetensors", tmp_path))

    first, again, other = tensors(1, "first"), tensors(1, "again"), tensors(2, "other")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_compare_answers_with_every_variant(client: Client) -> None:
    merged = client.predict(SOURCES, parameters={"k": "r"}, api_name="/merge")["key"]
    variants = [
        {"name": "base"},
        {"name": "one", "adapters": {"past-tense": 1}},
        {"name": "the same", "adapters": {"past-tense": 1.0}},
        {"name": "merge", "adapters": {merged: 1}},
    ]
    found = client.predict(variants, ["What is the past tense of 'go'?", "Hello"], length=8, api_name="/compare")
    texts = {variant["name"]: variant["texts"] for variant in found["variants"]}
    assert list(texts) == ["base", "one", "the same", "merge"]
    assert found["finished"]
    assert all(len(answers) == 2 for answers in texts.values())
    assert texts["one"] == texts["the same"] != texts["base"]


BAD = [
    ("/inspect", ["no-such"], "there is no adapter"),
    ("/inspect", ["0123456789ab"], "no adapter with this key"),
    ("/inspect", ["/no/such/folder"], "does not exist"),
    ("/unit_map", [SOURCES, "nonsense"], "no picked adapter has a module or kind 'nonsense'"),
    ("/unit_map", [[], "q_proj"], "adapters must be a list"),
    ("/unit_map", [SOURCES, "q_proj", -3], "k='-3'"),
    ("/unit_map", [SOURCES, "q_proj", "2r", [1.0]], "need 2 weights"),
    ("/unit_map", [SOURCES, "q_proj", "2r", None, "tsne"], "no projection"),
    ("/merge", [SOURCES, "magic"], "there is no merge method 'magic'"),
    ("/merge", [SOURCES, "lego", None, {"k": "many"}], "give a number of units"),
    ("/merge", [SOURCES, "lego", None, {"colour": 1}], "has no parameter 'colour'"),
    ("/merge", [SOURCES, "lego", ["a", 1]], "weight must be a number"),
    ("/compare", [[], ["hello"]], "variants must be a list"),
    ("/compare", [[{"name": "base"}], []], "there is no prompt"),
    ("/compare", [[{"name": "base"}], ["x"] * 17], "17 prompts are too many"),
    ("/compare", [[{"name": "base"}], ["x" * 2001]], "2001 characters"),
    ("/compare", [[{"name": "x", "adapters": {"no-such": 1}}], ["hello"]], "there is no adapter"),
]


@pytest.mark.parametrize(("endpoint", "arguments", "message"), BAD)
def test_bad_input_is_answered_with_its_reason(client: Client, endpoint: str, arguments: list, message: str) -> None:
    with pytest.raises(AppError, match="(?s)" + re.escape(message)):
        client.predict(*arguments, api_name=endpoint)


def test_two_clients_do_not_see_each_others_names(url: str, client: Client) -> None:
    other = Client(url, verbose=False)
    files = [
        Path(who.predict(SOURCES, "average", name=name, api_name="/merge")["file"]).name
        for who, name in ((client, "mine"), (other, "theirs"))
    ]
    assert files == ["mine.zip", "theirs.zip"]
    assert not {"mine", "theirs"} & {entry["title"] for entry in other.predict(api_name="/adapters")}
