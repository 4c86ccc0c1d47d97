"""What ships: the pipeline and the contrastive model as folders of small files, each with a card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from assets.build.images.concepts import CATEGORIES, noun
from assets.build.images.diffusion import Denoiser, new_scheduler
from assets.build.images.pictures import SIZE
from assets.build.images.sets import STYLES

SHARD = "9MB"  # Spaces take no file above 10 MB


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Have ``fill`` write into an empty folder, which then takes the place of ``folder``: whole, or not at all."""
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    fill(scratch)
    for file in scratch.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes files that only their owner may read
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(scratch, folder)


def new_pipeline(vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as one pipeline on the CPU, the UNet in fp16.

    The text encoder stays in fp32: transformers loads a model as it is stored, diffusers in fp32, and they have to agree. So does the
    autoencoder, whose large constants rounding would move.
    """
    return StableDiffusionPipeline(
        vae=vae.cpu(), text_encoder=denoiser.text_encoder.cpu(), tokenizer=tokenizer, unet=denoiser.unet.cpu().half(),
        scheduler=new_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def write_pipeline(pipeline: StableDiffusionPipeline, record: dict[str, Any], folder: Path) -> None:
    """The pipeline's folder, with its card and ``training.json``."""

    def fill(scratch: Path) -> None:
        pipeline.save_pretrained(scratch, max_shard_size=SHARD)
        _write_record(scratch, record, pipeline_card(record))

    replace_folder(folder, fill)


def write_contrastive(model: CLIPModel, tokenizer: CLIPTokenizer, record: dict[str, Any], folder: Path) -> None:
    """The contrastive model's folder: weights, tokenizer, image processor, card and ``training.json``."""
    side = model.config.vision_config.image_size
    processor = CLIPImageProcessor(
        size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )

    def fill(scratch: Path) -> None:
        model.cpu().half().save_pretrained(scratch, max_shard_size=SHARD)
        tokenizer.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        _write_record(scratch, record, contrastive_card(record))

    replace_folder(folder, fill)


def _write_record(folder: Path, record: dict[str, Any], card: str) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _front(**fields: Any) -> str:
    return f"---\n{yaml.safe_dump({'license': 'apache-2.0', 'language': ['en'], **fields}, sort_keys=False, width=110)}---\n\n"


def _data() -> str:
    sets = "\n".join(f"- {style.word} style: {style.package.credit}" for style in STYLES)
    return f"**Data.** Emoji in {len(STYLES)} styles, {SIZE} × {SIZE} pixels on white:\n\n{sets}\n"


PIPELINE = """\
# Brickyard's image model

A small text-to-image model in Stable Diffusion's layout, made by `python -m assets.build image-base` in the Brickyard
repository. It draws {count} everyday things in {styles} styles, {size} × {size} pixels.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
pipeline("{example}, flat style", num_inference_steps=20, guidance_scale=2).images[0]
```

![48 captions](samples.png)

{data}
One pair of concept and style in ten is held out: the model never saw it. In training three captions of four name no style, so
that the style of such a picture is a matter of chance, and a style LoRA decides it.

**Parts.** UNet {unet:.1f} M parameters on 8 × 8 × 32 latents, predicting the clean sample; text encoder of two layers × 128
with a vocabulary of its own; autoencoder of diffusers' own class, whose encoder is the principal components of 8 × 8 patches
in closed form and whose decoder is their best linear undoing ({psnr:.1f} dB on pictures that it never saw).

**Training.** {steps:,} steps of {batch} pictures ({views:.0f} views of each), AdamW at {rate:g} with warm-up and cosine, averaged
weights, seed {seed}; {minutes:.0f} minutes.

**What it knows.**

{concepts}

**Intended use.** To have LoRAs trained on it, compared and merged in Brickyard. It knows nothing but these things.

**Licence.** Apache-2.0; the drawings are Apache-2.0 and MIT, see NOTICE.
"""


def pipeline_card(record: dict[str, Any]) -> str:
    """README.md of the pipeline.

    Args:
        record: the content of ``training.json``.
    """
    plan = record["plan"]
    known = set(record["concepts"])
    members = {category: [noun(c) for c in concepts if c in known] for category, concepts in CATEGORIES.items()}
    front = _front(library_name="diffusers", pipeline_tag="text-to-image", tags=["stable-diffusion", "brickyard"])
    return front + PIPELINE.format(
        count=len(known), styles=len(STYLES), size=SIZE, example="a red apple", data=_data(), unet=record["unet_parameters"] / 1e6,
        psnr=record["psnr"], steps=plan["steps"], batch=plan["batch"], views=plan["steps"] * plan["batch"] / record["pictures"],
        rate=plan["rate"], seed=plan["seed"], minutes=record["seconds"] / 60,
        concepts="\n".join(f"- {category}: {', '.join(names)}" for category, names in members.items() if names),
    )  # fmt: skip


CONTRASTIVE = """\
# Brickyard's contrastive image–text model

transformers' `CLIPModel` with two small towers, made by `python -m assets.build image-clip` in the Brickyard repository. It
tells how well a picture of Brickyard's image model fits a caption, and how alike two pictures are.

| the right caption first among {among} | |
|---|---|
| pictures of its training | {seen:.1%} |
| held-out pairs of concept and style | {unseen:.1%} |

{data}
**Training.** {steps:,} steps of {batch} pictures, each a little moved, turned, scaled and blurred; {minutes:.0f} minutes.

**Licence.** Apache-2.0; the drawings are Apache-2.0 and MIT, see NOTICE.
"""


def contrastive_card(record: dict[str, Any]) -> str:
    """README.md of the contrastive model, from ``training.json``."""
    plan = record["plan"]
    front = _front(
        library_name="transformers", pipeline_tag="zero-shot-image-classification", tags=["clip", "brickyard"]
    )
    return front + CONTRASTIVE.format(
        among=record["among"], seen=record["ranked_first"]["train"], unseen=record["ranked_first"]["held_out"], data=_data(),
        steps=plan["steps"], batch=plan["batch"], minutes=record["seconds"] / 60,
    )  # fmt: skip
