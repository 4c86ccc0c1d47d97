"""A single file in diffusers' own names, old and new: ``pytorch_lora_weights.safetensors``.

Every key is understood on its own. (diffusers renames a file by its first key: one that mixes old and new names, as its own
``convert_state_dict_to_diffusers`` writes when convolutions are adapted, loses half of its modules there.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.formats.base import Format
from lego.formats.header import Header, strict_json
from lego.formats.parts import ConfigScale, Contents, Piece, assemble, scaling
from lego.formats.peft import ranks_of
from lego.formats.reasons import Reasons, refuse_config, refuse_keys

WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "connectors"
)  # fmt: skip
# Where a name begins with none of them, what it begins with tells: files written by one model instead of its pipeline.
STEMS = {
    **dict.fromkeys(
        ("conv_in", "conv_out", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks"), "unet"
    ),
    **dict.fromkeys(("transformer_blocks", "single_transformer_blocks"), "transformer"),
}
KEY = re.compile(
    r"(?P<module>.+?)(?:(?:\.lora(?:_linear_layer)?|(?<=_lora))\.(?P<old>down|up)|\.lora_(?P<new>A|B|down|up))\.(?P<what>weight|bias)"
)
ATTENTION = re.compile(r"(?P<block>.+)\.to_(?P<kind>q|k|v|out)_lora")
# Modules of CLIP, whose classes name them with and without the prefix, by version; files have it.
CLIP = re.compile(r"(?:encoder\.layers|embeddings|final_layer_norm)\b")

Alpha = Callable[[str], float]


def contents(header: Header, reasons: Reasons, alpha: Alpha | None = None) -> Contents:
    """What a diffusers file holds, from its header.

    Args:
        header: of the file; ``lora_adapter_metadata`` in it has ranks and alphas where diffusers ≥ 0.34 wrote it.
        reasons: learn of everything that cannot be merged.
        alpha: reads the value of an alpha tensor; None where there are only headers, and every scale is then 1.
    """
    configs = read_metadata(header, reasons)
    pieces: dict[str, dict[str, Piece]] = {}
    alphas: dict[str, str] = {}
    saved: dict[str, str] = {}  # names as the metadata's patterns mean them
    unknown = []
    for key, entry in header.tensors.items():
        found = KEY.fullmatch(key)
        name, half = (found["module"], half_of(found)) if found else (key.removesuffix(".alpha"), "alpha")
        placed = canonical(name)
        if half is None or placed is None or (half == "alpha" and not key.endswith(".alpha")):
            unknown.append(key)
            continue
        module, saved[placed[0]] = placed[0], placed[1]
        if half == "alpha" and module not in alphas:
            alphas[module] = key
        elif half == "alpha" or half in pieces.setdefault(module, {}):
            reasons.add(f"holds module {module} twice ({key})", kind="twice")
        else:
            pieces[module][half] = Piece(key, entry.shape)
    refuse_keys(unknown + [key for module, key in alphas.items() if module not in pieces], reasons)
    scales = {component: ConfigScale(config, METADATA, reasons) for component, config in configs.items()}

    def scale(module: str, rank: int) -> float:
        if module in alphas:
            return scaling(alpha(alphas[module]), rank, False, f"alpha of module {module}", reasons) if alpha else 1.0
        own = scales.get(module.split(".")[0], scales.get(""))
        return own(saved[module], rank) if own else 1.0

    parts = assemble(pieces, header, scale, reasons)
    bases = [base for config in configs.values() if isinstance(base := config.get("base_model_name_or_path"), str)]
    return Contents("diffusers", parts, bases[0] if bases else None)


def half_of(found: re.Match[str]) -> str | None:
    """Which piece of a module a key names; None for a bias of A, which no LoRA has."""
    down = found["old"] == "down" or found["new"] in ("A", "down")
    if found["what"] == "bias":
        return None if down else "bias"
    return "down" if down else "up"


def canonical(name: str) -> tuple[str, str] | None:
    """A module's name in the form that all files of one base share, and its name inside its model; None when it names no model."""
    component, _, rest = name.partition(".")
    if component not in COMPONENTS:
        component, rest = STEMS.get(component, ""), name
    if not component or not rest:
        return None
    text = component.startswith("text_encoder")
    rest = rest.replace(".processor.", ".")
    if found := ATTENTION.fullmatch(rest):
        out = "out_proj" if text else "to_out.0"
        kind = found["kind"]
        rest = f"{found['block']}." + (out if kind == "out" else f"{kind}_proj" if text else f"to_{kind}")
    full = f"text_model.{rest}" if text and CLIP.match(rest) else rest
    return f"{component}.{full}", rest


def read_metadata(header: Header, reasons: Reasons) -> dict[str, dict[str, Any]]:
    """The LoRA configs that diffusers puts into the header, by component; under "" one that names none."""
    text = header.metadata.get(METADATA)
    if not text:
        return {}
    try:
        found = strict_json(text, METADATA)
    except AdapterError as error:
        reasons.add(f"its {METADATA} {error.what}")
        return {}
    if not isinstance(found, Mapping):
        reasons.add(f"its {METADATA} is not a JSON object")
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        component, _, field = name.rpartition(".")
        configs.setdefault(component, {"peft_type": "LORA"})[field] = value
    for config in configs.values():
        refuse_config(config, reasons)
    return configs


def pipeline_only(adapter: Adapter, form: str) -> None:
    """Refuse modules that are not parts of a pipeline, and kinds that single files do not have.

    Raises:
        AdapterError: naming the module.
    """
    alone = next((module for module in adapter.modules if module.split(".")[0] not in COMPONENTS), None)
    if alone or adapter.config.get("task_type"):
        what = f"{alone or next(iter(adapter.modules))} is of one model, and {form} files are of pipelines (unet, text_encoder …)"
        raise AdapterError(what, adapter.name, "Write it as peft.")
    if embedding := next((module for module, spec in adapter.modules.items() if spec.embedding), None):
        raise AdapterError(
            f"{embedding} is an embedding, which {form} files cannot hold", adapter.name, "Leave it out."
        )


class Diffusers(Format):
    """One file for `load_lora_weights`."""

    weights = WEIGHTS

    def check(self, adapter: Adapter) -> None:
        """Refuse what a pipeline does not have.

        Raises:
            AdapterError: naming the module.
        """
        pipeline_only(adapter, "diffusers")

    def keys(self, module: str, embedding: bool) -> tuple[str, str, str]:
        """The keys of a module's A, B and bias; text encoders keep the older names, which every diffusers knows."""
        if module.startswith("text_encoder"):
            return tuple(f"{module}.lora_linear_layer.{half}" for half in ("down.weight", "up.weight", "up.bias"))  # type: ignore[return-value]
        return super().keys(module, embedding)

    def metadata(self, adapter: Adapter) -> dict[str, str]:
        """The LoRA config of each component, as diffusers ≥ 0.34 reads it; alpha = rank, which older versions assume."""
        configs: dict[str, dict[str, Any]] = {}
        for component in dict.fromkeys(module.split(".")[0] for module in adapter.modules):
            own = {m: spec for m, spec in adapter.modules.items() if m.split(".")[0] == component}
            names = {m: m.removeprefix(f"{component}.").removeprefix("text_model.") for m in own}
            configs[component] = {
                **ranks_of({names[m]: spec.rank for m, spec in own.items()}),
                "target_modules": list(names.values()),
                "lora_bias": any(spec.bias for spec in own.values()),
                "lora_dropout": 0.0,
                "bias": "none",
                "use_rslora": False,
                "use_dora": False,
            }
        flat = {f"{component}.{name}": value for component, config in configs.items() for name, value in config.items()}
        return {**super().metadata(adapter), METADATA: json.dumps(flat, sort_keys=True)}
