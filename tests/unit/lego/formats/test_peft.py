"""Reading PEFT folders: scales by tensor shape and patterns, laziness, refusals with their reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lego
from lego import AdapterError
from tests.conftest import half_pair, write_peft

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.10.self_attn.k_proj"


def test_scale_is_alpha_over_rank(peft_folder: Callable[..., Path]) -> None:
    adapter = lego.read_adapter(peft_folder(lora_alpha=6))
    assert adapter.modules[Q].scale == 6 / 4
    assert adapter[Q].delta().shape == (24, 24)


def test_rslora_divides_by_the_root(peft_folder: Callable[..., Path]) -> None:
    assert lego.read_adapter(peft_folder(use_rslora=True)).modules[Q].scale == 8 / math.sqrt(4)


def test_rank_and_alpha_patterns(tmp_path: Path) -> None:
    tensors = half_pair(Q, rank=4) | half_pair(K, rank=2)
    folder = write_peft(
        tmp_path / "a", tensors, rank_pattern={"k_proj": 2}, alpha_pattern={r".*10\.self_attn\.k_proj": 5}
    )
    adapter = lego.read_adapter(folder)
    assert (adapter.modules[Q].rank, adapter.modules[Q].scale) == (4, 2.0)
    assert (adapter.modules[K].rank, adapter.modules[K].scale) == (2, 2.5)
    assert adapter.ranks == (2, 4)


def test_layers_in_natural_order(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in (10, 2, 0)]
    tensors = {key: value for name in names for key, value in half_pair(name).items()}
    adapter = lego.read_adapter(write_peft(tmp_path / "a", tensors))
    assert adapter.layers == (0, 2, 10)
    assert list(adapter.modules) == names[::-1]


def test_reading_is_lazy(tmp_path: Path) -> None:
    """A NaN in one module is no concern of another: only what is asked for is read."""
    tensors = half_pair(Q) | half_pair(K)
    tensors[f"base_model.model.{K}.lora_B.weight"][0, 0] = float("nan")
    adapter = lego.read_adapter(write_peft(tmp_path / "a", tensors))
    assert torch.isfinite(adapter[Q].up).all()
    with pytest.raises(AdapterError, match=r"k_proj.*NaN"):
        adapter[K]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"bias": "lora_only"}, "bias"),
        ({"target_parameters": ["w"]}, "bare parameters"),
        ({"layer_replication": [[0, 2]]}, "depth"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow"),
        ({"r": 5}, "says 5"),
        ({"lora_alpha": "eight"}, "not a number"),
        ({"lora_alpha": 0}, "does nothing"),
        ({"base_model_name_or_path": {"a": 1}}, "not a name"),
        ({"alpha_pattern": {"(": 3}}, "regular expression"),
    ],
)
def test_refusals_name_the_reason(peft_folder: Callable[..., Path], config: dict, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        lego.read_adapter(peft_folder(**config))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisers_that_keep_the_base_are_welcome(peft_folder: Callable[..., Path], init: object) -> None:
    assert lego.read_adapter(peft_folder(init_lora_weights=init)).ranks == (4,)


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        (f"base_model.model.{Q}.lora_magnitude_vector.weight", (4,), "DoRA magnitudes"),
        ("lora_unet_mid.hada_w1_a", (4, 4), "LoHa"),
        ("something.else", (4,), "something.else"),
        (f"base_model.model.{K}.lora_A.weight", (4, 24), "only lora_A"),
    ],
)
def test_unknown_keys_are_named(tmp_path: Path, key: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        lego.read_adapter(write_peft(tmp_path / "a", half_pair(Q) | {key: torch.ones(shape)}))


def test_halves_that_do_not_fit(tmp_path: Path) -> None:
    tensors = half_pair(Q, rank=4)
    tensors[f"base_model.model.{Q}.lora_B.weight"] = torch.ones(24, 3)
    with pytest.raises(AdapterError, match="do not fit together"):
        lego.read_adapter(write_peft(tmp_path / "a", tensors))


def test_integers_are_refused(tmp_path: Path) -> None:
    ints = {key: tensor.to(torch.int8) for key, tensor in half_pair(Q).items()}
    with pytest.raises(AdapterError, match="floating point"):
        lego.read_adapter(write_peft(tmp_path / "ints", ints))


def test_missing_and_damaged_files(tmp_path: Path, peft_folder: Callable[..., Path]) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        lego.read_adapter(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        lego.read_adapter(tmp_path / "empty")
    folder = peft_folder("cut")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(AdapterError, match="not a readable safetensors"):
        lego.read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        lego.read_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="not a JSON object"):
        lego.read_adapter(folder)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(AdapterError, match="pickle"):
        lego.read_adapter(tmp_path)


def test_no_module_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    save_file({}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    with pytest.raises(AdapterError, match="adapts no module"):
        lego.read_adapter(folder)


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        lego.read_adapter(tmp_path / "two\nlines")
    assert "\n" not in str(caught.value)


def test_card_front_matter(peft_folder: Callable[..., Path]) -> None:
    folder = peft_folder()
    (folder / "README.md").write_text("---\nlicense: mit\nbrickyard:\n  task: t\n---\n# A\n")
    assert lego.read_adapter(folder).card == {"license": "mit", "brickyard": {"task": "t"}}
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(AdapterError, match="front matter"):
        lego.read_adapter(folder)
