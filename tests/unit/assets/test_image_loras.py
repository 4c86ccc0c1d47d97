"""The image LoRAs' build on a tiny base: what is learnt and held out, what diffusers and lego read back, the judge, the cards."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from assets.build import __main__ as command
from assets.build.images import concepts, diffusion, grid, lora_scores, loras, specs, stages, vae
from assets.build.images.concepts import DRAWN, UNSEEN, caption
from assets.build.images.contrast import new_contrastive
from assets.build.images.folder import new_pipeline, write_contrastive, write_pipeline
from assets.build.images.pictures import held_out, load_pictures
from assets.build.images.run import Deadline
from assets.build.images.sets import STRANGE, STYLES
from assets.build.images.specs import SPECS, Spec
from assets.build.images.text import new_tokenizer
from lego import read_adapter
from tests.unit.assets.test_images import SMALL, Steps

HELD = next(concept for concept in DRAWN if held_out(concept, STRANGE))
FEW = (HELD, *[concept for concept in DRAWN if concept != HELD][:9], *sorted(UNSEEN)[:2])
KNOWN, NEW = FEW[:10], FEW[10:]
STYLE_SPEC = Spec("look", "Look", 2, 7, 4, STYLES[0], text=specs.TEXT, batch=4, kohya=True)
THING_SPEC = Spec(
    "thing", "Thing", 4, 8, 4, concepts=NEW[:1], word="zib", targets=specs.EVERYTHING, batch=4, kohya=True
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages with a square of its own colour and place for every concept and set."""
    folder = tmp_path_factory.mktemp("work")
    for shade, style in enumerate((*STYLES, STRANGE)):
        icons = {
            concept: {"body": f'<rect x="{at}" y="{at // 2}" width="{6 + shade}" height="9" fill="rgb({20 * at},{40 * shade},99)"/>'}
            for at, concept in enumerate(FEW)
        }  # fmt: skip
        package = folder / "packages" / f"{style.package.name.replace('/', '-')}-{style.package.version}/package"
        package.mkdir(parents=True)
        (package / "icons.json").write_text(json.dumps({"prefix": "x", "width": 24, "height": 24, "icons": icons}))
    return folder


@pytest.fixture(scope="module")
def base(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder as the build writes it, small and untrained."""
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    autoencoder = vae.new_vae(load_pictures(FEW, work).images())
    denoiser = diffusion.Denoiser(new_tokenizer(FEW), 32, 8, SMALL).eval()
    record = {
        "plan": {"steps": 1, "batch": 1, "rate": 1, "seed": 0}, "concepts": KNOWN, "psnr": 1, "pictures": 1, "seconds": 1,
        "unet_parameters": 1,
    }  # fmt: skip
    write_pipeline(new_pipeline(autoencoder, denoiser, new_tokenizer(FEW)), record, folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(1)
    record = {"plan": {"steps": 0, "batch": 1}, "seconds": 0, "among": 100, "ranked_first": {"train": 0, "held_out": 0}}
    write_contrastive(new_contrastive(new_tokenizer(FEW)).float(), new_tokenizer(FEW), record, folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loras, lora_scores):
        monkeypatch.setattr(module, "DRAWN", KNOWN)
    monkeypatch.setattr(lora_scores, "CONCEPTS", FEW)
    monkeypatch.setattr(lora_scores, "LEAST", 8)
    monkeypatch.setattr(grid, "STEPS", 2)


def load(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def adapted(spec: Spec, pipeline: StableDiffusionPipeline) -> diffusion.Parts:
    """As after a training that changed every module."""
    parts = loras.adapt(spec, pipeline)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in parts.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return parts


def test_there_are_locks_an_honest_try_and_subjects_of_several_ranks_and_seeds() -> None:
    locks = [spec for spec in SPECS.values() if spec.style in STYLES]
    assert len(locks) >= 3
    assert all(set(spec.targets) >= set(specs.ATTENTION) for spec in locks)
    tries = [spec for spec in SPECS.values() if spec.style == STRANGE]
    assert [set(spec.targets) for spec in tries] == [set(specs.EVERYTHING)]
    subjects = [spec for spec in SPECS.values() if spec.concepts]
    assert len(subjects) >= 3
    assert all(set(spec.concepts) <= UNSEEN and spec.style is None for spec in subjects)
    assert {spec.rank for spec in SPECS.values()} == {4, 8, 16}
    assert len({spec.seed for spec in SPECS.values()}) == len(SPECS)
    assert sum(spec.kohya for spec in SPECS.values()) == 2
    assert any(spec.text for spec in SPECS.values())
    assert not [a for a in SPECS for b in SPECS if a != b and a.startswith(b)]


def test_held_out_pairs_are_not_learnt(work: Path) -> None:
    own, others = loras.lessons(replace(STYLE_SPEC, style=STRANGE), work)
    assert others is None
    assert {concept for concept, _ in own.pairs} == {concept for concept in KNOWN if not held_out(concept, STRANGE)}
    own, others = loras.lessons(replace(THING_SPEC, concepts=NEW), work)
    assert set(own.pairs) == {(c, style) for c in NEW for style in STYLES if not held_out(c, style)}
    assert set(others.pairs) == {(c, style) for c in KNOWN for style in STYLES if not held_out(c, style)}


def test_a_lock_never_names_its_style_and_a_rare_word_stands_for_the_thing() -> None:
    rng = random.Random(0)
    found = {loras.lora_caption(STYLE_SPEC, "red-apple", STYLES[0], rng) for _ in range(200)}
    assert found == {"", "a red apple", "red apple"}
    thing = replace(THING_SPEC, concepts=("violin",))
    found = {loras.lora_caption(thing, "violin", STYLES[3], rng) for _ in range(300)}
    assert found == {"", "a zib", "zib", "a zib, flat style", "zib, flat style"}
    assert "zib" not in "".join(loras.lora_caption(thing, "red-apple", STYLES[3], rng) for _ in range(50))


@pytest.mark.parametrize("spec", [STYLE_SPEC, THING_SPEC])
def test_diffusers_draws_with_what_is_saved_as_training_did(spec: Spec, base: Path, tmp_path: Path) -> None:
    trained = load(base)
    loras.save(spec, adapted(spec, trained), tmp_path / "saved")
    loaded = load(base)
    plain = loaded("a zib", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    loaded.load_lora_weights(tmp_path / "saved")
    found, wanted = (
        pipeline("a zib", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
        for pipeline in (loaded, trained)
    )
    assert np.abs(found - wanted).max() < 5e-3
    assert np.abs(found - plain).max() > 5e-2


@pytest.mark.parametrize("spec", [STYLE_SPEC, THING_SPEC])
def test_lego_reads_the_same_factors_from_both_formats(spec: Spec, base: Path, tmp_path: Path) -> None:
    parts = adapted(spec, load(base))
    loras.save(spec, parts, tmp_path / spec.name)
    first, second = (
        read_adapter(tmp_path / spec.name),
        read_adapter(loras.save_kohya(tmp_path / spec.name, tmp_path / "kohya")),
    )
    assert (first.format, second.format) == ("diffusers", "kohya")
    layers = {
        f"{part}.{name}": module
        for part, model in (("unet", parts.unet), ("text_encoder.text_model", parts.text_encoder))
        for name, module in model.named_modules() if hasattr(module, "lora_A")
    }  # fmt: skip
    assert set(first.modules) == set(second.modules) == set(layers)
    assert any(spec.kernel == (3, 3) for spec in first.modules.values()) == (spec.targets == specs.EVERYTHING)
    for module, layer in layers.items():
        half = [
            getattr(layer, name)["default"].weight.detach().half().float().flatten(1) for name in ("lora_A", "lora_B")
        ]
        assert torch.equal(first[module].down, half[0])
        assert torch.equal(first[module].up, half[1])
        assert torch.equal(second[module].down, half[0])
        assert torch.equal(second[module].up, half[1])
        assert first.modules[module].scale == second.modules[module].scale == 1


def test_an_interrupted_training_ends_as_one_that_was_not(base: Path, work: Path, tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        for file in work.iterdir():
            (tmp_path / name / file.name).symlink_to(file)
    plan = loras.plan_of(THING_SPEC)
    whole, _ = loras.train_lora(THING_SPEC, load(base), tmp_path / "whole", Deadline(), plan)
    assert loras.train_lora(THING_SPEC, load(base), tmp_path / "parts", Steps(2), plan)[0] is None
    resumed, run = loras.train_lora(THING_SPEC, load(base), tmp_path / "parts", Deadline(), plan)
    assert run.step == 4
    assert all("lora_" in name for name in run.parameters)
    found = resumed.state_dict()
    assert [name for name, tensor in whole.state_dict().items() if not torch.equal(tensor, found[name])] == []


def test_prompts_are_of_held_out_pairs_and_do_not_tell_the_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_scores, "DRAWN", DRAWN)
    monkeypatch.setattr(lora_scores, "LEAST", 48)
    ink = SPECS["ink-style"]
    asked = lora_scores.own_prompts(ink)
    assert len(asked) >= 48
    assert all(held_out(prompt.concept, ink.style) and prompt.text == caption(prompt.concept) for prompt in asked)
    vehicles = lora_scores.own_prompts(SPECS["vehicles"])
    wanted = {
        caption(c, style) for c in SPECS["vehicles"].concepts for style in STYLES if held_out(c, style)
    } | {caption(c) for c in SPECS["vehicles"].concepts}  # fmt: skip
    assert {prompt.text for prompt in vehicles} == wanted
    assert {prompt.text.split(",")[0] for prompt in lora_scores.own_prompts(SPECS["zib"])} == {"a zib"}
    assert len(lora_scores.other_prompts()) == 48


def test_the_judge_chooses_the_nearest_style(work: Path, clip: Path) -> None:
    judge = lora_scores.Judge(clip, work)
    prompts = [lora_scores.Prompt(caption(concept), concept) for concept in FEW[:3]]
    drawn = [
        Image.fromarray(load_pictures((concept,), work, (style,)).pixels[0].numpy())
        for concept, style in zip(FEW[:3], (STRANGE, STRANGE, STYLES[0]), strict=True)
    ]
    assert judge.style(STRANGE, prompts, drawn) == pytest.approx(2 / 3)
    model, tokenizer = judge.model, judge.tokenizer
    nearest = []
    for concept, picture in zip(FEW[:3], drawn, strict=True):
        tokens = tokenizer([caption(concept, style) for style in STYLES], padding=True, return_tensors="pt")
        pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            nearest.append(int(model(**tokens, pixel_values=pixels).logits_per_image.argmax()))
    for at, style in enumerate(STYLES):
        assert judge.style(style, prompts, drawn) == nearest.count(at) / 3


def test_the_command_trains_judges_and_writes_cards(base, clip, work, tmp_path, monkeypatch, capsys) -> None:
    strange = replace(STYLE_SPEC, name="twemoji-style", style=STRANGE, kohya=False)
    shown = {"zib": replace(THING_SPEC, name="zib"), "twemoji-style": strange}
    monkeypatch.setattr(stages, "SPECS", shown)
    monkeypatch.setattr(concepts, "DRAWN", KNOWN)
    out = tmp_path / "adapters"
    arguments = ["image-loras", "--base", base, "--clip", clip, "--work", work, "--out", out, "--threads", 1]

    def run(*more: object) -> int:
        monkeypatch.setattr(sys, "argv", ["build", *map(str, [*arguments, *more])])
        return command.main()

    assert run("--minutes", 0) == 0
    assert not out.exists()
    assert run() == 0
    for name, licence in (("zib", "apache-2.0"), ("twemoji-style", "cc-by-4.0")):
        card = (out / name / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert (front["license"], front["base_model"]) == (licence, "brickyard-emoji-64")
        record = json.loads((out / name / "training.json").read_text())
        metric = "concept" if name == "zib" else "style"
        assert front["brickyard"]["after"] == pytest.approx(record["scores"]["lora"][metric], abs=1e-4)
        assert Image.open(out / name / "sample.png").size == (8 * 68 + 4, 2 * 68 + 4)
        learnt = {pixels.numpy().tobytes() for pixels in loras.lessons(shown[name], work)[0].pixels}
        sheet = np.asarray(Image.open(out / name / "references.png"))
        cut = [
            sheet[y : y + 64, x : x + 64] for y in range(0, sheet.shape[0], 64) for x in range(0, sheet.shape[1], 64)
        ]
        assert {tile.tobytes() for tile in cut if (tile < 255).any()} == learnt
        assert read_adapter(out / name).card["brickyard"]["rank"] == shown[name].rank
    assert (tmp_path / "kohya/zib/zib.safetensors").exists()
    assert not list(work.glob("lora-*"))
    before = load_file(out / "zib/pytorch_lora_weights.safetensors")
    assert run() == 0
    assert "already trained" in capsys.readouterr().out
    assert run("--only", "zib", "--force") == 0
    after = load_file(out / "zib/pytorch_lora_weights.safetensors")
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert run("--only", "kind") == 1
    assert "kind is no image LoRA" in capsys.readouterr().err
