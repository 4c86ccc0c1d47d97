"""PEFT folders of every kind of layer against PEFT's own updates, read and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import lego
from lego import Adapter, AdapterError
from lego.formats import FORMATS


class Kinds(nn.Module):
    """One of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 8)
        self.tokens = nn.Embedding(11, 5)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.point = nn.Conv2d(4, 6, 1)
        self.wide = nn.Conv2d(4, 6, (1, 3))
        self.line = nn.Conv1d(4, 6, 3)
        self.cube = nn.Conv3d(2, 3, 2)
        self.transposed = Conv1D(8, 6)  # GPT-2's: 6 in, 8 out
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.inner = nn.ModuleDict({"linear": nn.Linear(6, 8)})


def adapted(targets: list[str], **config: Any) -> PeftModel:
    """A random LoRA on some of the kinds."""
    given = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "target_modules": targets, **config}
    return get_peft_model(Kinds(), LoraConfig(**given))


def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own updates, as (d_out, d_in): convolutions flattened, embeddings and Conv1D transposed."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            delta = layer.get_delta_weight("default").detach().flatten(1)
            found[name] = delta.T if name in ("tokens", "transposed") else delta
    return found


def agree(adapter: Adapter, expected: Mapping[str, torch.Tensor]) -> None:
    assert set(adapter.modules) == set(expected)
    for module, delta in expected.items():
        torch.testing.assert_close(adapter[module].delta(), delta, rtol=1e-6, atol=1e-6)


def write(adapter: Adapter, folder: Path) -> Path:
    """A PEFT folder, written module by module as the writer does."""
    form = FORMATS["peft"](adapter)
    folder.mkdir()
    made = [form.tensors(module, adapter[module]) for module in adapter.modules]
    for (module, spec), tensors in zip(adapter.modules.items(), made, strict=True):
        assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == form.entries(module, spec)
    save_file({key: value.contiguous() for tensors in made for key, value in tensors.items()}, folder / form.weights)
    for name, text in form.companions(adapter).items():
        (folder / name).write_text(text)
    return folder


PLAIN = ["linear", "tokens", "conv", "point", "wide", "line", "cube"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"targets": PLAIN},
    "rslora": {"targets": PLAIN, "use_rslora": True},
    "patterns": {
        "targets": PLAIN,
        "rank_pattern": {"conv": 2, "^linear": 3, "inner.*": 5},
        "alpha_pattern": {"linear": 1, r"tok\w+": -7, ".*cube": 9},
    },
    "transposed": {"targets": ["transposed"], "fan_in_fan_out": True},
    "bias": {"targets": ["linear", "conv"], "lora_bias": True, "use_rslora": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_layer(tmp_path: Path, case: str) -> None:
    """Quirks 1 and 10: scales, patterns, rsLoRA; embeddings and fan_in_fan_out transposed; biases. Read, written, loaded by PEFT."""
    model = adapted(**CASES[case])
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    adapter, expected = lego.read_adapter(tmp_path / "a"), deltas(model)
    agree(adapter, expected)
    assert lego.preflight(tmp_path / "a").reasons == ()
    folder = write(adapter, tmp_path / "b")
    agree(lego.read_adapter(folder), expected)
    again = PeftModel.from_pretrained(Kinds(), folder)
    for module, delta in deltas(again).items():
        torch.testing.assert_close(delta, expected[module], rtol=1e-6, atol=1e-6)
    for name, layer in model.base_model.model.named_modules():
        if case == "bias" and isinstance(layer, BaseTunerLayer):
            bias = layer.scaling["default"] * layer.lora_B["default"].bias.detach()
            there = again.base_model.model.get_submodule(name)
            torch.testing.assert_close(adapter[name].scale * adapter[name].bias, bias)
            torch.testing.assert_close(there.scaling["default"] * there.lora_B["default"].bias.detach(), bias)


def test_kinds_are_told(tmp_path: Path) -> None:
    adapted(PLAIN).save_pretrained(tmp_path / "a", save_embedding_layers=False)
    specs = lego.read_adapter(tmp_path / "a").modules
    assert {name: spec.kernel for name, spec in specs.items() if spec.kernel} == {
        "conv": (3, 3), "point": (1, 1), "wide": (1, 3), "line": (3,), "cube": (2, 2, 2)
    }  # fmt: skip
    assert [name for name, spec in specs.items() if spec.embedding] == ["tokens"]
    assert (specs["tokens"].d_in, specs["tokens"].d_out) == (11, 5)


@pytest.mark.filterwarnings("ignore")
def test_grouped_convolutions_are_refused(tmp_path: Path) -> None:
    adapted(["grouped", "linear"]).save_pretrained(tmp_path / "a")
    with pytest.raises(
        AdapterError, match=r"module grouped has factors of .* grouped convolution.* Train without its grouped"
    ):
        lego.read_adapter(tmp_path / "a")


def test_a_rank_pattern_that_would_catch_another_module(tmp_path: Path) -> None:
    """``linear`` is also the end of ``inner.linear``."""
    factors = {
        name: lego.Factors(torch.randn(rank, 6), torch.randn(8, rank))
        for name, rank in (("linear", 2), ("inner.linear", 3))
    }
    more = {"transposed": lego.Factors(torch.randn(3, 6), torch.randn(8, 3))}
    folder = write(Adapter.from_factors("a", {**factors, **more}), tmp_path / "a")
    found = deltas(PeftModel.from_pretrained(Kinds(), folder))
    for name, given in factors.items():
        torch.testing.assert_close(found[name], given.delta(), rtol=1e-6, atol=1e-6)


def test_whole_embeddings_beside_their_lora_are_refused(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.tokens.lora_embedding_A": torch.ones(4, 11), "base_model.model.tokens.lora_embedding_B": torch.ones(5, 4),
        "base_model.model.tokens.base_layer.weight": torch.ones(11, 5),
    }  # fmt: skip
    adapted(["tokens"]).save_pretrained(tmp_path / "a", save_embedding_layers=False)
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"whole weights of the base.*save_embedding_layers=False"):
        lego.read_adapter(tmp_path / "a")


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_initialisers_that_change_the_base_are_refused_as_peft_saves_them(tmp_path: Path, init: str) -> None:
    """Quirk 7."""
    adapted(["linear"], init_lora_weights=init).save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match=rf"its initialiser \({init}\) changed the base weights"):
        lego.read_adapter(tmp_path / "a")


@pytest.mark.filterwarnings("ignore")
def test_other_files_of_peft_are_refused(tmp_path: Path) -> None:
    """Quirk 7, all reasons at once: DoRA and whole modules."""
    adapted(["linear"], use_dora=True, modules_to_save=["point"]).save_pretrained(tmp_path / "a")
    reasons = lego.preflight(tmp_path / "a").reasons
    expected = ["use_dora|DoRA rescales", "modules_to_save", "holds DoRA magnitudes", r"no LoRA factors .*model\.point"]
    assert len(reasons) == len(expected)
    assert all(re.search(pattern, text) for pattern, text in zip(expected, reasons, strict=True))
    with pytest.raises(AdapterError) as caught:
        lego.read_adapter(tmp_path / "a")
    assert all(text.split(". ")[0] in str(caught.value) for text in reasons)
