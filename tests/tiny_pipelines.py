"""Pipelines with every part of Stable Diffusion's, Stable Diffusion XL's and FLUX's, of a few thousand random weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 12
WIDTH = 8
"""Of the text encoders."""
LETTERS = "abcdefghijklmnopqrstuvwxyz ,"


def clip_tokenizer() -> CLIPTokenizer:
    """One token a letter, as in CLIP's own vocabulary before it merges any."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer({name: number for number, name in enumerate(names)}, [], model_max_length=LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """One token a letter."""
    names = ["<pad>", "</s>", "<unk>", "▁", *LETTERS.replace(" ", "")]
    return T5Tokenizer([(name, -1.0) for name in names], extra_ids=0, model_max_length=LENGTH)


def clip(projection: bool = False) -> Any:
    """A text encoder of two layers."""
    tokens = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=tokens, hidden_size=WIDTH, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=WIDTH, bos_token_id=tokens - 2, eos_token_id=tokens - 1,
        pad_token_id=tokens - 1, initializer_range=0.5, initializer_factor=10.0,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5() -> T5EncoderModel:
    """A text encoder of two layers."""
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        initializer_factor=2.0,
    )
    return T5EncoderModel(config)


def autoencoder(**more: Any) -> AutoencoderKL:
    """All blocks of Stable Diffusion's: a latent is a patch of 8 × 8 pixels."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=2, sample_size=64,
        **{"scaling_factor": 0.18, **more},
    )  # fmt: skip


def sd() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: 64 × 64 pixels."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 8, 8),
        attention_head_dim=2,
        norm_num_groups=2,
        cross_attention_dim=WIDTH,
        sample_size=8,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=clip(), tokenizer=clip_tokenizer(), unet=unet, scheduler=scheduler(DDIMScheduler),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL, its deepest blocks with 2 layers of 10: 64 × 64 pixels."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8, 8), norm_num_groups=2, cross_attention_dim=2 * WIDTH, sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 2),
        attention_head_dim=2, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=WIDTH + 6 * 2,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(force_upcast=True), text_encoder=clip(), text_encoder_2=clip(True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet, scheduler=scheduler(EulerDiscreteScheduler),
        add_watermarker=False,
    )  # fmt: skip


def flux() -> FluxPipeline:
    """FLUX.1 dev, 2 double and 2 single blocks: 64 × 64 pixels."""
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = autoencoder(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
    made = FluxPipeline(
        vae=vae, text_encoder=clip(), text_encoder_2=t5(), tokenizer=clip_tokenizer(), tokenizer_2=t5_tokenizer(),
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip
    made.default_sample_size = 8
    return made


def scheduler(kind: Any) -> Any:
    """With Stable Diffusion's noise."""
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        **({"clip_sample": False} if kind is DDIMScheduler else {}),
    )


MAKERS = {"sd": sd, "sdxl": sdxl, "flux": flux}


def tiny_pipeline(name: str, seed: int = 0) -> DiffusionPipeline:
    """One of `MAKERS` with random weights large enough that pictures vary."""
    torch.manual_seed(seed)
    made = MAKERS[name]()
    for part in made.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    for layer in made.vae.decoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.mul_(1.5)
    return made


def tiny_folder(folder: Path, name: str, seed: int = 0, **options: Any) -> Path:
    """The same, saved as diffusers does."""
    tiny_pipeline(name, seed).save_pretrained(folder, **options)
    return folder
