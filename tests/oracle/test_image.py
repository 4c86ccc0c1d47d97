"""Pictures against diffusers' own: `load_lora_weights` with `set_adapters` for sums, with `fuse_lora` for merges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from backends import library
from backends.bases import ImageBase
from backends.image import SCHEDULERS, Drawing, Variant, draw
from mole.live import Weighting
from tests.tiny_pipelines import tiny_image_base, tiny_pipeline, write_lora

PROMPT, STEPS = "a cat", 2
SIZES = {"sd": None, "sdxl": None, "flux": (64, 64)}
CASES = [(name, form) for name in ("sd", "sdxl") for form in ("peft", "diffusers", "kohya")]
CASES += [("flux", "peft"), ("flux", "kohya")]
MERGES = {"svd": {"rank": 4}, "ties": {"density": 0.6}, "lego": {"k": "r"}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageBase]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny_image_base(folder, name) for name in SIZES}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))


@contextmanager
def exact(pipeline: Any) -> Iterator[list[Tensor]]:
    """The pictures that a pipeline makes, before they are rounded to 256 levels: from 0 to 1."""
    kept: list[Tensor] = []
    processor, own = pipeline.image_processor, pipeline.image_processor.postprocess

    def noting(image: Tensor, *args: Any, **named: Any) -> Any:
        kept.append((image / 2 + 0.5).clamp(0, 1))
        return own(image, *args, **named)

    processor.postprocess = noting
    try:
        yield kept
    finally:
        del processor.postprocess


def drawn(base: ImageBase, variants: Sequence[Variant], drawing: Drawing, prompts: Sequence[str] = (PROMPT,)) -> Tensor:
    """(variants, prompts, seeds, 3, height, width)."""
    with exact(base.pipeline) as kept:
        *_, sheet = draw(base, variants, prompts, drawing)
    assert sheet.finished
    return torch.cat(kept).unflatten(0, (len(variants), len(prompts), len(drawing.seeds)))


def alone(pipeline: Any, drawing: Drawing, prompt: str = PROMPT, **more: Any) -> Tensor:
    """What a user of diffusers gets, (seeds, 3, height, width)."""
    pipeline.set_progress_bar_config(disable=True)
    if drawing.size:
        more |= {"width": drawing.size[0], "height": drawing.size[1]}
    if drawing.guidance is not None:
        more["guidance_scale"] = drawing.guidance
    generators = [torch.Generator().manual_seed(seed) for seed in drawing.seeds]
    prompts = [prompt] * len(generators)
    return pipeline(
        prompts, generator=generators, num_inference_steps=drawing.steps, output_type="pt", **more
    ).images.float()


def load(pipeline: Any, folders: dict[str, Path]) -> None:
    """Have diffusers load LoRAs, each under its name."""
    for adapter, folder in folders.items():
        file = next(folder.glob("*.safetensors"))
        pipeline.load_lora_weights(str(folder), weight_name=file.name, adapter_name=adapter)


SUMS: list[dict[str, float]] = [{}, {"red": 1.0}, {"blue": 1.0}, {"red": 0.7, "blue": -0.6}]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_sums_are_those_of_diffusers(bases: dict[str, ImageBase], tmp_path: Path, name: str, form: str) -> None:
    folders = {
        adapter: write_lora(tmp_path / adapter, name, seed, form, rank=rank)
        for adapter, seed, rank in (("red", 1, 3), ("blue", 2, 2))
    }
    keys = {adapter: library.add_folder(folder).key for adapter, folder in folders.items()}
    variants = [Variant(str(w), Weighting(tuple((keys[a], weight) for a, weight in w.items()))) for w in SUMS]
    drawing = Drawing(steps=STEPS, seeds=(3, 5), size=SIZES[name], guidance=bases[name].guidance)
    found = drawn(bases[name], variants, drawing)[:, 0]
    peer = tiny_pipeline(name)
    torch.testing.assert_close(found[0], alone(peer, drawing), rtol=0, atol=1e-3)
    load(peer, folders)
    for pictures, weights in zip(found[1:], SUMS[1:], strict=True):
        peer.set_adapters(list(weights), list(weights.values()))
        torch.testing.assert_close(pictures, alone(peer, drawing), rtol=0, atol=1e-3)
        assert (pictures - found[0]).abs().mean() > 0.02, "the LoRA must be seen, or the test shows nothing"


@pytest.mark.parametrize(("name", "form"), [("sd", "kohya"), ("sdxl", "peft"), ("flux", "peft")])
def test_merges_are_those_that_diffusers_fuses(
    bases: dict[str, ImageBase], tmp_path: Path, name: str, form: str
) -> None:
    """Linear, convolution and text encoder modules, written as the first source is and read back."""
    sources = [library.add_folder(write_lora(tmp_path / str(seed), name, seed, form)) for seed in (1, 2)]
    adapters = [library.get(source.key) for source in sources]
    merged = {method: library.merge(adapters, method, method=method, **more) for method, more in MERGES.items()}
    drawing = Drawing(steps=STEPS, size=SIZES[name], guidance=bases[name].guidance)
    variants = [Variant(method, Weighting(((entry.key, 1.0),))) for method, entry in merged.items()]
    found = drawn(bases[name], [Variant("base"), *variants], drawing)[:, 0]
    for pictures, (method, entry) in zip(found[1:], merged.items(), strict=True):
        peer = tiny_pipeline(name)
        load(peer, {method: entry.path})
        peer.fuse_lora()
        torch.testing.assert_close(pictures, alone(peer, drawing), rtol=0, atol=1e-3)
        assert (pictures - found[0]).abs().mean() > 0.01, "the merge must be seen, or the test shows nothing"


def test_a_picture_does_not_depend_on_its_batch(bases: dict[str, ImageBase], tmp_path: Path) -> None:
    """Variant, prompt and seed decide, whatever is drawn beside them; on stochastic schedulers too."""
    keys = [
        library.add_folder(write_lora(tmp_path / str(seed), "sd", seed, "peft", rank=seed + 1)).key for seed in (1, 2)
    ]
    variants = [Variant("base"), *(Variant(key, Weighting(((key, 1.0),))) for key in keys)]
    prompts, seeds = ("a cat", "two hats", ""), (0, 7)
    for scheduler in ("", "euler-a"):
        drawing = Drawing(steps=STEPS, seeds=seeds, scheduler=scheduler, guidance=4, negative="a dog")
        together = drawn(bases["sd"], variants, drawing, prompts)
        for v, p, s in ((0, 0, 0), (1, 2, 1), (2, 1, 0)):
            single = replace(drawing, seeds=(seeds[s],))
            found = drawn(bases["sd"], [variants[v]], single, [prompts[p]])
            torch.testing.assert_close(together[v, p, s], found[0, 0, 0], rtol=0, atol=1e-4)
        spread = torch.stack([together[0, 0, 0], together[1, 0, 0], together[0, 1, 0], together[0, 0, 1]])
        assert torch.pdist(spread.flatten(1)).min() > 1, "pictures must differ, or the test shows nothing"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_are_those_of_diffusers(bases: dict[str, ImageBase], scheduler: str) -> None:
    """Equal seeds share their noise with diffusers, also the noise that some schedulers add at every step."""
    peer = StableDiffusionPipeline.from_pretrained(bases["sd"].folder)
    sampler = SCHEDULERS[scheduler]
    peer.scheduler = getattr(diffusers, sampler.kind).from_config(peer.scheduler.config, **sampler.settings)
    drawing = Drawing(steps=4, seeds=(1, 2), scheduler=scheduler, guidance=2)
    torch.testing.assert_close(
        drawn(bases["sd"], [Variant("base")], drawing)[0, 0], alone(peer, drawing), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("name", SIZES)
def test_negative_prompts_and_sizes(bases: dict[str, ImageBase], name: str) -> None:
    drawing = Drawing(steps=STEPS, seeds=(4,), negative="a dog", size=(80, 48), guidance=4)
    more: dict[str, Any] = {"negative_prompt": ["a dog"]}
    plain = drawing if name != "flux" else replace(drawing, guidance=None)
    if name == "flux":
        more["true_cfg_scale"] = 4
    found = drawn(bases[name], [Variant("base")], drawing)[0, 0]
    assert found.shape[-2:] == (48, 80)
    torch.testing.assert_close(found, alone(tiny_pipeline(name), plain, **more), rtol=0, atol=1e-3)
