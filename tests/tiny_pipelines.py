"""Pipelines with every part of Stable Diffusion's, Stable Diffusion XL's and FLUX's, of a few thousand random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
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

from backends.bases import ImageBase, load_base
from backends.device import pick

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


def tiny_image_base(folder: Path, name: str = "sd") -> ImageBase:
    """The same as the app loads it, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRICKYARD_DEVICE", "cpu")
        base = load_base(str(tiny_folder(folder / name, name)))
    assert isinstance(base, ImageBase)
    return base


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are the same but for what batches of other sizes round otherwise; in 16 bits, on a GPU, that is more."""
    far = np.abs(one.astype(int) - other)
    return bool(far.max() <= 1 if pick()[1] == torch.float32 else far.mean() <= 4)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERY = (
    *ATTENTION, "conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "proj_in", "proj_out", "ff.net.0.proj",
    "ff.net.2", "time_emb_proj", "linear_1", "linear_2",
)  # fmt: skip
BLOCKS = (*ATTENTION, "add_q_proj", "norm1.linear", "ff.net.0.proj", "ff_context.net.2", "proj_mlp", "x_embedder")
CLIP = ("q_proj", "v_proj", "out_proj", "fc1", "fc2")
T5 = ("q", "v", "wi", "wo")
UNEVEN = {"to_k": 1, "conv1": -1, "fc1": -1}
TARGETS = {"unet": EVERY, "transformer": BLOCKS, "text_encoder": CLIP, "text_encoder_2": CLIP}


def lora_states(
    name: str, seed: int, rank: int = 3, only: Sequence[str] = (), even: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """A random LoRA of a pipeline: PEFT's state of every part by the part's name.

    Args:
        name: of the pipeline.
        seed: of the factors.
        rank: of most modules.
        only: parts; all that TARGETS names unless given.
        even: whether all ranks are equal; else those of UNEVEN differ.
    """
    made = tiny_pipeline(name)
    found = {}
    for number, (part, targets) in enumerate(TARGETS.items()):
        model = getattr(made, part, None)
        if model is None or (only and part not in only) or (name == "flux" and part == "text_encoder_2"):
            continue  # diffusers loads no LoRAs into T5
        torch.manual_seed(100 * seed + number)
        ranks = {} if even else {kind: rank + more for kind, more in UNEVEN.items() if kind in targets}
        config = LoraConfig(
            r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=ranks, target_modules=list(targets)
        )
        model.add_adapter(config)
        state = get_peft_model_state_dict(model, adapter_name="default")
        found[part] = {key: torch.randn_like(value) * SIZE / value[0].numel() ** 0.5 for key, value in state.items()}
    return found


SIZE = 0.5
"""Spread of the factors' numbers: a LoRA then changes pictures visibly."""


def write_lora(folder: Path, name: str, seed: int, form: str, **more: Any) -> Path:
    """A random LoRA of a pipeline as a file.

    Args:
        folder: to make.
        name: of the pipeline.
        seed: of the factors.
        form: ``peft`` (as `save_lora_weights` writes PEFT's names), ``diffusers`` (its older names, which know no convolutions),
            ``kohya`` (ranks even: diffusers gives alphas that differ to other modules than kohya's tools do).
    """
    states = lora_states(name, seed, even=form == "kohya", **more)
    folder.mkdir(parents=True)
    if form == "kohya":
        save_file(kohya_tensors(states), folder / "lora.safetensors")
        return folder
    if form == "diffusers":
        states = {
            part: convert_state_dict_to_diffusers(
                {k: v for k, v in state.items() if v.dim() == 2 and ("attn" in k or "self" in k)}
            )
            for part, state in states.items()
        }
    type(tiny_pipeline(name)).save_lora_weights(
        folder, **{f"{part}_lora_layers": state for part, state in states.items()}
    )
    return folder


def kohya_tensors(states: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """diffusers' own conversion; it names two modules as diffusers itself does not read them."""
    if "transformer" in states:
        return mixture(states)
    flat = {}
    for part, state in states.items():
        bare = part.startswith("text") and any(key.startswith("encoder.") for key in state)
        flat |= {f"{part}.{'text_model.' if bare else ''}{key}": value for key, value in state.items()}
    names = {f"add_embedding_linear_{n}": f"label_emb_0_{2 * n - 2}" for n in (1, 2)}
    found = {}
    for key, value in convert_state_dict_to_kohya(flat).items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = value.contiguous().float()
    return found


def mixture(states: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """FLUX's modules under diffusers' names with kohya's separators, as far as diffusers reads them."""
    found = {}
    for key, value in states["transformer"].items():
        module, half = key.removesuffix(".weight").rsplit(".lora_", 1)
        if ".attn.to_" in module or module == "x_embedder":
            name = f"lora_transformer_{module.replace('.', '_')}"
            found[f"{name}.lora_{'down' if half == 'A' else 'up'}.weight"] = value.contiguous()
            found[f"{name}.alpha"] = torch.tensor(2.0)
    return found
