"""The denoiser: a small UNet that predicts the clean latents, trained together with its text encoder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from assets.build.images.pictures import Pictures
from assets.build.images.run import Deadline, Plan, Run
from assets.build.images.text import WIDTH, drawn_captions, new_text_encoder, token_ids

PLAN = Plan(steps=12_000, batch=24, rate=1e-3, seed=202, average=0.996)
LEAST_NOISE = 0.1  # the loss weighs 1/σ², but no more than at this σ²


@dataclass(frozen=True)
class Shape:
    """Sizes of the UNet: channels of its outer block (8 × 8, no attention) and its inner ones (4 × 4, with attention)."""

    channels: tuple[int, int] = (128, 192)
    heads: int = 4
    groups: int = 16


SHAPE = Shape()


class Parts(nn.Module):
    """UNet and text encoder as one module, since they learn together."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: Float[Tensor, "n k h w"], times: Tensor, ids: Tensor) -> Float[Tensor, "n k h w"]:
        """The clean latents, as far as they can be told."""
        return self.unet(noisy, times, self.text_encoder(ids).last_hidden_state).sample


class Denoiser(Parts):
    """Untrained ones of a given shape."""

    def __init__(self, tokenizer: CLIPTokenizer, latents: int, side: int, shape: Shape) -> None:
        text_encoder = new_text_encoder(tokenizer)
        unet = UNet2DConditionModel(
            sample_size=side, in_channels=latents, out_channels=latents, block_out_channels=shape.channels,
            layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=WIDTH,
            attention_head_dim=shape.heads, norm_num_groups=shape.groups, addition_embed_type="text",
            addition_embed_type_num_heads=shape.heads,
        ).to(memory_format=torch.channels_last)  # fmt: skip
        # The caption as a whole, beside the time step, which every block sees; nothing of it at the start.
        nn.init.zeros_(unet.add_embedding.norm2.weight)
        super().__init__(text_encoder, unet)


def new_scheduler() -> DDIMScheduler:
    """Cosine betas; the network predicts the clean sample; sampling starts at pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing",
        clip_sample=False, set_alpha_to_one=True, steps_offset=1,
    )  # fmt: skip


def denoising_loss(
    parts: nn.Module, clean: Float[Tensor, "n k h w"], ids: Tensor, times: Tensor, noise: Tensor, alphas: Tensor
) -> Tensor:
    """How far the predicted clean latents are off, weighted by 1/σ² up to 1/LEAST_NOISE.

    Args:
        parts: gives clean latents for (noisy latents, times, tokens).
        alphas: 1 − σ² of every step.
    """
    alpha = alphas[times, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    half = torch.autocast("cuda", torch.bfloat16) if clean.device.type == "cuda" else nullcontext()
    # On a CPU the plain attention kernel is faster than the fused ones at 16 positions.
    with half, sdpa_kernel(SDPBackend.MATH) if clean.device.type == "cpu" else nullcontext():
        error = (parts(noisy, times, ids).float() - clean).square().mean((1, 2, 3))
    return (error / (1 - alphas[times]).clamp(min=LEAST_NOISE)).mean()


def train_denoiser(
    latents: Float[Tensor, "n k h w"], pictures: Pictures, tokenizer: CLIPTokenizer, folder: Path, deadline: Deadline,
    plan: Plan, shape: Shape = SHAPE, text_encoder: nn.Module | None = None,
) -> tuple[Denoiser | None, Run]:  # fmt: skip
    """Train on these latents of these pictures; None instead of the denoiser while the time was up before the end.

    Args:
        latents: on the device that is to do the work.
        text_encoder: whose weights the text encoder begins with. Learning from nothing, it hardly tells captions apart even after
            thousands of steps; a contrastive model's does from the start, as Stable Diffusion's did.
    """
    device = latents.device
    torch.manual_seed(plan.seed)
    denoiser = Denoiser(tokenizer, latents.shape[1], latents.shape[2], shape).to(device)
    if text_encoder is not None:
        denoiser.text_encoder.load_state_dict(text_encoder.state_dict())
    alphas = new_scheduler().alphas_cumprod.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (plan.batch,), generator=generator)
        # More of the noisy ones: what is drawn is decided there, and learnt last.
        times = (torch.rand(plan.batch, generator=generator).sqrt() * len(alphas)).long().to(device)
        noise = torch.randn((plan.batch, *latents.shape[1:]), generator=generator).to(device)
        ids = token_ids(tokenizer, drawn_captions(pictures.pairs, rows, generator)).to(device)
        return denoising_loss(denoiser, latents[rows.to(device)], ids, times, noise, alphas)

    run = Run("denoiser", denoiser, plan, loss, folder)
    return (run.averaged() if run.train(deadline) else None), run
