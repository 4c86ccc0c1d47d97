"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

Reading is lazy: the header gives ranks and shapes, a module's tensors are read when asked for. What is not a plain, additive,
low-rank update is refused with its reason before any tensor is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from lego.adapter import Adapter, Factors, ModuleSpec, finite
from lego.errors import AdapterError

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")
FLOATS = {"F64", "F32", "F16", "BF16"}

# Fields that change nothing of what a finished plain LoRA is.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip

# Why each of these is not a sum of rank-one updates of an unchanged base.
REASONS = {
    "use_dora": "DoRA rescales the whole weight, so its update is not additive",
    "modules_to_save": "it replaces whole modules (modules_to_save), which are not low-rank",
    "trainable_token_indices": "it replaces token embeddings (trainable tokens), which are not low-rank",
    "lora_bias": "it trains biases beside its factors (lora_bias)",
    "target_parameters": "it adapts bare parameters (target_parameters), not modules",
    "layer_replication": "it changes the base's depth (layer_replication)",
    "use_qalora": "QA-LoRA pools its inputs in groups, so its factors do not fit the base's shapes",
    "alora_invocation_tokens": "an activated LoRA works only after its invocation tokens",
    "arrow_config": "Arrow routes between adapters at run time",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
}

# Initialisers that also change the base weight: the saved factors are an update of another base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_peft(path: Path) -> bool:
    """Whether the folder looks like a PEFT adapter."""
    return (path / CONFIG).is_file()


def read(path: Path) -> Adapter:
    """Open a PEFT folder without reading a tensor.

    Raises:
        AdapterError: when a file is missing, damaged, or is not a LoRA that can be merged; the message names the reason.
    """
    config = read_config(path / CONFIG)
    refuse_unmergeable(config, path)
    weights = path / WEIGHTS
    if not weights.is_file():
        pickled = next(path.glob("adapter_model.bin"), None)
        why = "holds only a pickle (adapter_model.bin), which is never loaded" if pickled else f"has no {WEIGHTS}"
        raise AdapterError(why, path, "Save it with `model.save_pretrained(folder)` of a current PEFT.")
    modules, keys = read_header(weights, config)

    @cache  # parsing the header anew for each module would take longer than reading the module
    def file() -> Any:
        return open_safetensors(weights)

    def read_module(module: str) -> Factors:
        down, up = (finite(file().get_tensor(key).float(), f"{weights}, {key}") for key in keys[module])
        return Factors(down, up, modules[module].scale)

    kept = {name: config[name] for name in ("task_type", "fan_in_fan_out") if config.get(name)}
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise AdapterError(f"base_model_name_or_path is {base!r}, not a name", path / CONFIG)
    card = read_card(path / CARD)
    return Adapter(path.name, modules, read_module, base, path, weights, config=kept, card=card)


def read_config(path: Path) -> dict[str, Any]:
    """The adapter's config as a dictionary.

    Raises:
        AdapterError: when it is missing or not a JSON object.
    """
    if not path.is_file():
        raise AdapterError(f"has no {CONFIG}", path.parent, "Point to the folder that PEFT's save_pretrained wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"is not valid JSON ({error})", path) from error
    if not isinstance(config, dict):
        raise AdapterError("is not a JSON object", path)
    return config


def refuse_unmergeable(config: Mapping[str, Any], where: object) -> None:
    """Refuse, by name and reason, every config that is not a plain LoRA.

    Raises:
        AdapterError: with the field and why it rules a merge out.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"is of type {kind}, not LoRA", where, "Only LoRA adapters can be taken apart into units.")
    for name, reason in REASONS.items():
        if config.get(name):
            raise AdapterError(f"cannot be merged: {reason}", where)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"cannot be merged: its initialiser ({init}) changed the base weights",
            where,
            "Convert it to a plain LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"cannot be merged: it trains the base's biases (bias={config['bias']!r})", where)
    if unknown := sorted(name for name, value in config.items() if value and name not in HARMLESS):
        raise AdapterError(f"uses config fields this version does not know: {', '.join(unknown)}", where)


def open_safetensors(path: Path) -> Any:
    """`safe_open` with this package's error.

    Raises:
        AdapterError: when the file is not a readable safetensors file.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"is not a readable safetensors file ({error})", path, "Download or save it again."
        ) from error


def read_header(weights: Path, config: Mapping[str, Any]) -> tuple[dict[str, ModuleSpec], dict[str, tuple[str, str]]]:
    """Ranks, shapes and scales of every module from the file's header.

    Returns:
        The specs by module, and the keys of A and B by module.

    Raises:
        AdapterError: for unknown keys, a missing half, shapes that do not fit together, or a type that is not floating point.
    """
    halves: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    specs: dict[str, ModuleSpec] = {}
    with open_safetensors(weights) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            if found := KEY.match(key):
                halves.setdefault(found["module"], {})[found["half"]] = key
            else:
                unknown.append(key)
        if unknown:
            raise AdapterError(explain_keys(unknown), weights)
        for module, half in halves.items():
            if len(half) < 2:
                raise AdapterError(f"has only lora_{next(iter(half))} of module {module}", weights)
            a, b = (file.get_slice(half[name]) for name in "AB")
            specs[module] = spec_of(module, a, b, config, weights)
    return specs, {module: (half["A"], half["B"]) for module, half in halves.items()}


def spec_of(module: str, a: Any, b: Any, config: Mapping[str, Any], where: Path) -> ModuleSpec:
    """One module's spec from the two header entries.

    Raises:
        AdapterError: when the shapes are not those of a linear module's factors, or the type is not floating point.
    """
    (down, up), dtypes = (a.get_shape(), b.get_shape()), (a.get_dtype(), b.get_dtype())
    if len(down) == 4 or len(up) == 4:
        raise AdapterError(f"adapts a convolution ({module}), which this version does not read yet", where)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        raise AdapterError(f"module {module} has factors of shapes {down} and {up}, which do not fit together", where)
    if not set(dtypes) <= FLOATS:
        raise AdapterError(f"module {module} is stored as {dtypes[0]}/{dtypes[1]}, not as floating point", where)
    return ModuleSpec(down[0], down[1], up[0], scale_of(module, down[0], config, where), dtypes[0])


def scale_of(module: str, rank: int, config: Mapping[str, Any], where: Path) -> float:
    """s = alpha/r (or alpha/sqrt(r) with rsLoRA): r from the tensor's shape, alpha from ``alpha_pattern`` where one matches.

    Raises:
        AdapterError: when the config's rank contradicts the tensor's, or alpha is not a number.
    """
    declared = pattern_value(config.get("rank_pattern") or {}, module, config.get("r"))
    if declared is not None and declared != rank:
        raise AdapterError(f"module {module} has rank {rank} but {CONFIG} says {declared}", where)
    alpha = pattern_value(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError(f"lora_alpha of module {module} is {alpha!r}, not a number", where.parent / CONFIG)
    if alpha == 0:
        raise AdapterError(f"lora_alpha of module {module} is 0, so it does nothing", where.parent / CONFIG)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's name, by PEFT's own rule.

    Raises:
        AdapterError: when a pattern is not a regular expression.
    """
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise AdapterError(f"has a pattern that is not a regular expression: {key!r} ({error})", CONFIG) from error
    return default


def explain_keys(keys: list[str]) -> str:
    """One sentence on keys that are not a linear LoRA's factors."""
    names = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    known = {
        "lora_magnitude_vector": "DoRA magnitudes",
        "lora_embedding": "an embedding's LoRA",
        "hada_": "LoHa factors",
        "lokr_": "LoKr factors",
        "modules_to_save": "whole modules",
    }
    what = next((f" ({text})" for part, text in known.items() if any(part in key for key in keys)), "")
    return f"holds keys that are not LoRA factors of a linear module{what}: {names}"


def read_card(path: Path) -> dict[str, Any]:
    """Front matter of the README, or nothing when there is none.

    Raises:
        AdapterError: when there is front matter that is not valid YAML.
    """
    if not path.is_file():
        return {}
    found = re.match(r"^---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        card = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise AdapterError(f"has front matter that is not valid YAML ({error})", path) from error
    return card if isinstance(card, dict) else {}


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The PEFT config of an adapter whose scales are folded into its factors: alpha = rank everywhere, patterns exact."""
    ranks = [spec.rank for spec in adapter.modules.values()]
    common = max(set(ranks), key=ranks.count)
    other = {re.escape(module): spec.rank for module, spec in adapter.modules.items() if spec.rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "fan_in_fan_out": False,
        **adapter.config,
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": list(adapter.modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def tensors_of(adapter: Adapter, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors to save: sqrt(s) folded into each half, in PEFT's key names.

    Raises:
        AdapterError: when a value does not fit into the type.
    """
    tensors = {}
    for module in adapter.modules:
        factors = adapter[module]
        root = math.sqrt(abs(factors.scale))
        halves = {"A": factors.down * root, "B": factors.up * math.copysign(root, factors.scale)}
        for half, tensor in halves.items():
            key = f"base_model.model.{module}.lora_{half}.weight"
            tensors[key] = tensor.to(dtype).contiguous()
            if not bool(torch.isfinite(tensors[key]).all()):
                largest = float(tensor.abs().max())
                raise AdapterError(
                    f"{key} reaches {largest:.3g}, too large for {dtype}", adapter.name, "Write float32."
                )
    return tensors
