"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.formats.base import Format
from lego.formats.header import Header, strict_json
from lego.formats.parts import ConfigScale, Contents, Piece, assemble
from lego.formats.reasons import Reasons, refuse_config, refuse_keys

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
PREFIX = "base_model.model."
KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B)"
)
HALVES = {"A.weight": "down", "B.weight": "up", "B.bias": "bias", "embedding_A": "down", "embedding_B": "up"}
KEPT = ("task_type", "fan_in_fan_out")
MOST_CONFIG = 10_000_000


def contents(header: Header, config: Mapping[str, Any], reasons: Reasons) -> Contents:
    """What a PEFT adapter holds, from its config and its weights' header.

    Args:
        header: of the weights.
        config: of the adapter.
        reasons: learn of everything that is not a plain, additive, low-rank update.
    """
    refuse_config(config, reasons)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        reasons.add(f"base_model_name_or_path is {str(base)[:80]!r}, not a name")
        base = None
    pieces: dict[str, dict[str, Piece]] = {}
    unknown = []
    for key, entry in header.tensors.items():
        if found := KEY.fullmatch(key):
            halves, half = pieces.setdefault(found["module"], {}), HALVES[found["half"]]
            if half in halves:
                reasons.add(f"holds lora_{found['half'][-1]} of module {found['module']} twice", kind="twice")
            halves[half] = Piece(key, entry.shape)
        else:
            unknown.append(key)
    refuse_keys(unknown, reasons)
    if pieces and "lora_alpha" not in config:
        reasons.add(f"has no lora_alpha in its {CONFIG}", "Write there what it was trained with; PEFT would take 8.")
    parts = assemble(pieces, header, ConfigScale(config, CONFIG, reasons), reasons)
    return Contents("peft", parts, base, {name: config[name] for name in KEPT if config.get(name)})


def read_config(path: Path) -> dict[str, Any]:
    """The adapter's config as a dictionary.

    Raises:
        AdapterError: when it is missing or not a JSON object.
    """
    if not path.is_file():
        raise AdapterError(f"has no {CONFIG}", path.parent, "Point to the folder that PEFT's save_pretrained wrote.")
    try:
        if path.stat().st_size > MOST_CONFIG:
            raise AdapterError(f"has {path.stat().st_size / 1e6:.0f} MB, which no such file needs", path)
        config = strict_json(path.read_bytes(), path)
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror})", path) from error
    if not isinstance(config, dict):
        raise AdapterError("is not a JSON object", path)
    return config


class Peft(Format):
    """A folder that PEFT loads."""

    weights = WEIGHTS
    down, up, bias = (f"{PREFIX}{{}}.lora_{half}" for half in ("A.weight", "B.weight", "B.bias"))

    def check(self, adapter: Adapter) -> None:
        """Refuse adapters of pipelines.

        Raises:
            AdapterError: since a PEFT folder is of one model.
        """
        if adapter.format != "peft":
            what = f"its modules, such as {next(iter(adapter.modules))}, are parts of a pipeline, and a PEFT folder is of one model"
            raise AdapterError(what, adapter.name, "Write it as diffusers or kohya.")

    def keys(self, module: str, embedding: bool) -> tuple[str, str, str]:
        """The keys of a module's A, B and bias."""
        if embedding:
            return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B", ""
        return super().keys(module, embedding)

    def companions(self, adapter: Adapter) -> dict[str, str]:
        """The config."""
        return {CONFIG: json.dumps(config_of(adapter), indent=2) + "\n"}


def ranks_of(modules: Mapping[str, int]) -> dict[str, Any]:
    """The part of a config that says the ranks, with alpha = rank: ``r``, ``lora_alpha`` and exact patterns.

    A pattern matches the end of a name: where that would catch another module, it is tied to the name's beginning.
    """
    ranks = list(modules.values())
    common = max(set(ranks), key=ranks.count)
    tails = {module[found.end() :] for module in modules for found in re.finditer(r"\.", module)}
    other = {
        ("^" if module in tails else "") + re.escape(module): rank for module, rank in modules.items() if rank != common
    }
    return {"r": common, "lora_alpha": common, "rank_pattern": other, "alpha_pattern": other}


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The PEFT config of an adapter whose scales are folded into its factors: alpha = rank everywhere, patterns exact."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "fan_in_fan_out": False,
        **{name: adapter.config[name] for name in KEPT if name in adapter.config},
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        **ranks_of({module: spec.rank for module, spec in adapter.modules.items()}),
        "target_modules": list(adapter.modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": any(spec.bias for spec in adapter.modules.values()),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
