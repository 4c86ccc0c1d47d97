"""What ships for pictures: small files, sound LoRAs with true cards, kohya's twins, 48 captions of things that were learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from assets.build.images.concepts import DRAWN, caption
from assets.build.images.specs import SPECS
from lego import read_adapter

IMAGE = Path(__file__).parents[2] / "assets" / "image"
NAMES = sorted(path.name for path in (IMAGE / "adapters").iterdir())
CONVOLUTIONS = {"conv1", "conv2", "proj_in", "proj_out"}


def front(name: str) -> dict:
    return yaml.safe_load((IMAGE / "adapters" / name / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def kind(module: str) -> str:
    """The target that a module is of."""
    long = [target for target in ("ff.net.0.proj", "ff.net.2", "to_out.0") if module.endswith(f".{target}")]
    name = long[0] if long else module.split(".")[-1]
    return f"text encoder {name}" if module.startswith("text_encoder") else name


def test_the_base_is_small() -> None:
    files = [file for file in (IMAGE / "base").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 40e6
    assert max(file.stat().st_size for file in IMAGE.rglob("*") if file.is_file()) < 10e6
    for file in (IMAGE / "base").glob("unet/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file


def test_the_sheet_shows_48_things_that_were_learnt() -> None:
    shown = [line.split(" ", 1)[1] for line in (IMAGE / "base" / "samples.txt").read_text().splitlines()]
    assert len({text.split(",")[0] for text in shown}) == 48
    assert {text.split(",")[0] for text in shown} <= {caption(concept) for concept in DRAWN}


def test_there_are_six_loras_of_ranks_and_seeds_of_their_own() -> None:
    assert set(NAMES) <= set(SPECS)
    about = [front(name)["brickyard"] for name in NAMES]
    assert {each["rank"] for each in about} == {4, 8, 16}
    assert len({each["seed"] for each in about}) == len(NAMES)
    assert sum(SPECS[name].style is None for name in NAMES) >= 3
    assert {path.name for path in (IMAGE / "kohya").iterdir()} == {name for name in NAMES if SPECS[name].kohya}


@pytest.mark.parametrize("name", NAMES)
def test_the_card_agrees_with_the_file(name: str) -> None:
    about, adapter = front(name)["brickyard"], read_adapter(IMAGE / "adapters" / name)
    kinds = {kind(module) for module in adapter.modules}
    assert kinds == set(about["targets"])
    assert any(spec.kernel == (3, 3) for spec in adapter.modules.values()) == bool(CONVOLUTIONS & kinds)
    for module in adapter.modules:
        factors = adapter[module]
        assert factors.down.shape[0] == about["rank"]
        assert factors.down.isfinite().all()
        assert factors.up.abs().max() > 0, f"{module} was not trained"
    record = json.loads((IMAGE / "adapters" / name / "training.json").read_text(encoding="utf-8"))
    metric = "style" if SPECS[name].style else "concept"
    found = [record["scores"][which][metric] for which in ("base", "lora")]
    assert [about["before"], about["after"]] == pytest.approx(found, abs=1e-4)
    assert (about["seed"], about["steps"]) == (record["plan"]["seed"], record["plan"]["steps"])
    assert about["heldout_rows"] == record["prompts"] >= 48


@pytest.mark.parametrize("name", [name for name in NAMES if SPECS[name].kohya])
def test_kohyas_file_holds_the_same(name: str) -> None:
    one, other = read_adapter(IMAGE / "adapters" / name), read_adapter(next((IMAGE / "kohya" / name).iterdir()))
    assert (one.format, other.format) == ("diffusers", "kohya")
    assert set(one.modules) == set(other.modules)
    for module in one.modules:
        assert torch.equal(one[module].down, other[module].down)
        assert torch.equal(one[module].up, other[module].up)
