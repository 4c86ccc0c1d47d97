"""The image model's build: drawings, captions, the linear encoder, resuming, and what is written. Made-up drawings, few steps."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from assets.build import __main__ as command
from assets.build import packages
from assets.build.images import contrast, diffusion, grid, stages, vae
from assets.build.images.concepts import CATEGORIES, CONCEPTS, DRAWN, UNSEEN, caption, training_caption
from assets.build.images.pictures import SIZE, Pictures, held_out, load_pictures, render
from assets.build.images.run import Deadline, Plan, Run
from assets.build.images.sets import STYLES, shared_concepts
from assets.build.images.text import new_tokenizer, token_ids
from assets.build.packages import BuildError, Package

MANY, FEW = CONCEPTS[:12], CONCEPTS[:8]
TWO = STYLES[:2]
SMALL = diffusion.Shape(channels=(16, 32), heads=2, groups=8)
PLAN = Plan(steps=3, batch=2, rate=1e-3, seed=5, average=0.9, warmup=1)
SIX = replace(PLAN, batch=6)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work folder whose packages hold one made-up drawing for every concept and set: a square of its own colour and place."""
    folder = tmp_path_factory.mktemp("work")
    for shade, style in enumerate(STYLES):
        icons = {}
        for at, concept in enumerate(MANY):
            box = f'x="{at % 16}" y="{at // 4}" width="{6 + shade}" height="{9 - shade}"'
            icons[concept] = {"body": f'<rect {box} fill="rgb({9 * at},{40 * shade},{255 - 9 * at})"/>'}
        icons[f"only-{style.word}"] = icons["ant"]
        package = folder / "packages" / f"{style.package.name.replace('/', '-')}-{style.package.version}/package"
        package.mkdir(parents=True)
        text = json.dumps({"prefix": "x", "width": 24, "height": 24, "icons": icons})
        (package / "icons.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pictures(work: Path) -> Pictures:
    return load_pictures(FEW, work, TWO)


def test_only_concepts_that_every_set_has_are_shared(work: Path):
    assert shared_concepts(work / "packages") == sorted(MANY)


def test_a_scoped_npm_package_is_unpacked_into_one_folder(tmp_path: Path, monkeypatch):
    (tmp_path / "icons.json").write_text("{}", encoding="utf-8")
    archive = tmp_path / "scope-thing-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "icons.json", "package/icons.json")
    package = Package("@scope/thing", "npm", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest(), "MIT", "")
    monkeypatch.setattr(packages, "_command", lambda package: ["cp", str(archive), "."])
    folder = packages.fetch(package, tmp_path / "cache")
    assert (folder / "package/icons.json").read_text(encoding="utf-8") == "{}"
    assert folder.parent == tmp_path / "cache"
    monkeypatch.setattr(packages, "_command", lambda package: pytest.fail("fetched again"))
    assert packages.fetch(package, tmp_path / "cache") == folder


def test_a_drawing_is_rendered_on_white_in_its_colours():
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE}" height="{SIZE}" viewBox="0 0 4 4">'
    pixels = render(head + '<rect x="0" y="2" width="2" height="2" fill="#102030"/></svg>')
    expected = np.full((SIZE, SIZE, 3), 255)
    expected[SIZE // 2 :, : SIZE // 2] = (16, 32, 48)
    assert np.array_equal(pixels, expected)


def test_pictures_are_drawn_once_and_read_back(work: Path, pictures: Pictures, monkeypatch):
    assert pictures.pixels.shape == (16, SIZE, SIZE, 3)
    monkeypatch.setattr("assets.build.images.pictures.render", lambda svg: pytest.fail("drawn again"))
    again = load_pictures(FEW, work, TWO)
    assert torch.equal(again.pixels, pictures.pixels)
    assert again.pairs == tuple((concept, style) for concept in FEW for style in TWO)


def test_one_pair_in_ten_is_held_out_and_selections_are_disjoint(pictures: Pictures):
    pairs = [(concept, style) for concept in CONCEPTS for style in STYLES]
    share = sum(held_out(*pair) for pair in pairs) / len(pairs)
    assert abs(share - 0.1) < 3 * math.sqrt(0.09 / len(pairs))
    kept, held = pictures.select(held=False), pictures.select(held=True)
    assert set(kept.pairs) | set(held.pairs) == set(pictures.pairs)
    assert not set(kept.pairs) & set(held.pairs)
    assert {concept for concept, _ in pictures.select(FEW[:2], held=False).pairs} == set(FEW[:2])


def test_every_concept_is_trained_in_enough_styles():
    assert len(CONCEPTS) == len(set(CONCEPTS))
    assert set(CONCEPTS) >= UNSEEN
    assert len(DRAWN) == len(CONCEPTS) - len(UNSEEN) >= 150
    trained = {concept: sum(not held_out(concept, style) for style in STYLES) for concept in CONCEPTS}
    assert sum(count >= 4 for count in trained.values()) >= 150
    assert min(trained.values()) >= 2
    assert sum(map(len, CATEGORIES.values())) == len(CONCEPTS)


@pytest.mark.parametrize(
    ("concept", "words"),
    [
        ("red-apple", "a red apple"), ("octopus", "an octopus"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"),
        ("hourglass-done", "an hourglass"), ("scissors", "scissors"), ("bus", "a bus"), ("popcorn", "popcorn"),
        ("smiling-face-with-sunglasses", "a smiling face with sunglasses"), ("automobile", "a car"), ("dress", "a dress"),
    ],
)  # fmt: skip
def test_captions_are_english(concept: str, words: str):
    assert concept in CONCEPTS
    assert caption(concept) == words
    assert caption(concept, STYLES[3]) == f"{words}, flat style"


def test_training_captions_are_mostly_without_style_and_sometimes_empty():
    rng = random.Random(1)
    drawn = [training_caption("red-apple", STYLES[3], rng) for _ in range(4000)]
    assert set(drawn) == {"", "a red apple", "red apple", "a red apple, flat style", "red apple, flat style"}
    assert abs(drawn.count("") / 4000 - 0.1) < 0.02
    assert abs(sum("flat" in text for text in drawn) / 4000 - 0.9 * 0.25) < 0.03


def test_the_vocabulary_keeps_known_words_whole_and_spells_the_others(tmp_path: Path):
    tokenizer = new_tokenizer(FEW)
    ids = token_ids(tokenizer, [caption(FEW[0], TWO[0]), "Größe quux!", ""])
    assert ids.shape == (3, tokenizer.model_max_length)
    assert tokenizer.convert_ids_to_tokens(ids[0])[:4] == ["<|startoftext|>", "an</w>", "ant</w>", ",</w>"]
    assert tokenizer.decode(ids[1], skip_special_tokens=True) == "größe quux !"
    assert ids[1].tolist().index(tokenizer.eos_token_id) == len(tokenizer("Größe quux!").input_ids) - 1
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(
        token_ids(CLIPTokenizer.from_pretrained(tmp_path), ["a zebra"]), token_ids(tokenizer, ["a zebra"])
    )


def test_the_encoder_is_the_principal_components_of_patches(pictures: Pictures):
    torch.manual_seed(0)
    images = (pictures.images() + 0.3 * torch.randn(16, 3, SIZE, SIZE)).clamp(-1, 1)
    autoencoder = vae.new_vae(images)
    with torch.no_grad():
        found = autoencoder.encode(images).latent_dist
    flat = np.stack([
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
        for image in images.double().numpy() for row in range(8) for column in range(8)
    ])  # fmt: skip
    centred = flat - flat.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][: vae.LATENTS]
    latents = centred @ axes.T
    latents = (latents / np.sqrt((latents**2).mean())).reshape(16, 8, 8, -1).transpose(0, 3, 1, 2)
    signs = np.sign((found.mean.numpy() * latents).sum((0, 2, 3), keepdims=True))
    assert np.abs(found.mean.numpy() - signs * latents).max() < 2e-3
    assert found.std.max() < 1e-6


def _nearest(latents: np.ndarray, row: int, column: int) -> np.ndarray:
    """The latents (row, column, latent) of the four patches nearest to a quarter of a patch, and a 1; nothing lies outside."""
    found = [np.ones(1)]
    for place in (row // 2, row // 2 - 1 + 2 * (row % 2)):
        for other in (column // 2, column // 2 - 1 + 2 * (column % 2)):
            inside = 0 <= place < len(latents) and 0 <= other < latents.shape[1]
            found.append(latents[place, other] if inside else np.zeros(latents.shape[2]))
    return np.concatenate(found)


def _quarters(images: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    return np.stack([
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1) for image in images for row, column in places
    ])  # fmt: skip


def test_the_decoder_is_the_best_linear_one_of_the_four_nearest_latents():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, SIZE, SIZE, generator=generator).cumsum(2).cumsum(3).mul(0.03).sin()
    autoencoder = vae.new_vae(images)
    with torch.no_grad():
        latents = autoencoder.encode(images).latent_dist.mode()
        decoded = autoencoder.decode(latents).sample
    for below, right in itertools.product(range(2), repeat=2):
        places = [(row, column) for row in range(below, 16, 2) for column in range(right, 16, 2)]
        known = latents.double().permute(0, 2, 3, 1).numpy()
        inputs = np.stack([_nearest(picture, *place) for picture in known for place in places])
        wanted = _quarters(images.double().numpy(), places)
        best = inputs @ np.linalg.lstsq(inputs, wanted)[0]
        assert np.abs(_quarters(decoded.double().numpy(), places) - best).max() < 0.02
        assert np.square(best - wanted).mean() < 0.5 * wanted.var()


def test_psnr_is_that_of_the_definition(pictures: Pictures):
    autoencoder = vae.new_vae(pictures.images())
    with torch.no_grad():
        back = autoencoder.decode(autoencoder.encode(pictures.images()).latent_dist.mean).sample
    error = ((back.clamp(-1, 1) - pictures.images()) / 2).double().square().mean()
    assert vae.psnr(autoencoder, pictures.images()) == pytest.approx(10 * math.log10(1 / error), abs=1e-3)


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    plan = Plan(steps=110, batch=1, rate=2.0, seed=0, average=0.0, warmup=10)
    assert [plan.rate_at(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert plan.rate_at(10) == pytest.approx(2.0)
    assert plan.rate_at(60) == pytest.approx(1.0)
    assert plan.rate_at(109) == pytest.approx(2 * math.sin(math.pi / 200) ** 2)


def _train_denoiser(pictures: Pictures, folder: Path, deadline: Deadline) -> nn.Module | None:
    latents = torch.randn(len(pictures), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return diffusion.train_denoiser(latents, pictures, new_tokenizer(FEW), folder, deadline, PLAN, SMALL)[0]


def _train_contrastive(pictures: Pictures, folder: Path, deadline: Deadline, plan: Plan = SIX) -> nn.Module | None:
    return contrast.train_contrastive(pictures, new_tokenizer(FEW), folder, "cpu", deadline, plan)[0]


class Steps(Deadline):
    """Passed after so many steps."""

    def __init__(self, left: int) -> None:
        self.left = left

    def passed(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("train", [_train_denoiser, _train_contrastive])
def test_an_interrupted_run_ends_as_one_that_was_not(train: Callable, pictures: Pictures, tmp_path: Path):
    whole = train(pictures, tmp_path / "whole", Deadline())
    assert train(pictures, tmp_path / "parts", Steps(1)) is None
    (tmp_path / "parts/left.checkpoint.part").write_text("of a write that was cut off")
    assert train(pictures, tmp_path / "parts", Steps(1)) is None
    parts = train(pictures, tmp_path / "parts", Deadline())
    assert len(whole.state_dict()) == len(parts.state_dict()) > 0
    assert [key for key, tensor in whole.state_dict().items() if not torch.equal(tensor, parts.state_dict()[key])] == []
    file = next((tmp_path / "whole").glob("*.safetensors")).name
    states = [load_file(tmp_path / name / file) for name in ("whole", "parts")]
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_a_run_takes_adamw_steps_and_averages_the_weights(tmp_path: Path):
    def distance(module: nn.Module, generator: torch.Generator):
        return (module.weight - torch.randn(1, 2, generator=generator)).square().sum()

    torch.manual_seed(0)
    module, plain = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    plain.load_state_dict(module.state_dict())
    plan = Plan(steps=4, batch=1, rate=0.1, seed=9, average=0.75, warmup=2, decay=0.01)
    run = Run("line", module, plan, lambda generator: distance(module, generator), tmp_path)
    assert run.train(Deadline())
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.01)
    average = plain.weight.detach().clone()
    for step, rate in enumerate((0.05, 0.1, 0.1, 0.05)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = distance(plain, torch.Generator().manual_seed(9 * 2**32 + step))
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        average = 0.75 * average + 0.25 * plain.weight.detach()
        assert run.losses[step] == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(module.weight, plain.weight, atol=1e-6)
    assert torch.allclose(run.averaged().weight, average, atol=1e-6)


def test_a_checkpoint_of_another_plan_is_refused(pictures: Pictures, tmp_path: Path):
    assert _train_contrastive(pictures, tmp_path, Steps(1)) is None
    with pytest.raises(BuildError, match=r"contrastive\.checkpoint\.safetensors belongs to another plan"):
        _train_contrastive(pictures, tmp_path, Deadline(), replace(PLAN, steps=4))


def test_a_caption_is_true_of_the_same_concept_and_of_the_style_it_names():
    pairs = [("cat", STYLES[0]), ("cat", STYLES[1]), ("dog", STYLES[0])]
    assert contrast._matches(pairs, [False, True, False]).tolist() == [
        [True, False, False], [True, True, False], [False, False, True],
    ]  # fmt: skip


def test_disturbed_pictures_keep_their_white_surroundings():
    sheet = torch.ones(4, 3, SIZE, SIZE)
    assert torch.allclose(contrast.disturbed(sheet, torch.Generator().manual_seed(0)), sheet)
    sheet[:, :, 24:40, 24:40] = -1
    moved = contrast.disturbed(sheet, torch.Generator().manual_seed(0))
    assert not torch.equal(moved[0], moved[1])
    assert moved.amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 4)
    assert (1 - moved).sum((1, 2, 3)).div((1 - sheet).sum((1, 2, 3))).sub(1).abs().max() < 0.8


def test_sample_captions_are_seeded_and_name_each_concept_once(pictures: Pictures):
    chosen = grid.sample_captions(pictures, 6, seed=3)
    assert chosen == grid.sample_captions(pictures, 6, seed=3)
    assert len({concept for concept, _ in chosen}) == 6
    assert all(text.startswith(caption(concept)) for concept, text in chosen)


def _main(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["build", *map(str, arguments)])
    return command.main()


def test_the_commands_make_a_pipeline_that_diffusers_draws_with(work: Path, tmp_path: Path, monkeypatch, capsys):
    for module in (diffusion, contrast):
        monkeypatch.setattr(module, "PLAN", replace(PLAN, batch=4))
    monkeypatch.setattr(stages, "CONCEPTS", MANY)
    monkeypatch.setattr(stages, "DRAWN", MANY)
    monkeypatch.setattr(grid, "STEPS", 2)
    base, clip = tmp_path / "base", tmp_path / "clip"
    common = ("--work", work, "--threads", 1)
    assert _main(monkeypatch, "image-base", "--out", base, "--minutes", 0, *common) == 0
    assert not base.exists()
    assert _main(monkeypatch, "image-base", "--out", base, *common) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    assert type(pipeline.vae) is AutoencoderKL
    sizes = {file: file.stat().st_size for file in base.rglob("*") if file.is_file()}
    assert max(sizes.values()) < 10e6
    assert sum(sizes.values()) < 40e6
    assert sum(p.numel() for p in pipeline.unet.parameters()) == pytest.approx(10e6, rel=0.05)
    picture = pipeline("a red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (SIZE, SIZE, 3)
    assert np.isfinite(picture).all()
    first = (base / "samples.png").read_bytes()
    assert _main(monkeypatch, "image-clip", "--out", clip, *common) == 0
    assert _main(monkeypatch, "image-grid", base, "--clip", clip, *common) == 0
    assert (base / "samples.png").read_bytes() == first
    assert "first among 100" in capsys.readouterr().out
    assert CLIPModel.from_pretrained(clip).config.vision_config.image_size == SIZE
    assert CLIPImageProcessor.from_pretrained(clip).image_mean == (0.5, 0.5, 0.5)
    assert _main(monkeypatch, "image-grid", *common) == 1
    assert "image-grid needs a folder" in capsys.readouterr().err
