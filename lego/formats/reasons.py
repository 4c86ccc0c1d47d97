"""Why a file cannot be merged: collected, so that a person reads all reasons at once, and the same ones everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lego.errors import AdapterError, clean

# What a key that holds no plain LoRA factor tells, by a part of its name; the first that fits.
KEYS = {
    "lora_magnitude_vector": ("DoRA magnitudes", "DoRA rescales the whole weight, so its update is not additive"),
    "dora_scale": ("DoRA magnitudes", "DoRA rescales the whole weight, so its update is not additive"),
    "hada_": ("LoHa factors", "LoHa multiplies two products entry by entry, which is not low-rank"),
    "lokr_": ("LoKr factors", "LoKr is a Kronecker product, which is not low-rank"),
    "lora_mid": ("a LoCon core (Tucker, CP)", "its convolutions have a third factor"),
    "oft_": ("OFT rotations", "OFT rotates the base weight, so its update is not additive"),
    "hra_": ("HRA reflections", "HRA reflects the base weight, so its update is not additive"),
    "ia3_": ("IA3 factors", "IA3 multiplies activations, so its update is not additive"),
    "on_input": ("IA3 factors", "IA3 multiplies activations, so its update is not additive"),
    "glora": ("GLoRA factors", "GLoRA's update depends on the base weight"),
    "modules_to_save": ("whole modules (modules_to_save)", "they are not low-rank"),
    "trainable_tokens": ("trainable tokens", "they replace rows of the embedding and are not low-rank"),
    ".diff": ("whole differences (diff)", "they are not low-rank"),
    "w_norm": ("normalisation weights", "they are not low-rank"),
    "b_norm": ("normalisation weights", "they are not low-rank"),
    "bundle_emb": ("embeddings of new tokens", "they are not low-rank"),
    "base_layer": ("whole weights of the base", "they are not low-rank"),
}
RETRAIN = "Only plain LoRAs can be taken apart into units: train or extract one."
FIXES = {
    "lora_magnitude_vector": "Train without DoRA, or extract a plain LoRA from the merged weights.",
    "dora_scale": "Train without DoRA, or extract a plain LoRA from the merged weights.",
    "base_layer": "Save it again with save_pretrained(..., save_embedding_layers=False).",
}

# PEFT config fields that, when set, rule a merge out.
CONFIG = {
    "use_dora": "DoRA rescales the whole weight, so its update is not additive",
    "modules_to_save": "it replaces whole modules (modules_to_save), which are not low-rank",
    "trainable_token_indices": "it replaces token embeddings (trainable tokens), which are not low-rank",
    "target_parameters": "it adapts bare parameters (target_parameters), not modules",
    "layer_replication": "it changes the base's depth (layer_replication)",
    "use_qalora": "QA-LoRA pools its inputs in groups, so its factors do not fit the base's shapes",
    "alora_invocation_tokens": "an activated LoRA works only after its invocation tokens",
    "arrow_config": "Arrow routes between adapters at run time",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA truncates the base weight, so its factors belong to another base",
    "monteclora_config": "MonteCLoRA samples its factors",
}

# Fields that change nothing of what a finished plain LoRA is.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip

# Initialisers that also change the base weight: the saved factors are an update of another base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
CONVERT = "Convert it to a plain LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...)."

# Characters of one reason.
MOST = 500


@dataclass
class Reasons:
    """Reasons to refuse a file, each once; of those that many modules share, the first and how many more."""

    where: object
    found: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, what: str, fix: str | None = None, kind: str | None = None) -> None:
        """One more reason: what is wrong, without a full stop; what to do; and under which name it is counted."""
        kind = kind or what
        first = self.found.get(kind, (clean(what, MOST), fix, -1))
        self.found[kind] = (*first[:2], first[2] + 1)

    @property
    def parts(self) -> list[tuple[str, str | None]]:
        """What and fix of each reason."""
        return [
            (what + (f" (and {more} more like it)" if more else ""), fix) for what, fix, more in self.found.values()
        ]

    @property
    def texts(self) -> list[str]:
        """One text a reason."""
        return [f"{what}. {fix}" if fix else what for what, fix in self.parts]

    def check(self) -> None:
        """Refuse the file.

        Raises:
            AdapterError: with every reason, when there is one.
        """
        if self.found:
            fixes = dict.fromkeys(fix for _, fix in self.parts if fix)
            raise AdapterError("; ".join(what for what, _ in self.parts), self.where, " ".join(fixes) or None)


def refuse_config(config: Mapping[str, Any], reasons: Reasons) -> None:
    """Every field of a PEFT config that is not a plain LoRA's."""
    if (kind := config.get("peft_type")) != "LORA":
        reasons.add(f"is of type {kind}, not LoRA", "Only LoRA adapters can be taken apart into units.")
    for name, reason in CONFIG.items():
        if config.get(name):
            reasons.add(f"cannot be merged: {reason}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        reasons.add(f"cannot be merged: its initialiser ({init}) changed the base weights", CONVERT)
    if config.get("bias", "none") != "none":
        reasons.add(f"cannot be merged: it trains the base's biases (bias={config['bias']!r})")
    if unknown := sorted(str(name) for name, value in config.items() if value and name not in {*HARMLESS, *CONFIG}):
        reasons.add(f"uses config fields this version does not know: {', '.join(unknown)}")


def refuse_keys(keys: Iterable[str], reasons: Reasons) -> None:
    """Keys that are no LoRA factors: one reason for each kind that is known, one with the names for the rest."""
    kinds: dict[str, list[str]] = {}
    keys = list(keys)
    owners = {key[: found.start()] for key in keys if not key.endswith(".alpha") for found in re.finditer(r"\.", key)}
    for key in keys:
        if key.endswith(".alpha") and key.removesuffix(".alpha") in owners:
            continue  # an alpha goes with what it scales
        kinds.setdefault(next((part for part in KEYS if part in key), ""), []).append(key)
    for part, held in kinds.items():
        names = ", ".join(sorted(held)[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        if part:
            what, why = KEYS[part]
            reasons.add(f"holds {what}, and {why}: {names}", FIXES.get(part, RETRAIN))
        else:
            reasons.add(f"holds keys that are no LoRA factors this version knows: {names}")
