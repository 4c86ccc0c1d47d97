"""Files of pipelines against diffusers and PEFT themselves: what is read, and what diffusers makes of what is written."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import FluxLoraLoaderMixin, WanLoraLoaderMixin
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import lego
from lego import Adapter, AdapterError
from lego.formats import FORMATS

Models = dict[str, torch.nn.Module]
Tensors = dict[str, torch.Tensor]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out"]
EVERYTHING = [
    *ATTENTION, *CONVOLUTIONS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "linear_2"
]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@cache
def bare_unet(large: bool) -> UNet2DConditionModel:
    """All blocks of Stable Diffusion 1.5 or XL (its deepest with 2 layers of 10), four channels wide."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"norm_num_groups": 2, "cross_attention_dim": 6, "sample_size": 8, "layers_per_block": 2}
    if not large:
        return UNet2DConditionModel(block_out_channels=(4, 4, 8, 8), attention_head_dim=2, **common)
    return UNet2DConditionModel(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 2),
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=18,
        **common,
    )


@cache
def bare_text(projection: bool) -> torch.nn.Module:
    config = CLIPTextConfig(
        hidden_size=6, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2, vocab_size=9, projection_dim=6,
        bos_token_id=7, eos_token_id=8, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def bare(large: bool) -> Models:
    """Fresh copies of a pipeline's adapted models."""
    models = {"unet": bare_unet(large), "text_encoder": bare_text(False)}
    return copy.deepcopy({**models, "text_encoder_2": bare_text(True)} if large else models)


def adapted(large: bool = False, targets: list[str] = EVERYTHING, **config: Any) -> Models:
    """The models with random LoRAs of different ranks in them."""
    models = bare(large)
    patterns: dict[str, Any] = {"rank_pattern": {"to_k": 2, "conv1": 5, "fc1": 1}}
    for number, (name, model) in enumerate(models.items()):
        torch.manual_seed(number)
        aimed = targets if name == "unet" else TEXT
        model.add_adapter(LoraConfig(r=3, target_modules=aimed, init_lora_weights=False, **{**patterns, **config}))
    return models


def layers(models: Models) -> Iterator[tuple[str, Any]]:
    """Every adapted layer under the name that lego gives it: CLIP's with ``text_model``, as in files."""
    for component, model in models.items():
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                clip = component != "unet" and name.startswith("encoder.")
                yield f"{component}.{'text_model.' * clip}{name}", layer


def deltas(models: Models) -> Tensors:
    """PEFT's own update of every layer; convolutions flattened."""
    return {
        name: layer.get_delta_weight(layer.active_adapters[0]).detach().flatten(1) for name, layer in layers(models)
    }


def unscaled(models: Models) -> Tensors:
    """PEFT's update over its scale: what alpha = rank means."""
    return {
        name: layer.get_delta_weight("default").detach().flatten(1) / layer.scaling["default"]
        for name, layer in layers(models)
    }


def states(models: Models) -> dict[str, Tensors]:
    return {name: get_peft_model_state_dict(model, adapter_name="default") for name, model in models.items()}


def save(models: Models, folder: Path, metadata: bool, old: bool = False) -> Path:
    """As training scripts do."""
    large = "text_encoder_2" in models
    saved = {name: convert_state_dict_to_diffusers(state) if old else state for name, state in states(models).items()}
    extra = _collate_lora_metadata(dict(models)) if metadata else {}
    pipeline = StableDiffusionXLPipeline if large else StableDiffusionPipeline
    pipeline.save_lora_weights(folder, **{f"{name}_lora_layers": state for name, state in saved.items()}, **extra)
    return folder


def kohya_tensors(models: Models) -> Tensors:
    """diffusers' own conversion; its alphas, which are the ranks, replaced by others."""
    flat = {
        f"{component}.{key}": tensor for component, state in states(models).items() for key, tensor in state.items()
    }
    flat = {
        re.sub(r"^(text_encoder(?:_2)?)\.encoder", r"\1.text_model.encoder", key): value for key, value in flat.items()
    }
    found = convert_state_dict_to_kohya(flat)
    return {key: value.float() * 1.5 if key.endswith(".alpha") else value for key, value in found.items()}


def agree(adapter: Adapter, expected: Mapping[str, torch.Tensor], factor: float = 1) -> None:
    """The adapter's modules are the expected ones, with the expected updates."""
    assert set(adapter.modules) == set(expected)
    for module, delta in expected.items():
        torch.testing.assert_close(adapter[module].delta(), factor * delta, rtol=1e-6, atol=1e-6)
        spec, factors = adapter.modules[module], adapter[module]
        assert (spec.rank, spec.d_in, spec.d_out) == (factors.rank, factors.down.shape[1], factors.up.shape[0])
        assert spec.kernel == factors.kernel


def write(adapter: Adapter, name: str, folder: Path) -> Path:
    """A single file, written module by module as the writer does."""
    form = FORMATS[name](adapter)
    tensors: Tensors = {}
    for module, spec in adapter.modules.items():
        made = form.tensors(module, adapter[module])
        assert {key: tuple(tensor.shape) for key, tensor in made.items()} == form.entries(module, spec)
        tensors |= {key: tensor.contiguous() for key, tensor in made.items()}
    folder.mkdir(parents=True)
    path = folder / form.weights.format(name="mine")
    save_file(tensors, path, form.metadata(adapter))
    return path


def loaded(path: Path, large: bool) -> Models:
    """What diffusers makes of a file, in fresh models."""
    models = bare(large)
    parts: dict[str, Any] = {"vae": None, "tokenizer": None, "scheduler": DDIMScheduler(), **models}
    if large:
        pipe = StableDiffusionXLPipeline(tokenizer_2=None, **parts)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(requires_safety_checker=False, **parts)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return models


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_diffusers_files_with_metadata(tmp_path: Path, large: bool, rslora: bool) -> None:
    """Quirk 1: alpha, ranks, patterns and rsLoRA are in the header."""
    models = adapted(large, lora_alpha=7, alpha_pattern={"conv1": 2, "to_v": 1}, use_rslora=rslora)
    adapter = lego.read_adapter(save(models, tmp_path / "a", metadata=True))
    assert adapter.format == "diffusers"
    agree(adapter, deltas(models))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_diffusers_files_without_metadata(tmp_path: Path, large: bool, old: bool) -> None:
    """alpha = rank; and old names of attention beside new names of convolutions in one file lose nothing."""
    models = adapted(large)
    folder = save(models, tmp_path / "a", metadata=False, old=old)
    keys = set(load_file(folder / "pytorch_lora_weights.safetensors"))
    assert any(".lora.down." in key for key in keys) == old
    assert any(".lora_A." in key for key in keys)
    agree(lego.read_adapter(folder), unscaled(models))


def test_the_first_diffusers_names(tmp_path: Path) -> None:
    """``….attn1.processor.to_q_lora.down.weight``, without the name of the model: attention only."""
    models = adapted(targets=ATTENTION)
    del models["text_encoder"]
    names = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
    tensors = {}
    for key, tensor in states(models)["unet"].items():
        block, kind, half = re.fullmatch(r"(.+attn[12])\.(.+)\.lora_([AB])\.weight", key).groups()
        tensors[f"{block}.processor.{names[kind]}.{'down' if half == 'A' else 'up'}.weight"] = tensor
    save_file(tensors, tmp_path / "old.safetensors")
    agree(lego.read_adapter(tmp_path / "old.safetensors"), unscaled(models))


@pytest.mark.parametrize("large", [False, True])
def test_kohya_files(tmp_path: Path, large: bool) -> None:
    """Quirk 1: an alpha a module. Every module of both UNets by diffusers' names of the blocks."""
    models = adapted(large)
    save_file(kohya_tensors(models), tmp_path / "k.safetensors", {"ss_sd_model_name": "base.safetensors"})
    adapter = lego.read_adapter(tmp_path / "k.safetensors")
    assert (adapter.format, adapter.name, adapter.base_model) == ("kohya", "k", "base.safetensors")
    agree(adapter, unscaled(models), 1.5)


def sgm(name: str) -> str:
    """The original model's name of a module of SDXL's UNet, by the table its authors' conversion follows."""
    inner = {
        "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"
    }  # fmt: skip
    whole = {
        "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip
    if name in whole:
        return whole[name]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, j, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * j if kind == 'resnets' else 1}.{inner.get(rest, rest)}"
    way, i, kind, j, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name).groups()
    i, j = int(i), int(j)
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.2.conv"
    block = f"input_blocks.{3 * i + j + 1}" if way == "down" else f"output_blocks.{3 * i + j}"
    return f"{block}.{1 if kind == 'attentions' else 0}.{inner.get(rest, rest)}"


def test_kohya_files_in_the_original_names(tmp_path: Path) -> None:
    """SDXL as kohya trains it; modules come out under the names of a diffusers file, so that the two can be merged."""
    models = adapted(large=True)
    tensors = {}
    modules = {
        "lora_unet_" + name[5:].replace(".", "_"): name[5:] for name, _ in layers(models) if name.startswith("unet.")
    }
    for key, tensor in kohya_tensors(models).items():
        name, _, rest = key.partition(".")
        tensors[f"lora_unet_{sgm(modules[name]).replace('.', '_')}.{rest}" if name in modules else key] = tensor
    assert not any("down_blocks" in key for key in tensors)
    save_file(tensors, tmp_path / "k.safetensors")
    agree(lego.read_adapter(tmp_path / "k.safetensors"), unscaled(models), 1.5)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["diffusers", "kohya"])
def test_diffusers_loads_what_is_written(tmp_path: Path, large: bool, name: str) -> None:
    models = adapted(large, lora_alpha=-5, alpha_pattern={"to_q": 2})
    adapter = lego.read_adapter(save(models, tmp_path / "a", metadata=True))
    path = write(adapter, name, tmp_path / "out")
    expected, found = deltas(models), deltas(loaded(path, large))
    assert set(found) == set(expected)
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-6, atol=1e-6)
    back = lego.read_adapter(path)
    assert back.format == name
    assert name == "diffusers" or len({spec.scale * spec.rank for spec in back.modules.values()}) == 1
    agree(back, expected)
    assert lego.preflight(path).reasons == ()


def test_only_feed_forward_of_the_text_encoder(tmp_path: Path) -> None:
    """diffusers recognises text encoders by names that only attention has; what is written must not depend on it."""
    models = adapted()
    wanted = {name: delta for name, delta in deltas(models).items() if "mlp.fc" in name or name.endswith("conv_in")}
    full = lego.read_adapter(save(models, tmp_path / "a", metadata=True))
    adapter = Adapter.from_factors("few", {module: full[module] for module in wanted}, format="diffusers")
    found = deltas(loaded(write(adapter, "diffusers", tmp_path / "out"), False))
    assert set(found) == set(wanted)
    for module, delta in wanted.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-6, atol=1e-6)


def test_kohya_names_the_text_encoder_by_the_model(tmp_path: Path) -> None:
    for large, prefix in ((False, "lora_te_"), (True, "lora_te1_")):
        adapter = lego.read_adapter(save(adapted(large), tmp_path / f"{large}", metadata=True))
        keys = set(load_file(write(adapter, "kohya", tmp_path / f"out{large}")))
        assert {key[: key.index("text_model")] for key in keys if "lora_te" in key} - {"lora_te2_"} == {prefix}


def test_biases_of_diffusers_files(tmp_path: Path) -> None:
    models = {"unet": bare(False)["unet"]}
    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=4, target_modules=["to_out.0"], init_lora_weights=False, lora_bias=True)
    models["unet"].add_adapter(config, "default")
    adapter = lego.read_adapter(save(models, tmp_path / "a", metadata=True))
    found = loaded(write(adapter, "diffusers", tmp_path / "out"), False)
    for (name, layer), (_, there) in zip(layers(models), layers({"unet": found["unet"]}), strict=True):
        bias = layer.lora_B["default"].bias.detach() * layer.scaling["default"]
        torch.testing.assert_close(adapter[name].bias * adapter[name].scale, bias)
        torch.testing.assert_close(there.lora_B["default_0"].bias * there.scaling["default_0"], bias)
    with pytest.raises(AdapterError, match=r"has a bias, which kohya's format cannot hold\. Write it as diffusers"):
        FORMATS["kohya"](adapter)


# Files that only converters understand: module names and shapes, with the key style of each tool.
def flux(shapes: Mapping[str, tuple[int, int]], rank: int = 4, style: str = "lora_unet_{}.lora_{}.weight") -> Tensors:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, (d_in, d_out) in shapes.items():
        tensors[style.format(name, "down")] = torch.randn(rank, d_in, generator=generator)
        tensors[style.format(name, "up")] = torch.randn(d_out, rank, generator=generator)
        if "lora_{}" in style:
            tensors[style.format(name, "down").replace("lora_down.weight", "alpha")] = torch.tensor(3.0)
    return tensors


FLUX = {
    "double_blocks_0_img_attn_qkv": (6, 18), "double_blocks_0_txt_attn_qkv": (6, 18), "double_blocks_18_img_attn_proj": (6, 6),
    "double_blocks_3_img_mlp_0": (6, 8), "double_blocks_3_txt_mod_lin": (6, 36), "single_blocks_37_linear1": (6, 21504),
    "single_blocks_1_linear2": (9, 6), "single_blocks_1_modulation_lin": (6, 18),
}  # fmt: skip
XLABS = {
    "double_blocks.0.processor.qkv_lora1": (6, 18), "double_blocks.0.processor.qkv_lora2": (6, 18),
    "double_blocks.0.processor.proj_lora1": (6, 6), "single_blocks.2.processor.proj_lora": (6, 6),
}  # fmt: skip
MIXED = {
    "lora_transformer_transformer_blocks_0_attn_to_q": (6, 6), "lora_transformer_single_transformer_blocks_3_attn_to_k": (6, 6),
    "lora_transformer_transformer_blocks_0_attn_to_out_0": (6, 6), "lora_transformer_x_embedder": (6, 6),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (6, 6),
}  # fmt: skip
CLIP = {"text_model_encoder_layers_1_mlp_fc1": (6, 8)}
WAN = {
    f"blocks_0_{name}": (6, 6)
    for name in ("ffn_0", "ffn_2", *(f"{kind}_attn_{part}" for kind in ("self", "cross") for part in "qkvo"))
}
FAMILIES: dict[str, tuple[Any, Tensors]] = {
    "flux": (FluxLoraLoaderMixin, flux(FLUX)),
    "flux and te": (FluxLoraLoaderMixin, flux(FLUX) | flux(CLIP, 2, "lora_te1_{}.lora_{}.weight")),
    "comfy": (FluxLoraLoaderMixin, flux({"double_blocks.0.img_attn.qkv": (6, 18)}, 2, "diffusion_model.{}.lora_{}.weight")),
    "rank of three": (FluxLoraLoaderMixin, flux(FLUX, rank=3)),
    "xlabs": (FluxLoraLoaderMixin, flux(XLABS, style="{}.{}.weight")),
    "mixture": (FluxLoraLoaderMixin, flux(MIXED, style="{}.lora_{}.weight")),
    "wan": (WanLoraLoaderMixin, flux(WAN)),
}  # fmt: skip


def converted_deltas(loader: Any, tensors: Tensors) -> Tensors:
    """B A of every module that diffusers makes of a file."""
    found = loader.lora_state_dict({key: value.clone() for key, value in tensors.items()})
    state = found[0] if isinstance(found, tuple) else found
    result = {}
    for key, down in state.items():
        if half := re.fullmatch(r"(.+?)(\.lora_A|\.lora_linear_layer\.down|_lora\.down)\.weight", key):
            up = state[key.replace("lora_A", "lora_B").replace(".down.", ".up.")]
            name = half[1].replace("self_attn.to_q", "self_attn.q_proj")
            result[name if name.split(".")[0] in ("transformer", "text_encoder") else f"transformer.{name}"] = up @ down
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_other_models_through_diffusers_converters(tmp_path: Path, family: str) -> None:
    """Quirk 9: a fused QKV becomes several modules with one A, and each update is what diffusers' own conversion gives."""
    loader, tensors = FAMILIES[family]
    save_file(tensors, tmp_path / "f.safetensors")
    adapter = lego.read_adapter(tmp_path / "f.safetensors")
    expected = converted_deltas(loader, tensors)
    assert expected
    assert set(adapter.modules) == set(expected)
    for module, delta in expected.items():
        torch.testing.assert_close(adapter[module].delta(), delta, rtol=1e-5, atol=1e-5)
    fused = lego.preflight(tmp_path / "f.safetensors").fused
    assert len(fused) == sum("qkv" in key or "linear1" in key for key in tensors if "down" in key)
    for group in fused:
        assert len(group) == (4 if any("single" in module for module in group) else 3)
        assert all(torch.equal(adapter[module].down, adapter[group[0]].down) for module in group)


def test_a_sparse_fused_qkv_is_the_same_update(tmp_path: Path) -> None:
    """Three LoRAs that were joined block by block: diffusers takes them apart by looking at the zeros, which no header shows."""
    tensors = flux({"double_blocks_0_img_attn_qkv": (6, 18)}, rank=6)
    up = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    up *= torch.block_diag(*[torch.ones(6, 2)] * 3)
    expected = converted_deltas(FluxLoraLoaderMixin, tensors)
    save_file(tensors, tmp_path / "f.safetensors")
    adapter = lego.read_adapter(tmp_path / "f.safetensors")
    assert FluxLoraLoaderMixin.lora_state_dict(dict(tensors))[
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    ].shape == (2, 6)
    for module, delta in expected.items():
        torch.testing.assert_close(adapter[module].delta(), delta, rtol=1e-5, atol=1e-5)


def test_flux_final_layer_is_reordered(tmp_path: Path) -> None:
    """diffusers swaps scale and shift there; it forgets the alpha, which lego does not."""
    tensors = flux(
        {"final_layer_adaLN_modulation_1": (6, 12), "final_layer_linear": (6, 4), "single_blocks_1_linear2": (6, 6)}
    )
    save_file(tensors, tmp_path / "f.safetensors")
    adapter = lego.read_adapter(tmp_path / "f.safetensors")
    expected = converted_deltas(FluxLoraLoaderMixin, tensors)
    assert set(adapter.modules) == set(expected)
    for module in ("transformer.norm_out.linear", "transformer.proj_out"):
        torch.testing.assert_close(adapter[module].delta(), 3 / 4 * expected[module], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"lora_unet_nowhere_1": (6, 6)}, "cannot be read by diffusers' converter .*nowhere"),
        ({"te_text_projection": (6, 6)}, "lora_unet_te_text_projection"),
    ],
)
def test_what_a_converter_does_not_know_is_refused(tmp_path: Path, extra: dict, told: str) -> None:
    style = "{}.lora_{}.weight" if "lora_unet_nowhere_1" in extra else "lora_unet_{}.lora_{}.weight"
    save_file(flux(FLUX) | flux(extra, style=style), tmp_path / "f.safetensors")
    with pytest.raises(AdapterError, match=told):
        lego.read_adapter(tmp_path / "f.safetensors")


def test_what_a_converter_drops_or_misnames_is_refused(tmp_path: Path) -> None:
    te = "lora_te1_text_projection.lora_{}.weight"
    cases = {
        "drops lora_te1_text_projection": flux(FLUX) | flux({"x": (6, 6)}, style=te.replace("lora_{}", "lora_{1}")),
        "lora_transformer_transformer_blocks_0_ff_net_0_proj.* is of no module": flux(
            {"lora_transformer_transformer_blocks_0_ff_net_0_proj": (6, 6)}, style="{}.lora_{}.weight"
        ),
        "drops lora_unet_input_blocks_4": flux({"down_blocks_1_attentions_0_proj_in": (6, 6), "input_blocks_4_1_proj_in": (6, 6)}),
        "lora_unet_down_blocks_0_motion_modules_0_proj.* is of no module": flux({"down_blocks_0_motion_modules_0_proj": (6, 6)}),
        "named as no base": flux({"x": (6, 6)}, style="lora_something_{}.lora_{}.weight"),
    }  # fmt: skip
    for told, tensors in cases.items():
        save_file(tensors, tmp_path / "f.safetensors")
        with pytest.raises(AdapterError, match=told):
            lego.read_adapter(tmp_path / "f.safetensors")
        assert json.dumps(lego.preflight(tmp_path / "f.safetensors").reasons)
