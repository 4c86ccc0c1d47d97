"""Gates in drawing: the gold tests of MoLE on pictures, and that a gated picture does not depend on its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import gates as store
from backends import library
from backends.bases import ImageBase
from backends.image import Drawing, Sheet, Variant, draw
from backends.variants import pool_of
from lego import AdapterError
from mole.gate import GateConfig, Gates
from mole.live import Weighting
from mole.sites import find_sites
from tests.tiny_pipelines import tiny_image_base, write_lora

DRAWING = Drawing(steps=2, guidance=3, seeds=(0, 1))
PROMPTS = ["a cat", "hats"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ImageBase:
    return tiny_image_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """LoRAs on convolutions, linears and the text encoder."""
    folder = tmp_path_factory.mktemp("loras")
    return [library.add_folder(write_lora(folder / str(seed), "sd", seed, "peft")).key for seed in (1, 2)]


def gates_for(base: ImageBase, keys: list[str], granularity: str, seed: int | None) -> Gates:
    """Gates that trust all alike, or random ones."""
    pool = pool_of(base, [Variant("all", Weighting(tuple((key, 1.0) for key in keys)))])
    config = GateConfig(granularity=granularity, normalise="l2")  # type: ignore[arg-type]
    sites = find_sites(base.model, pool.modules, config.granularity, lambda: base.pipeline("a", num_inference_steps=1))
    made = Gates.fresh(config, keys, sites, pool)
    if seed is not None:
        torch.manual_seed(seed)
        for gate in made.gates:
            torch.nn.init.normal_(gate.weight, std=10.0)
    return made


@pytest.fixture(params=["block", "module"])
def gated(
    base: ImageBase, keys: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[Variant]:
    """Variants with uniform and with random gates."""
    made = {"uniform": gates_for(base, keys, request.param, None), "random": gates_for(base, keys, request.param, 5)}
    monkeypatch.setattr(store, "loaded", lambda base, key: made[key])
    full = tuple((key, 1.0) for key in keys)
    return [Variant(name, Weighting(full, gates=name)) for name in made]


def masked(variant: Variant, key: str) -> Variant:
    return replace(variant, weighting=replace(variant.weighting, masked=(key,)))


def pictures(sheet: Sheet) -> np.ndarray:
    """(variants, prompts, seeds, height, width, 3)."""
    return np.array([[[np.asarray(p) for p in row] for row in column] for column in sheet.pictures]).astype(float)


def test_gold_gates_and_batches(base: ImageBase, keys: list[str], gated: list[Variant]) -> None:
    """Uniform gates are NLA with 1/N; all masked but one is that LoRA; neither depends on its neighbours in the batch."""
    uniform, random = gated
    average = Variant("average", Weighting(tuple((key, 1 / len(keys)) for key in keys)))
    single = Variant("second", Weighting(((keys[1], 1.0),)))
    variants = [Variant("base"), uniform, average, masked(random, keys[0]), single, random, masked(uniform, keys[1])]
    *_, sheet = draw(base, variants, PROMPTS, DRAWING)
    found = pictures(sheet)
    assert np.abs(found[1] - found[2]).max() <= 1
    assert np.abs(found[3] - found[4]).max() <= 1
    assert np.abs(found[5] - found[2]).mean() > 0.5, "random gates must be seen, or the test shows nothing"
    assert np.abs(found[5] - found[4]).mean() > 0.5
    *_, alone = draw(base, [random], PROMPTS[1:], replace(DRAWING, seeds=(1,)))
    assert np.abs(pictures(alone)[0, 0, 0] - found[5, 1, 1]).max() <= 1


def test_one_gate_over_text_encoder_and_denoiser_is_refused(
    base: ImageBase, keys: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = gates_for(base, keys, "network", None)
    monkeypatch.setattr(store, "loaded", lambda base, key: made)
    variant = Variant("network", Weighting(tuple((key, 1.0) for key in keys), gates="network"))
    with pytest.raises(AdapterError, match="one gate decides for text encoder and denoiser at once"):
        list(draw(base, [variant], PROMPTS, DRAWING))
    assert not any(module._forward_hooks for module in base.model.modules())
    entries = [library.add_folder(write_lora(tmp_path / str(n), "sd", n, "peft", only=["unet"])) for n in (3, 4)]
    own = [entry.key for entry in entries]
    made = gates_for(base, own, "network", None)
    full = tuple((key, 1.0) for key in own)
    variants = [
        Variant("network", Weighting(full, gates="network")),
        Variant("half", Weighting(tuple((k, 0.5) for k in own))),
    ]
    *_, sheet = draw(base, variants, PROMPTS, DRAWING)
    found = pictures(sheet)
    assert np.abs(found[0] - found[1]).max() <= 1
