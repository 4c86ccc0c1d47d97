"""Where gates sit, in models of several kinds: expected places are written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lego import AdapterError
from mole.sites import Site, find_sites
from tests.tiny import tiny_gpt2, tiny_model

Q, K, V, O = (f"self_attn.{kind}_proj" for kind in "qkvo")  # noqa: E741
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def linears(model: nn.Module, kinds: tuple[type, ...] = (nn.Linear,)) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def on_tokens(model: Any) -> Callable[[], object]:
    return lambda: model(torch.tensor([[1, 2, 3]]))


def inside(site: Site) -> tuple[list[str], list[str]]:
    """Modules and readers without the site's name."""
    return tuple([m.removeprefix(f"{site.name}.") for m in group] for group in (site.modules, site.readers))  # type: ignore[return-value]


def test_llama() -> None:
    model = tiny_model()
    # In an order of no meaning: the model's own order is what counts.
    modules = sorted(linears(model), reverse=True)
    found = {g: find_sites(model, modules, g, on_tokens(model)) for g in ("module", "layer", "block", "network")}  # type: ignore[arg-type]
    parts = [Q, K, V, O, GATE, UP, DOWN]
    layers = [f"model.layers.{number}" for number in range(2)]
    order = [f"{layer}.{part}" for layer in layers for part in parts] + ["lm_head"]
    assert found["module"] == tuple(Site(name, (name,), (name,)) for name in order)
    names = [f"{layer}.{part}" for layer in layers for part in ("self_attn", "mlp")] + ["lm_head"]
    assert [site.name for site in found["layer"]] == names
    short = [kind.split(".")[1] for kind in parts]
    assert inside(found["layer"][0]) == (short[:4], short[:3])
    assert inside(found["layer"][3]) == (short[4:], short[4:6])
    assert [site.name for site in found["block"]] == [*layers, "lm_head"]
    assert inside(found["block"][1]) == (parts, [Q, K, V])
    assert found["block"][2] == Site("lm_head", ("lm_head",), ("lm_head",))
    assert found["network"] == (Site("", tuple(order), tuple(order[:3])),)


def test_readers_are_what_is_adapted() -> None:
    model = tiny_model()
    modules = [f"model.layers.{layer}.{kind}" for layer in range(2) for kind in (DOWN, UP, O, V)]
    first, second = find_sites(model, modules, "block", on_tokens(model))
    assert inside(first) == inside(second) == ([V, O, UP, DOWN], [V])


def test_clip() -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 0}
    model = CLIPTextModel(CLIPTextConfig(vocab_size=50, max_position_embeddings=12, **small, **ends)).eval()
    prefix = linears(model)[0].split("encoder")[0]  # transformers moved it between versions
    blocks = find_sites(model, linears(model), "block", on_tokens(model))
    assert [site.name for site in blocks] == [f"{prefix}encoder.layers.{number}" for number in range(2)]
    attention = [f"self_attn.{kind}_proj" for kind in ("q", "k", "v", "out")]
    assert inside(blocks[1]) == ([*attention, "mlp.fc1", "mlp.fc2"], attention[:3])
    layers = find_sites(model, linears(model), "layer", on_tokens(model))
    assert [site.name for site in layers] == [f"{b.name}.{part}" for b in blocks for part in ("self_attn", "mlp")]


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TRANSFORMERS = [
    f"{place}.transformer_blocks.0"
    for place in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
]  # fmt: skip
"""A UNet runs down, through the middle and up."""


def run_unet(model: UNet2DConditionModel) -> Callable[[], object]:
    noise = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8, generator=noise), torch.randn(1, 5, 12, generator=noise)
    return lambda: model(latents, torch.tensor(3), text)


def test_unet_attention_at_each_granularity() -> None:
    model = unet()
    modules = [name for name in linears(model) if ".attn" in name or ".ff." in name]
    with torch.no_grad():
        found = {g: find_sites(model, modules, g, run_unet(model)) for g in ("module", "layer", "block", "network")}  # type: ignore[arg-type]
    assert [site.name for site in found["block"]] == TRANSFORMERS
    wanted = [f"{attn}.{part}" for attn in ("attn1", "attn2") for part in ATTENTION] + ["ff.net.0.proj", "ff.net.2"]
    for site in found["block"]:
        assert inside(site) == (wanted, [f"attn1.{part}" for part in ATTENTION[:3]])
    assert [site.name for site in found["layer"]] == [
        f"{b}.{p}" for b in TRANSFORMERS for p in ("attn1", "attn2", "ff")
    ]
    own, cross, feed = (inside(site) for site in found["layer"][:3])
    assert own == (ATTENTION, ATTENTION[:3])
    assert cross == (ATTENTION, ["to_q"]), "keys and values of cross-attention come from the text, not from the image"
    assert feed == (["net.0.proj", "net.2"], ["net.0.proj"])
    assert [site.name for site in found["module"]] == [f"{b}.{part}" for b in TRANSFORMERS for part in wanted]
    assert len(found["network"]) == 1
    assert found["network"][0].modules == tuple(site.name for site in found["module"])


def test_unet_blocks_of_every_kind() -> None:
    """Down and up alike: each resnet and transformer block is a block, and what lies around one is gated with its siblings."""
    model = unet()
    with torch.no_grad():
        found = find_sites(model, linears(model, (nn.Linear, nn.Conv2d)), "block", run_unet(model))
    around = ["proj_in", "proj_out"]
    assert {site.name: inside(site)[0] for site in found if site.name.endswith(("attentions.0", "attentions.1"))} == {
        name.removesuffix(".transformer_blocks.0"): around for name in TRANSFORMERS
    }
    resnets = ["conv1", "time_emb_proj", "conv2"]
    assert all(inside(site)[0][:3] == resnets for site in found if ".resnets." in site.name)
    assert [site.name for site in found] == [
        "time_embedding", "conv_in",
        "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", TRANSFORMERS[0], "down_blocks.0.downsamplers.0",
        "down_blocks.1.resnets.0",
        "mid_block.resnets.0", "mid_block.attentions.0", TRANSFORMERS[1], "mid_block.resnets.1",
        "up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.0.upsamplers.0",
        "up_blocks.1.resnets.0", "up_blocks.1.attentions.0", TRANSFORMERS[2],
        "up_blocks.1.resnets.1", "up_blocks.1.attentions.1", TRANSFORMERS[3],
        "conv_out",
    ]  # fmt: skip


def test_a_model_whose_authors_name_no_blocks() -> None:
    """Its lists of parts of one class are its blocks."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    model = nn.Sequential(Part(), Part())
    found = find_sites(model, linears(model), "block", lambda: model(torch.zeros(1, 2, 3)))
    assert found == (Site("0", ("0.one", "0.two"), ("0.one",)), Site("1", ("1.one", "1.two"), ("1.one",)))
    net = nn.Module()
    net.alone = nn.Linear(3, 3)
    assert find_sites(net, ["alone"], "block", lambda: net.alone(torch.zeros(1, 2, 3)))[0].name == "alone"


def test_gpt2_blocks() -> None:
    model = tiny_gpt2()
    modules = [f"transformer.h.{number}.{part}" for number in range(2) for part in ("mlp.c_fc", "attn.c_attn")]
    found = find_sites(model, modules, "block", on_tokens(model))
    assert [(site.name, inside(site)) for site in found] == [
        (f"transformer.h.{number}", (["attn.c_attn", "mlp.c_fc"], ["attn.c_attn"])) for number in range(2)
    ]


@pytest.mark.parametrize("name", ["model.layers.7.self_attn.q_proj", "lm_head"])
def test_modules_that_take_no_part_are_refused(name: str) -> None:
    model = tiny_model()
    with pytest.raises(AdapterError, match=f"module {name} takes no part in a forward pass. It cannot be gated"):
        find_sites(model, [name, f"model.layers.0.{Q}"], "block", lambda: model.model(torch.tensor([[1, 2]])))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_hook_is_left_when_the_pass_fails() -> None:
    model = tiny_model()
    with pytest.raises(IndexError):
        find_sites(model, linears(model), "block", lambda: model(torch.tensor([[999]])))
    assert not any(module._forward_pre_hooks for module in model.modules())
