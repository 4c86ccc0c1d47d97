"""`/draw`, called as a program calls it: its pictures are those of diffusers' own pipeline, its files carry the recipe."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from backends.device import pick
from components.compare import sheet
from tests.tiny_pipelines import alike, tiny_folder, write_lora

PROMPTS, SEEDS, STEPS, GUIDANCE = ["a fox", "an owl"], [0, 7], 2, 3.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion."""
    return tiny_folder(tmp_path_factory.mktemp("draw") / "base", "sd")


def diffusers_draws(base: Path, lora: Path | None, weight: float, prompt: str, seed: int) -> np.ndarray:
    """One picture by diffusers alone, with `load_lora_weights` and `set_adapters`."""
    device, dtype = pick()
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora, adapter_name="own")
        pipeline.set_adapters(["own"], [weight])
    noise = torch.Generator().manual_seed(seed)
    drawn = pipeline(prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise)
    return np.asarray(drawn.images[0]).astype(int)


def test_draw_gives_the_pictures_of_diffusers(client: Client, base: Path) -> None:
    lora = write_lora(base.parent / "lora", "sd", 1, "peft")
    variants = [{"name": "base"}, {"name": "half", "adapters": {str(lora): 0.5}}]
    found = client.predict(variants, PROMPTS, str(base), steps=STEPS, guidance=GUIDANCE, seeds=SEEDS, api_name="/draw")
    assert [variant["name"] for variant in found["variants"]] == ["base", "half"]
    for variant, used in zip(found["variants"], (None, lora), strict=True):
        for p, prompt in enumerate(PROMPTS):
            for s, seed in enumerate(SEEDS):
                picture = np.asarray(Image.open(variant["pictures"][p][s])).astype(int)
                assert alike(picture, diffusers_draws(base, used, 0.5, prompt, seed))
    assert sheet.recipe_in(found["sheet"])["prompts"] == PROMPTS
    with zipfile.ZipFile(found["archive"]) as archive:
        assert len(archive.namelist()) == len(variants) * len(PROMPTS) * len(SEEDS)


BAD = [
    ("/draw", [[{"name": "base"}], []], {}, "there is no prompt"),
    ("/draw", [[], ["a fox"]], {}, "variants must be a list"),
    ("/draw", [[{"name": "base"}], ["a fox"]], {"seeds": ["one"]}, "seeds must be a list"),
    ("/draw", [[{"name": "base"}], ["a fox"]], {"steps": 1000}, "steps must be a number from 1 to 150"),
    ("/draw", [[{"name": "base"}], ["a fox"]], {"size": [64]}, "size must be"),
    ("/draw", [[{"name": "base"}] * 20, ["a fox"] * 3], {"seeds": [0, 1]}, "too many"),
    ("/compare", [[{"name": "base"}], ["a fox"]], {}, "Call /draw"),
]


@pytest.mark.parametrize(("endpoint", "arguments", "more", "message"), BAD)
def test_bad_input_is_answered_with_its_reason(
    client: Client, base: Path, endpoint: str, arguments: list, more: dict, message: str
) -> None:
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, str(base), api_name=endpoint, **more)


def test_a_base_that_writes_does_not_draw(client: Client) -> None:
    with pytest.raises(AppError, match="Call /compare"):
        client.predict([{"name": "base"}], ["a fox"], "smollm2-135m-instruct", api_name="/draw")
