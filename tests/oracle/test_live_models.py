"""The live layer in models of several families against PEFT with the same adapters, row by row."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lego import read_adapter
from mole.live import LivePool, Weighting, attach

SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "phi3": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "olmo2": {},
    "starcoder2": {},
}


def tiny(family: str) -> nn.Module:
    torch.manual_seed(0)
    config: PretrainedConfig = CONFIG_MAPPING[family](**{**SMALL, **FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def make(base: nn.Module, folder: Path, seed: int, **config: Any) -> Path:
    """A PEFT adapter on every linear layer, with random factors."""
    torch.manual_seed(seed)
    made = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **config),
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_what_peft_gives(family: str, tmp_path: Path) -> None:
    base = tiny(family)
    paths = {
        "one": make(base, tmp_path / "one", 1, r=4, lora_alpha=6),
        "two": make(base, tmp_path / "two", 2, r=2, lora_alpha=5, use_rslora=True, rank_pattern={".*0.*": 3}),
    }
    ids = torch.randint(3, 99, (4, 9), generator=torch.Generator().manual_seed(3))
    peft = PeftModel.from_pretrained(copy.deepcopy(base), paths["one"], adapter_name="one")
    peft.load_adapter(paths["two"], adapter_name="two")
    with torch.no_grad():
        bare = base(ids).logits
        wanted = [bare[0]]
        for row, name in ((1, "one"), (2, "two")):
            peft.set_adapter(name)
            wanted.append(peft(ids[row : row + 1]).logits[0])
        peft.base_model.set_adapter(["one", "two"])  # PEFT runs several active adapters as their sum
        wanted.append(peft(ids[3:]).logits[0])

        pool = LivePool({name: read_adapter(path) for name, path in paths.items()}, "cpu", torch.float32)
        variants = [
            Weighting(),
            Weighting((("one", 1.0),)),
            Weighting((("two", 1.0),)),
            Weighting((("one", 1.0), ("two", 1.0))),
        ]
        with attach(base, pool) as live:
            live.set_rows(pool.row_weights(variants))
            found = base(ids).logits
        assert torch.equal(base(ids).logits, bare)
    for row in range(4):
        torch.testing.assert_close(found[row], wanted[row], rtol=1e-4, atol=1e-4)
    changes = [float((found[row] - bare[row]).abs().max()) for row in (1, 2, 3)]
    assert min(changes) > 0.01, "the adapters must change something for this to tell anything"
