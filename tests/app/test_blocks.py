"""Where a pipeline's modules sit: the order is the one in which diffusers runs them, and names tell places apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.gate import gating
from components.map import maps
from components.map.blocks import of_pipeline, place_of, places, running_order
from lego import Adapter, Factors
from tests.tiny_unet import CHANNELS, SIDE, TOKENS, WIDTH, tiny_unet


def calls() -> dict[str, int]:
    """When each linear and convolution of a UNet first runs, under the names that adapters use."""
    unet, seen = tiny_unet(), {}
    names = {module: name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}

    def note(module: nn.Module, inputs: tuple) -> None:
        seen.setdefault(f"unet.{names[module]}", len(seen))

    for module in names:
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        unet(torch.zeros(1, CHANNELS, SIDE, SIDE), 1, torch.zeros(1, TOKENS, WIDTH))
    return seen


def test_blocks_are_in_the_order_in_which_the_unet_runs_them() -> None:
    seen = calls()
    assert len(seen) > 200
    first: dict[str, int] = {}
    for name, when in seen.items():
        first.setdefault(place_of(name).label, when)
    assert places(seen) == sorted(first, key=first.__getitem__)
    assert [label.split()[0] for label in places(seen)] == sorted(
        (label.split()[0] for label in first), key=["time", "input", "down", "mid", "up", "output"].index
    )


def test_modules_sort_by_place_and_texts_last() -> None:
    names = [*reversed(list(calls())), "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
    ordered = sorted(names, key=running_order)
    assert [place_of(name).label for name in ordered][-1] == "text 0"
    assert list(dict.fromkeys(place_of(name).label for name in ordered)) == places(names)


def test_a_place_and_a_kind_name_one_module_of_a_unet() -> None:
    names = list(calls())
    assert len({(place_of(name).label, place_of(name).kind) for name in names}) == len(names)


def test_language_models_sort_as_before() -> None:
    names = [f"model.layers.{i}.self_attn.{kind}" for i in (11, 2, 0) for kind in ("q_proj", "k_proj")]
    assert sorted(names, key=running_order) == names[::-1]
    assert not any(map(of_pipeline, names))


@pytest.mark.parametrize(
    ("module", "label", "kind"),
    [
        ("unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0", "down 2.1.9", "attn2.to_out.0"),
        ("unet.up_blocks.0.upsamplers.0.conv", "up 0 ↑", "conv"),
        ("unet.mid_block.resnets.1.conv2", "mid 1", "conv2"),
        ("transformer.single_transformer_blocks.37.proj_mlp", "single 37", "proj_mlp"),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc1", "text 2.31", "mlp.fc1"),
    ],
)
def test_places_of_larger_models(module: str, label: str, kind: str) -> None:
    assert place_of(module)[1:] == (label, kind)


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ("unet.down_blocks.0.resnets.1", "down 0.1 resnet"),
        ("unet.down_blocks.0.attentions.1.transformer_blocks.0", "down 0.1 attention"),
        ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1", "down 0.1 attn1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid 0 attn1.to_q"),
        ("text_encoder.text_model.encoder.layers.1", "text 1"),
        ("model.layers.3", "block 3"),
        ("", "network"),
    ],
)
def test_gates_are_named_by_their_place(site: str, label: str) -> None:
    assert gating.place_of(site) == label


def adapter(shapes: dict[str, tuple[int, int]]) -> Adapter:
    factors = {name: Factors(torch.randn(2, d_in), torch.randn(d_out, 2)) for name, (d_in, d_out) in shapes.items()}
    return Adapter.from_factors("made", factors)


def test_kinds_of_one_shape_come_together_in_running_order() -> None:
    block = "attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {
        f"unet.up_blocks.0.{block}": (8, 8),
        f"unet.mid_block.{block}": (16, 16),
        f"unet.down_blocks.0.{block}": (8, 8),
        "unet.up_blocks.0.resnets.0.conv1": (72, 8),
    }
    assert maps.pipeline_kinds([adapter(shapes)]) == {
        "attn1.to_q 8 → 8": [f"unet.down_blocks.0.{block}", f"unet.up_blocks.0.{block}"],
        "attn1.to_q 16 → 16": [f"unet.mid_block.{block}"],
        "conv1": ["unet.up_blocks.0.resnets.0.conv1"],
    }
