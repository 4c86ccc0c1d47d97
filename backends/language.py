"""Language models as bases: which files one needs, what is refused before its weights are fetched, loading."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends import builtin, device
from backends.base import TOKENIZER_FILES, Base, BaseInfo, loading, no_weights
from backends.errors import BaseError
from backends.packed import Packed, pack
from mole.making import MAKING

CONFIG = "config.json"


@dataclass(eq=False, kw_only=True)
class TextBase(Base):
    """A language model and its tokenizer.

    Attributes:
        packed: speeds small batches up on the CPU, where it can.
    """

    tokenizer: Any
    packed: Packed | None = None

    @property
    def files(self) -> Sequence[Path]:
        """Its config and weights."""
        return [self.folder / CONFIG, *sorted(self.folder.glob("*.safetensors"))]

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts can be put into the chat form the model was trained on."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The arguments that the model's forward pass knows."""
        return frozenset(inspect.signature(self.model.forward).parameters)


def wanted(sizes: Mapping[str, int], read: Callable[[str], dict[str, Any]], where: object) -> list[str]:
    """The files to load, of those that a folder or a repository holds.

    Args:
        sizes: bytes of every file.
        read: gives a JSON file's content.
        where: they are, for the error.

    Raises:
        BaseError: when it is no language model that can be loaded; with the reason.
    """
    if CONFIG not in sizes:
        adapter = "adapter_config.json" in sizes
        fix = "It is an adapter: add it to the library instead." if adapter else "Give what save_pretrained wrote."
        raise BaseError(f"has no {CONFIG}", where, fix)
    weights = weight_files(sizes, where)
    refuse_config(read(CONFIG), where)
    return [*(file for file in sizes if "/" not in file and file.endswith(TOKENIZER_FILES)), *weights]


def weight_files(names: Mapping[str, int], where: object) -> list[str]:
    """The safetensors files that hold the model.

    Raises:
        BaseError: when there are none, as where only pickles are given, which are never loaded.
    """
    if "model.safetensors" in names:
        return ["model.safetensors"]
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if shards and "model.safetensors.index.json" in names:
        return shards
    raise no_weights(names, where)


def refuse_config(config: dict[str, Any], where: object) -> None:
    """Refuse, before weights are fetched, what is not a causal language model that transformers itself knows.

    Raises:
        BaseError: with the reason.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.get("model_type")
    if kind in CAUSAL and not config.get("is_encoder_decoder"):
        return
    if config.get("auto_map"):
        raise BaseError("needs program code from its repository, which is never run", where, "Choose another base.")
    raise BaseError(f"is a model of type {kind!r}, not a causal language model", where, "Choose another base.")


def load(folder: Path, info: BaseInfo, commit: str | None) -> TextBase:
    """The model from its folder, on the device.

    Raises:
        BaseError: when it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, dtype = device.pick()
    if info.id == builtin.ID:
        dtype = torch.float32  # small enough everywhere, and exact: a row's text does not depend on its batch
    local = {"trust_remote_code": False, "local_files_only": True}
    with loading(info.id):
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
    model = model.to(where).eval().requires_grad_(False)
    return TextBase(
        model=model,
        tokenizer=tokenizer,
        info=replace(info, ready=True),
        device=where,
        dtype=dtype,
        folder=folder,
        commit=commit,
        packed=pack(model, where, dtype),
    )


def skeleton(folder: Path | None) -> nn.Module:
    """The model without weights.

    Args:
        folder: with its config; None for the built-in one, which needs no file.

    Raises:
        BaseError: when the config cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    if folder is None:
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        config: Any = LlamaConfig(num_attention_heads=9, num_key_value_heads=3, **sizes)
    else:
        with loading(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with MAKING, torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
