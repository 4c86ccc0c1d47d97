"""The stages of the build for pictures: ``image-base``, ``-grid``, ``-clip``, ``-loras``, ``-scores`` and ``-captions``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from assets.build.images.concepts import CONCEPTS, DRAWN
from assets.build.images.specs import SPECS, Spec
from assets.build.packages import BuildError

if TYPE_CHECKING:
    from assets.build.images.diffusion import Parts
    from assets.build.images.lora_scores import Judge
    from assets.build.images.run import Plan, Run

AMONG = 100
DATA = Path(__file__).parents[2] / "image" / "data"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that these stages take besides ``--work`` and ``--threads``."""
    parser.add_argument("folder", nargs="?", type=Path, help="image-grid: the pipeline to draw with")
    parser.add_argument("--out", type=Path, help="image-base, image-clip, image-loras, image-captions: folder to write")
    parser.add_argument("--clip", type=Path, help="image-grid, image-loras: folder of the contrastive model, the judge")
    parser.add_argument("--device", default="cpu", help="where images are trained and drawn: cpu or cuda")
    parser.add_argument("--minutes", type=float, help="of images: stop after this long, to be continued")
    parser.add_argument("--steps", type=int, help="of images: planned steps, instead of the default")


def _planned(plan: Plan, steps: int | None) -> Plan:
    return plan if steps is None else replace(plan, steps=steps)


def _record(run: Run, pictures: int, concepts: Sequence[str]) -> dict:
    every = max(run.plan.steps // 100, 1)
    losses = [round(part.mean().item(), 4) for part in run.losses.split(every)]
    return {
        "plan": asdict(run.plan),
        "seconds": round(run.seconds),
        "pictures": pictures,
        "concepts": list(concepts),
        "loss": losses,
    }


def _set_up(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")


def _needed(arguments: argparse.Namespace, name: str) -> Path:
    value = getattr(arguments, name)
    if value is None:
        raise BuildError(f"{arguments.stage} needs {'a folder' if name == 'folder' else f'--{name} FOLDER'}")
    return value


def image_base(arguments: argparse.Namespace) -> None:
    """Train the denoiser and write the pipeline; goes on where it was stopped."""
    out = _needed(arguments, "out")
    _set_up(arguments)
    import torch
    from transformers import CLIPModel

    from assets.build.images import diffusion, vae
    from assets.build.images.folder import new_pipeline, write_pipeline
    from assets.build.images.pictures import load_pictures
    from assets.build.images.run import Deadline
    from assets.build.images.sets import shared_concepts
    from assets.build.images.text import new_tokenizer

    deadline = Deadline(arguments.minutes)
    every = load_pictures(shared_concepts(arguments.work / "packages"), arguments.work)
    autoencoder = vae.new_vae(every.select(held=False).images()).to(arguments.device)
    pictures, tokenizer = every.select(DRAWN, held=False), new_tokenizer(CONCEPTS)
    latents = vae.encode(autoencoder, pictures.images())
    plan = _planned(diffusion.PLAN, arguments.steps)
    start = CLIPModel.from_pretrained(arguments.clip, dtype=torch.float32).text_model if arguments.clip else None
    denoiser, run = diffusion.train_denoiser(
        latents, pictures, tokenizer, arguments.work, deadline, plan, text_encoder=start
    )
    if denoiser is None:
        print("The time is up; the same command goes on from here.", flush=True)
        return
    record = _record(run, len(pictures), DRAWN)
    record["psnr"] = round(vae.psnr(autoencoder, every.select(held=True).images()), 2)
    record["unet_parameters"] = sum(p.numel() for p in denoiser.unet.parameters())
    write_pipeline(new_pipeline(autoencoder, denoiser, tokenizer), record, out)
    image_grid(argparse.Namespace(**{**vars(arguments), "folder": out}))


def image_grid(arguments: argparse.Namespace) -> None:
    """Draw 48 captions with a fixed seed into the pipeline's folder: ``samples.png``, and ``samples.txt`` with the captions."""
    folder = _needed(arguments, "folder")
    _set_up(arguments)
    import torch
    from diffusers import StableDiffusionPipeline

    from assets.build.images import grid
    from assets.build.images.pictures import load_pictures

    pictures = load_pictures(CONCEPTS, arguments.work).select(DRAWN, held=False)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(arguments.device)
    chosen = grid.sample_captions(pictures)
    drawn = grid.draw(pipeline, [caption for _, caption in chosen], 0, grid.STEPS, grid.GUIDANCE)
    grid.sheet(drawn).save(folder / "samples.png", optimize=True)
    lines = [f"{at // 8 + 1}.{at % 8 + 1} {caption}\n" for at, (_, caption) in enumerate(chosen)]
    (folder / "samples.txt").write_text("".join(lines), encoding="utf-8")
    print(f"{folder / 'samples.png'}: {len(drawn)} captions", flush=True)
    if arguments.clip:
        _rank(arguments.clip, drawn, [concept for concept, _ in chosen])


def _rank(clip: Path, drawn: list, concepts: list[str]) -> None:
    import numpy as np
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    from assets.build.images.contrast import ranked_first

    model = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn]))
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    first = ranked_first(model, CLIPTokenizer.from_pretrained(clip), images, concepts, CONCEPTS, AMONG)
    print(f"the right caption is first among {AMONG} for {first:.1%} of them", flush=True)


def image_clip(arguments: argparse.Namespace) -> None:
    """Train the contrastive model and write it; goes on where it was stopped."""
    out = _needed(arguments, "out")
    _set_up(arguments)
    from assets.build.images import contrast
    from assets.build.images.folder import write_contrastive
    from assets.build.images.pictures import load_pictures
    from assets.build.images.run import Deadline
    from assets.build.images.text import new_tokenizer

    every, tokenizer = load_pictures(CONCEPTS, arguments.work), new_tokenizer(CONCEPTS)
    splits = {"train": every.select(held=False), "held_out": every.select(held=True)}
    plan = _planned(contrast.PLAN, arguments.steps)
    deadline = Deadline(arguments.minutes)
    model, run = contrast.train_contrastive(
        splits["train"], tokenizer, arguments.work, arguments.device, deadline, plan
    )
    if model is None:
        print("The time is up; the same command goes on from here.", flush=True)
        return
    record = _record(run, len(splits["train"]), CONCEPTS)
    record["among"], record["ranked_first"] = AMONG, {}
    for name, split in splits.items():
        own = [concept for concept, _ in split.pairs]
        first = contrast.ranked_first(model, tokenizer, split.images().to(model.device), own, CONCEPTS, AMONG)
        record["ranked_first"][name] = round(first, 4)
        print(f"{name}: the right caption is first among {AMONG} for {first:.1%} of {len(own)} pictures", flush=True)
    write_contrastive(model, tokenizer, record, out)


def image_loras(arguments: argparse.Namespace) -> None:
    """Train what is not there yet, one LoRA after another, on the pipeline in ``--base``; each is judged and gets its card."""
    out, clip = _needed(arguments, "out"), _needed(arguments, "clip")
    _set_up(arguments)
    import torch
    from diffusers import StableDiffusionPipeline

    from assets.build.images.lora_scores import Judge
    from assets.build.images.loras import plan_of, train_lora
    from assets.build.images.run import Deadline

    deadline, judge = Deadline(arguments.minutes), Judge(clip, arguments.work)
    for name in arguments.only or SPECS:
        if name not in SPECS:
            raise BuildError(f"{name} is no image LoRA; there are {', '.join(SPECS)}")
        folder, spec = out / name, SPECS[name]
        if (folder / "training.json").exists() and not arguments.force:
            print(f"{name}: already trained", flush=True)
            continue
        pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, torch_dtype=torch.float32).to(
            arguments.device
        )
        plan = _planned(plan_of(spec), arguments.steps)
        parts, run = train_lora(spec, pipeline, arguments.work, deadline, plan)
        if parts is None:
            print("The time is up; the same command goes on from here.", flush=True)
            return
        _write_lora(spec, parts, run, arguments, judge, folder)
        run.checkpoint.unlink()


def _write_lora(spec: Spec, parts: Parts, run: Run, arguments: argparse.Namespace, judge: Judge, folder: Path) -> None:
    """Save a LoRA, judge what was saved, write its card."""
    from assets.build.images.folder import replace_folder
    from assets.build.images.lora_scores import references
    from assets.build.images.loras import lessons, save, save_kohya

    def fill(scratch: Path) -> None:
        save(spec, parts, scratch)
        own, _ = lessons(spec, arguments.work)
        references(own).save(scratch / "references.png", optimize=True)
        _judge(spec, scratch, _record(run, len(own), spec.concepts), arguments, judge)

    replace_folder(folder, fill)
    if spec.kohya:
        save_kohya(folder, folder.parents[1] / "kohya")


def _judge(spec: Spec, folder: Path, record: dict, arguments: argparse.Namespace, judge: Judge) -> None:
    """Load a stored LoRA into the base as anyone does, judge that, write sample, record and card."""
    import torch
    from diffusers import StableDiffusionPipeline

    from assets.build.images.lora_cards import card
    from assets.build.images.lora_scores import score

    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, torch_dtype=torch.float32).to(arguments.device)
    found, sheet = score(spec, pipeline, lambda base: base.load_lora_weights(folder), judge)
    print(f"{spec.name}: {found['scores']}", flush=True)
    sheet.save(folder / "sample.png", optimize=True)
    whole = {**record, **found}
    (folder / "training.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(spec, whole), encoding="utf-8")


def image_scores(arguments: argparse.Namespace) -> None:
    """Judge the LoRAs that are there again, and write their cards anew."""
    out, clip = _needed(arguments, "out"), _needed(arguments, "clip")
    _set_up(arguments)
    from assets.build.images.lora_scores import Judge

    judge = Judge(clip, arguments.work)
    for place in sorted(out.glob("*/training.json")):
        if place.parent.name in (arguments.only or SPECS):
            record = json.loads(place.read_text(encoding="utf-8"))
            _judge(SPECS[place.parent.name], place.parent, record, arguments, judge)


def image_captions(arguments: argparse.Namespace) -> None:
    """Write the pictures with captions of every LoRA, or of those that ``--only`` names, into ``--out`` or the repository."""
    from assets.build.images.captioned import overview, write_set

    out, counts = arguments.out or DATA, []
    for name in arguments.only or SPECS:
        if name not in SPECS:
            raise BuildError(f"{name} is no image LoRA; there are {', '.join(SPECS)}")
        counts.append((SPECS[name], write_set(SPECS[name], arguments.work, out / name)))
        print(f"{name}: {counts[-1][1]}", flush=True)
    if not arguments.only:
        (out / "README.md").write_text(overview(counts), encoding="utf-8")


STAGES = {
    "image-base": image_base,
    "image-grid": image_grid,
    "image-clip": image_clip,
    "image-loras": image_loras,
    "image-scores": image_scores,
    "image-captions": image_captions,
}
