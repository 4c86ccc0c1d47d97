"""Adapters of the hub (on loopback) for the command line: judged by their headers, fetched at a commit, written into recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from backends import opener
from lego import AdapterError, Recipe, read_adapter
from lego.__main__ import main
from tests.conftest import half_pair, write_peft
from tests.hub import COMMIT, Hub

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def remote(remote: Hub, tmp_path: Path) -> Hub:
    """A hub with one adapter, whose weights are larger than what a look at their header takes."""
    tensors = half_pair(Q, 8, 8000, 8000, seed=1)
    remote.repos["some/lora"] = write_peft(
        tmp_path / "repo", tensors, r=8, lora_alpha=4, base_model_name_or_path="some/base"
    )
    return remote


def test_fetch_gives_the_adapter_and_where_it_is_from(remote: Hub) -> None:
    found, there = opener.fetch("some/lora", "main"), read_adapter(remote.repos["some/lora"])
    assert (found.name, found.origin, found.sha256) == ("lora", f"some/lora@{COMMIT}", there.sha256)


def test_a_commit_that_was_downloaded_needs_no_network(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opener.fetch("some/lora")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    again = opener.fetch("some/lora", COMMIT)
    assert (again.sha256, again.origin) == (first.sha256, first.origin)


def test_preflight_reads_headers_only(remote: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "some/lora", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["adapter"], found["ranks"], found["base_model"]) == ("some/lora", [8], "some/base")
    assert found["modules"][0]["scale"] == 0.5
    assert 0 < remote.bytes_of("adapter_model.safetensors") <= 100_001 < found["bytes"]


def test_what_cannot_be_merged_is_not_downloaded(
    remote: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = remote.repos["some/lora"] / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    assert main(["preflight", "some/lora"]) == 1
    assert "DoRA" in capsys.readouterr().out
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "out"), "some/lora"]) == 2
    assert "some/lora: " in (said := capsys.readouterr().err)
    assert "DoRA" in said
    assert remote.bytes_of("adapter_model.safetensors") <= 200_002


def test_the_caller_may_refuse_more(remote: Hub) -> None:
    with pytest.raises(AdapterError, match="some/lora: rank 8 is too much"):
        opener.fetch("some/lora", refuse=lambda found: f"rank {found.ranks[0]} is too much")
    assert remote.bytes_of("adapter_model.safetensors") <= 100_001


def single(remote: Hub, folder: Path, name: str) -> Path:
    """A repository with one file; its path."""
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    a, b = half_pair(Q).values()
    (folder / name).parent.mkdir(parents=True)
    save_file({key.format("A"): a, key.format("B"): b}, folder / name)
    (folder / "README.md").write_text("---\nlicense: openrail++\nbase_model: some/pipeline\n---\n")
    remote.repos["some/single"] = folder
    return folder / name


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "style.safetensors", "deep/style.safetensors"])
def test_a_repository_with_one_file(remote: Hub, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = read_adapter(single(remote, tmp_path / "single", name))
    found = opener.fetch("some/single")
    assert (found.name, found.origin) == ("single", f"some/single@{COMMIT}")
    assert (found.sha256, list(found.modules)) == (there.sha256, list(there.modules))
    save_file({"x": half_pair(Q).popitem()[1]}, tmp_path / "single" / "other.safetensors")
    if name == "pytorch_lora_weights.safetensors":  # as in a local folder
        assert opener.fetch("some/single").sha256 == read_adapter(tmp_path / "single").sha256 == there.sha256
    else:
        with pytest.raises(AdapterError, match=r"some/single: holds 2 safetensors files and no adapter_config\.json"):
            opener.fetch("some/single")


def test_the_card_of_a_single_file_is_its_repositorys(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single(remote, tmp_path / "single", "pytorch_lora_weights.safetensors")
    assert opener.preflight("some/single").base_model == "some/pipeline"
    out = tmp_path / "out"
    assert main(["merge", "-m", "sum", "-o", str(out), "some/single"]) == 0
    assert Recipe.read(out / "recipe.yaml").base_model == "some/pipeline"
    card = (out / "README.md").read_text()
    assert "license: openrail++" in card
    assert f"| some/single@{COMMIT} | 1.0 | 4 | openrail++ |" in card
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert main(["verify", str(out)]) == 0


def test_a_merge_from_the_hub_names_the_commit_and_can_be_verified(
    remote: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("sources: [some/lora]\nmethod: svd\nparameters: {rank: 4}")
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "my.yaml"), "-o", str(out)]) == 0
    source = Recipe.read(out / "recipe.yaml").sources[0]
    assert (source.hub, source.revision, source.path) == ("some/lora", COMMIT, None)
    assert source.sha256 == read_adapter(remote.repos["some/lora"]).sha256
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    assert main(["merge", "-m", "sum", "-o", str(tmp_path / "no"), "some/nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: some/nothing: does not exist on the hub")
