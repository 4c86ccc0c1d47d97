"""Gates learn from pictures with captions, and from captions under a contrastive model's eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from assets.build.images.concepts import CONCEPTS
from assets.build.images.contrast import new_contrastive
from assets.build.images.folder import write_contrastive
from assets.build.images.text import new_tokenizer
from backends import alignment, library
from backends.bases import ImageBase
from backends.image import Drawing, Variant, draw
from backends.training import Training
from backends.training_guided import Painter
from backends.training_image import Denoiser
from lego import AdapterError
from mole.recipe import GateRecipe
from tests.tiny_pipelines import tiny_image_base, write_lora

CAPTIONS = ("a red hat", "a cat", "a blue hat", "a dog")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def bases(places: Path) -> dict[str, ImageBase]:
    return {name: tiny_image_base(places, name) for name in ("sd", "sdxl", "flux")}


@pytest.fixture(scope="module")
def keys(places: Path) -> list[str]:
    return [library.add_folder(write_lora(places / f"lora{n}", "sd", n, "peft")).key for n in (1, 2)]


@pytest.fixture(scope="module")
def captioned(places: Path) -> Path:
    """Four pictures with captions; the last one is held out."""
    folder, rng = places / "captioned", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for number, text in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": text, "split": "held_out" if number == 3 else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def judge(places: Path) -> Path:
    """A contrastive model of random weights, as the build writes it."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer(CONCEPTS[:8])
    record = {"plan": {"steps": 0, "batch": 1}, "seconds": 0, "among": 100, "ranked_first": {"train": 0, "held_out": 0}}
    write_contrastive(new_contrastive(tokenizer).float(), tokenizer, record, places / "clip")
    return places / "clip"


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRICKYARD_DEVICE", "cpu")
    monkeypatch.setattr(alignment, "_loaded", type(alignment._loaded)())


def recipe(captioned: Path, steps: int = 6, guidance: dict[str, Any] | None = None, **gates: Any) -> GateRecipe:
    training = {"steps": steps, "batch": 3, "calibration": 3, "lr": 0.05, "alpha": 0.0, "warmup": 0}
    document = {"sources": ["a", "b"], "data": [str(captioned)], "gates": gates, "training": training}
    return GateRecipe.check({**document, "guidance": guidance} if guidance else document, "test")


def mean_loss(training: Training) -> float:
    """Over many draws of noise, the same for every training of these gates."""
    with torch.no_grad():
        losses = []
        for step in range(100, 124):
            batch = training._batch_of(step, 3)
            losses.append(float(training.trainer.gated(batch)[0]))
    return float(np.mean(losses))


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_gates_learn_to_denoise_and_nothing_else_changes(
    bases: dict[str, ImageBase], keys: list[str], captioned: Path, pooling: str
) -> None:
    base = bases["sd"]
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    training = Training(base, keys, recipe(captioned, steps=12, pooling=pooling))
    untrained = mean_loss(training)
    assert [progress.step for progress in training.run()] == list(range(1, 13))
    assert mean_loss(training) < untrained
    assert all(torch.equal(before[name], value) for name, value in base.model.state_dict().items())
    assert sum(parameter.grad is not None for parameter in base.model.parameters()) == 0


def test_a_training_is_the_same_again_and_goes_on_where_it_was(
    bases: dict[str, ImageBase], keys: list[str], captioned: Path, tmp_path: Path
) -> None:
    whole, first = (Training(bases["sd"], keys, recipe(captioned, steps)) for steps in (4, 2))
    list(whole.run())
    list(first.run())
    first.save(tmp_path / "first")
    second = Training(bases["sd"], keys, recipe(captioned, 4))
    second.resume(tmp_path / "first")
    assert [progress.step for progress in second.run()] == [3, 4]
    for name, value in whole.gates.state_dict().items():
        assert torch.equal(value, second.gates.state_dict()[name]), name


def test_trained_gates_draw(bases: dict[str, ImageBase], keys: list[str], captioned: Path) -> None:
    training = Training(bases["sd"], keys, recipe(captioned, 2))
    list(training.run())
    entry = training.add("hats")
    weightings = [entry.weighting(), entry.weighting((keys[0],)), entry.weighting((keys[1],))]
    *_, sheet = draw(
        bases["sd"], [Variant(str(n), w) for n, w in enumerate(weightings)], ["a hat"], Drawing(steps=2, guidance=2)
    )
    shown = {np.asarray(column[0][0]).tobytes() for column in sheet.pictures}
    assert len(shown) == 3


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_what_the_unet_should_say_is_the_schedulers(
    bases: dict[str, ImageBase], keys: list[str], captioned: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = bases["sd"].pipeline.scheduler
    monkeypatch.setattr(
        bases["sd"].pipeline, "scheduler", type(scheduler).from_config(scheduler.config, prediction_type=kind)
    )
    samples = Training(bases["sd"], keys, recipe(captioned)).samples
    chosen = samples.sets[0][:3]
    batch = samples.batch(chosen, "draw")
    assert torch.equal(samples.batch(chosen, "draw").inputs["noisy"], batch.inputs["noisy"])
    assert not torch.equal(samples.batch(chosen, "another").inputs["noisy"], batch.inputs["noisy"])
    # From what the UNet should say and the noisy latents the scheduler finds the clean ones, whatever it is that it says.
    reference = DDPMScheduler.from_config(scheduler.config, prediction_type=kind, clip_sample=False)
    vae = bases["sd"].pipeline.vae
    for row, sample in enumerate(chosen):
        pixels = torch.from_numpy(np.asarray(Image.open(sample.picture)).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        clean = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        noisy, time = batch.inputs["noisy"][row : row + 1], int(batch.inputs["times"][row])
        found = reference.step(batch.targets[row : row + 1], time, noisy).pred_original_sample
        torch.testing.assert_close(found, clean, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_prediction_is_the_pipelines(bases: dict[str, ImageBase], name: str) -> None:
    pipeline, seen = bases[name].pipeline, []
    handle = pipeline.unet.register_forward_hook(
        lambda _, inputs, named, out: seen.append((inputs, named, out)), with_kwargs=True
    )
    try:
        pipeline(["a red hat", "a cat"], num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    finally:
        handle.remove()
    (noisy, time), _, out = seen[0]
    model = Denoiser(bases[name])
    with torch.no_grad():
        found = model(model.numbers(["a red hat", "a cat"]), noisy, time)
    torch.testing.assert_close(found, out[0])


def test_a_painter_draws_what_the_pipeline_draws(bases: dict[str, ImageBase]) -> None:
    painter = Painter(bases["sd"], steps=3)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = painter(painter.numbers(["a red hat", "a cat"]), noise, 2)
    pipeline = bases["sd"].pipeline
    wanted = pipeline(
        ["a red hat", "a cat"], latents=noise, num_inference_steps=3, guidance_scale=painter.guidance, output_type="pt"
    ).images
    torch.testing.assert_close((found / 2 + 0.5).clamp(0, 1), wanted, atol=1e-4, rtol=1e-4)


def test_gates_learn_from_captions_alone(
    bases: dict[str, ImageBase], keys: list[str], captioned: Path, judge: Path
) -> None:
    guidance = {"model": str(judge), "steps": 2, "source": "a hat"}
    training = Training(bases["sd"], keys, recipe(captioned, 2, guidance))
    assert training.samples.sets[0][0].picture is None
    *_, last = training.run()
    assert last.step == 2
    assert training.recipe.guidance is not None
    assert training.add("hats").saved.recipe.guidance == training.recipe.guidance


def test_guidance_follows_the_gradient_of_what_the_judge_sees(
    bases: dict[str, ImageBase], places: Path, captioned: Path, judge: Path
) -> None:
    """With a single denoising step nothing is cut off: the gradient is that of finite differences."""
    kind = {"granularity": "network", "normalise": "l2", "pooling": "mean"}
    folders = [write_lora(places / f"unet{n}", "sd", n, "peft", only=["unet"]) for n in (1, 2)]
    keys = [library.add_folder(folder).key for folder in folders]
    training = Training(bases["sd"], keys, recipe(captioned, 1, {"model": str(judge), "steps": 1}, **kind))
    batch = training._batch_of(0, 2)
    loss, _ = training.trainer.gated(batch)
    loss.backward()
    ((_, gate),) = training.gates.items()
    assert gate.weight.grad is not None
    slope = gate.weight.grad / gate.weight.grad.norm()
    found = []
    for way in (1, -1):
        with torch.no_grad():
            gate.weight += way * 0.01 * slope
            found.append(float(training.trainer.gated(batch)[0]))
            gate.weight -= way * 0.01 * slope
    assert (found[0] - found[1]) / 0.02 == pytest.approx(float(gate.weight.grad.norm()), rel=0.05)


def test_what_cannot_be_learned_from_is_refused(
    bases: dict[str, ImageBase], keys: list[str], captioned: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="is a FluxPipeline, for which gates cannot be trained"):
        Denoiser(bases["flux"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(AdapterError, match=r"is neither a folder with metadata\.jsonl nor a set that ships"):
        Training(bases["sd"], keys, recipe(rows))
    changed = recipe(captioned)
    changed.data[0].sha256 = "0" * 64
    with pytest.raises(AdapterError, match="has changed: its SHA-256 is"):
        Training(bases["sd"], keys, changed)
