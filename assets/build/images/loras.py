"""Training one image LoRA with peft, beside the frozen pipeline, and writing it as diffusers does and in kohya's format."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from assets.build.images import vae
from assets.build.images.concepts import ARTICLE, DRAWN, EMPTY, noun, phrase, training_caption
from assets.build.images.diffusion import Parts, denoising_loss
from assets.build.images.folder import replace_folder
from assets.build.images.pictures import Pictures, load_pictures
from assets.build.images.run import Deadline, Plan, Run
from assets.build.images.sets import Style
from assets.build.images.specs import Spec
from assets.build.images.text import token_ids
from lego import read_adapter, write_adapter

AVERAGE, WARMUP = 0.98, 20
OTHERS = 0.5
"""Of a concept's batches: pictures that the base knows, so that it does not forget them."""


def plan_of(spec: Spec) -> Plan:
    """Its training."""
    return Plan(spec.steps, spec.batch, spec.rate, spec.seed, AVERAGE, WARMUP)


def lessons(spec: Spec, work: Path) -> tuple[Pictures, Pictures | None]:
    """The pictures it learns, without the held-out pairs; and those that keep what the base knows, for a LoRA of concepts."""
    if spec.style:
        return load_pictures(DRAWN, work, (spec.style,)).select(held=False), None
    return load_pictures(spec.concepts, work).select(held=False), load_pictures(DRAWN, work).select(held=False)


def lora_caption(spec: Spec, concept: str, style: Style, rng: random.Random) -> str:
    """A caption as this training sees it: of a style, its word is never named; a rare word stands for the thing's own."""
    if spec.style:
        return "" if rng.random() < EMPTY else phrase(concept) if rng.random() < ARTICLE else noun(concept)
    words = training_caption(concept, style, rng)
    return words.replace(noun(concept), spec.word) if spec.word and concept in spec.concepts else words


def adapt(spec: Spec, pipeline: StableDiffusionPipeline) -> Parts:
    """Put untrained LoRA layers into the pipeline's UNet and, where asked, its text encoder; nothing else learns."""
    torch.manual_seed(spec.seed)  # peft draws A from torch's generator
    for part, targets in ((pipeline.unet, spec.targets), (pipeline.text_encoder, spec.text)):
        part.requires_grad_(False)
        if targets:
            part.add_adapter(LoraConfig(r=spec.rank, lora_alpha=spec.rank, target_modules=list(targets)))
    return Parts(pipeline.text_encoder, pipeline.unet)


def train_lora(
    spec: Spec, pipeline: StableDiffusionPipeline, work: Path, deadline: Deadline, plan: Plan
) -> tuple[Parts | None, Run]:
    """Train its layers in the pipeline's parts; None instead of them while the time was up before the end."""
    own, others = lessons(spec, work)
    pictures = [own] if others is None else [own, others]
    latents = [vae.encode(pipeline.vae, part.images()) for part in pictures]
    parts, device = adapt(spec, pipeline), pipeline.device
    alphas = pipeline.scheduler.alphas_cumprod.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        counts = (
            [plan.batch] if others is None else [plan.batch - round(OTHERS * plan.batch), round(OTHERS * plan.batch)]
        )
        rows = [
            torch.randint(len(part), (count,), generator=generator)
            for part, count in zip(pictures, counts, strict=True)
        ]
        # More of the noisy ones, as the base learnt: what a picture becomes is decided there.
        times = (torch.rand(plan.batch, generator=generator).sqrt() * len(alphas)).long().to(device)
        noise = torch.randn((plan.batch, *latents[0].shape[1:]), generator=generator).to(device)
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        captions = [
            lora_caption(spec, *part.pairs[row], rng)
            for part, chosen in zip(pictures, rows, strict=True) for row in chosen.tolist()
        ]  # fmt: skip
        ids = token_ids(pipeline.tokenizer, captions).to(device)
        clean = torch.cat([part[chosen.to(device)] for part, chosen in zip(latents, rows, strict=True)])
        return denoising_loss(parts, clean, ids, times, noise, alphas)

    run = Run(f"lora-{spec.name}", parts, plan, loss, work)
    return (run.averaged() if run.train(deadline) else None), run


def _state(part: torch.nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().half().contiguous() for key, tensor in get_peft_model_state_dict(part).items()}


def save(spec: Spec, parts: Parts, folder: Path) -> None:
    """``pytorch_lora_weights.safetensors`` in fp16, every module under peft's own name: diffusers' conversion to its older
    names knows only attention, and loads a file that mixes both without its convolutions.
    """  # fmt: skip
    learnt = {"unet": parts.unet, **({"text_encoder": parts.text_encoder} if spec.text else {})}
    layers = {f"{name}_lora_layers": _state(part) for name, part in learnt.items()}
    metadata = _collate_lora_metadata(learnt)
    for config in metadata.values():
        config["target_modules"] = sorted(config["target_modules"])  # a set, whose order differs from run to run
    StableDiffusionPipeline.save_lora_weights(folder, **layers, **metadata)


def save_kohya(folder: Path, place: Path) -> Path:
    """The same LoRA as one file in kohya's format, in ``place``."""
    adapter = read_adapter(folder)

    def fill(scratch: Path) -> None:
        written = write_adapter(adapter, scratch / "written", format="kohya")
        next(written.glob("*.safetensors")).rename(scratch / f"{adapter.name}.safetensors")
        for file in written.iterdir():
            file.unlink()
        written.rmdir()

    replace_folder(place / adapter.name, fill)
    return place / adapter.name / f"{adapter.name}.safetensors"
