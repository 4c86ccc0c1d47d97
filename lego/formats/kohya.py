"""kohya's single file and its relatives, read through diffusers' own converters: ``lora_unet_…``, ``lora_te_…``, an alpha a module.

The converters run on stand-ins, once, so that reading stays lazy and nothing of theirs is repeated here. What they would drop or
misname is refused with its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from lego.adapter import Adapter, Factors, ModuleSpec
from lego.errors import AdapterError
from lego.formats import diffusers as names
from lego.formats.base import Format
from lego.formats.header import Header
from lego.formats.parts import Contents, Piece, assemble, misshapen, scaling
from lego.formats.peft import ranks_of
from lego.formats.reasons import Reasons, refuse_keys
from lego.formats.standin import StandIn

OURS = re.compile(r"lora_[a-z0-9]+_|diffusion_model\.|text_encoders\.|.*\b(double|single)_blocks\.")
KEY = re.compile(r"(?P<module>.+?)\.(?:lora_)?(?P<half>down|up)\.weight")
# Every module a LoRA of Stable Diffusion (1, 2, XL) can be on; a converter that ends elsewhere has misread the name.
KNOWN = re.compile(
    r"unet\.(?:conv_in|conv_out|(?:time|add)_embedding\.linear_[12]"
    r"|(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:"
    r"resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|(?:down|up)samplers\.0\.conv"
    r"|attentions\.\d+\.(?:proj_in|proj_out|transformer_blocks\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))))"
    r"|text_encoder(?:_2)?\.(?:text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])|text_projection)"
)
# diffusers reads these two only by kohya's own names of them.
ALIASES = {f"lora_unet_add_embedding_linear_{n}": f"lora_unet_label_emb_0_{2 * n - 2}" for n in (1, 2)}
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
LAYERS_PER_BLOCK = 2  # of every Stable Diffusion
# Whether a converter read a name right, where it may err: by family, from the module and the key it made it of.
SURE: dict[str, Callable[[str, str], bool]] = {
    "unet": lambda module, key: bool(KNOWN.fullmatch(module)),
    "transformer": lambda module, key: (
        not key.startswith("lora_transformer_") or key.startswith(f"lora_{module.replace('.', '_')}.")
    ),
}
# What diffusers' converters end in for names that they were not written for: they raise whatever the failing line raises. Each becomes
# a reason to refuse the file, with its text; what is left out (MemoryError, OSError …) is not the file's fault and passes.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)

Converter = Callable[[dict[str, Any]], Mapping[str, Any]]


def is_kohya(keys: Iterable[str]) -> bool:
    """Whether some key is named in kohya's manner, or as the original models name their modules."""
    return any(OURS.match(key) for key in keys)


def contents(header: Header, reasons: Reasons, alpha: names.Alpha | None = None) -> Contents:
    """What a kohya file holds, in diffusers' names.

    Args:
        header: of the file.
        reasons: learn of everything that cannot be merged.
        alpha: reads the value of an alpha tensor; None where there are only headers, and every scale is then 1.
    """
    sources, unknown = pair(header, reasons)
    refuse_keys(unknown, reasons)
    for module, halves in list(sources.items()):
        if len(halves) < 2:
            reasons.add(f"has only {next(iter(halves.values()))}, not its other half", kind="half")
            del sources[module]
        elif why := misshapen(module, header.tensors[halves["down"]].shape, header.tensors[halves["up"]].shape):
            reasons.add(*why)
            del sources[module]
    pieces = convert(header, sources, reasons)
    origin = {
        piece.key: source for source, halves in sources.items() for piece in map(piece_of(header), halves.values())
    }

    def scale(module: str, rank: int) -> float:
        key = f"{origin[pieces[module]['down'].key]}.alpha"
        if key not in header.tensors or alpha is None:
            return 1.0
        return scaling(alpha(key), rank, False, f"alpha of module {module}", reasons)

    parts = assemble(pieces, header, scale, reasons)
    shared: dict[str, list[str]] = {}
    for module, part in parts.items():
        shared.setdefault(part.down.key, []).append(module)
    fused = tuple(tuple(modules) for modules in shared.values() if len(modules) > 1)
    fields = (
        header.metadata.get(name) for name in ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture")
    )
    return Contents("kohya", parts, next(filter(None, fields), None), fused=fused)


def piece_of(header: Header) -> Callable[[str], Piece]:
    """Makes the whole piece of a key."""
    return lambda key: Piece(key, header.tensors[key].shape)


def pair(header: Header, reasons: Reasons) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The keys of each module's halves by module, as the file names them, and the keys that are no part of a LoRA."""
    sources: dict[str, dict[str, str]] = {}
    rest = []
    for key in header.tensors:
        if found := KEY.fullmatch(key):
            if key != sources.setdefault(found["module"], {}).setdefault(found["half"], key):
                reasons.add(f"holds module {found['module']} twice ({key})", kind="twice")
        else:
            rest.append(key)
    return sources, [key for key in rest if key.removesuffix(".alpha") not in sources or not key.endswith(".alpha")]


def convert(header: Header, sources: Mapping[str, Mapping[str, str]], reasons: Reasons) -> dict[str, dict[str, Piece]]:
    """Each module's pieces by diffusers' names; what the converter drops or misnames becomes a reason."""
    if not sources:
        return {}
    given: dict[str, Any] = {}
    for source, halves in sources.items():
        name = ALIASES.get(source, source)
        for key in halves.values():
            given[name + key.removeprefix(source)] = StandIn(key, header.tensors[key].shape)
        if "lora_" in halves["down"].removeprefix(source):
            rank = header.tensors[halves["down"]].shape[:1] or (1,)
            given[f"{name}.alpha"] = torch.tensor(float(rank[0]))
    try:
        family, converter = converter_for(sources, header)
        converted = converter(given)
    except FAILURES as error:
        reasons.add(f"cannot be read by diffusers' converter ({type(error).__name__}: {str(error)[:300]})")
        return {}
    pieces: dict[str, dict[str, Piece]] = {}
    lost = {key for halves in sources.values() for key in halves.values()}
    for key, standin in converted.items():
        found = names.KEY.fullmatch(key)
        placed = found and (names.canonical(found["module"]) or names.canonical(f"{family}.{found['module']}"))
        half = found and names.half_of(found)
        if not placed or not half or not (SURE[family](placed[0], standin.key)):
            reasons.add(
                f"{standin.key} is of no module that diffusers' converter knows (it makes {key} of it)", kind="misread"
            )
        elif half in pieces.setdefault(placed[0], {}):
            reasons.add(f"holds module {placed[0]} twice ({standin.key})", kind="twice")
        else:
            pieces[placed[0]][half] = standin.piece
        lost.discard(standin.key)
    if lost:
        reasons.add(
            f"diffusers' converter drops {', '.join(sorted(lost)[:3])}" + f" and {len(lost) - 3} more" * (len(lost) > 3)
        )
    return pieces


def converter_for(sources: Mapping[str, Mapping[str, str]], header: Header) -> tuple[str, Converter]:
    """The main model of the pipeline that the names belong to, and diffusers' converter for them.

    Raises:
        ValueError: when the names are of no model known here.
    """
    from diffusers.loaders import lora_conversion_utils as of

    if any(source.startswith("lora_transformer_") for source in sources):
        return "transformer", of._convert_kohya_flux_lora_to_diffusers
    if any(".processor." in source for source in sources):
        return "transformer", of._convert_xlabs_flux_lora_to_diffusers
    if any("double_blocks" in source or "single_blocks" in source for source in sources):
        return "transformer", of._convert_kohya_flux_lora_to_diffusers
    if all(source.startswith("lora_unet_blocks_") for source in sources):
        return "transformer", of._convert_musubi_wan_lora_to_diffusers
    if all(source.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for source in sources):
        return "unet", stable_diffusion
    raise ValueError(f"{next(iter(sources))} is named as no base known here")


def stable_diffusion(tensors: dict[str, Any]) -> Mapping[str, Any]:
    """SD 1, 2 and XL, their UNet named as in diffusers or as in the original model ("sgm")."""
    from diffusers.loaders import lora_conversion_utils as of

    config = SimpleNamespace(layers_per_block=LAYERS_PER_BLOCK)
    converted, _alphas = of._convert_non_diffusers_lora_to_diffusers(
        of._maybe_map_sgm_blocks_to_diffusers(tensors, config)
    )
    return converted


class Kohya(Format):
    """One file for Stable Diffusion's web interfaces, with diffusers' names of the UNet's blocks.

    All modules get one alpha, the commonest rank, and weights to match: where alphas differ diffusers (0.42) applies them to other
    modules than kohya's tools do.
    """

    weights = "{name}.safetensors"
    down, up = "{}.lora_down.weight", "{}.lora_up.weight"

    def __init__(self, adapter: Adapter) -> None:
        self.large = any(
            module.startswith(("text_encoder_2.", "unet.add_embedding."))
            or re.search(r"transformer_blocks\.[1-9]", module)
            for module in adapter.modules
        )
        self.alpha = ranks_of({module: spec.rank for module, spec in adapter.modules.items()})["r"]
        super().__init__(adapter)

    def check(self, adapter: Adapter) -> None:
        """Refuse everything but plain LoRAs of Stable Diffusion.

        Raises:
            AdapterError: naming the module.
        """
        names.pipeline_only(adapter, "kohya")
        if strange := next((module for module in adapter.modules if not KNOWN.fullmatch(module)), None):
            what = (
                f"{strange} has no name in kohya's format, which this version writes for Stable Diffusion 1, 2 and XL"
            )
            raise AdapterError(what, adapter.name, "Write it as diffusers.")
        if biased := next((module for module, spec in adapter.modules.items() if spec.bias), None):
            raise AdapterError(
                f"{biased} has a bias, which kohya's format cannot hold", adapter.name, "Write it as diffusers."
            )

    def name(self, module: str) -> str:
        """kohya's name of a module; SD 1 and 2 have one text encoder, ``lora_te_``."""
        component, _, rest = module.partition(".")
        prefix = "lora_te" if component == "text_encoder" and not self.large else PREFIXES[component]
        plain = f"{prefix}_{rest.replace('.', '_')}"
        return ALIASES.get(plain, plain)

    def keys(self, module: str, embedding: bool) -> tuple[str, str, str]:
        """The keys of a module's A, B and bias."""
        return super().keys(self.name(module), embedding)

    def entries(self, module: str, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
        """As in every format, and the alpha."""
        return {**super().entries(module, spec), f"{self.name(module)}.alpha": ()}

    def tensors(self, module: str, factors: Factors) -> dict[str, torch.Tensor]:
        """As in every format but for scale = alpha/rank, and the alpha."""
        factors = replace(factors, scale=factors.scale * factors.rank / self.alpha)
        return {**super().tensors(module, factors), f"{self.name(module)}.alpha": torch.tensor(float(self.alpha))}

    def metadata(self, adapter: Adapter) -> dict[str, str]:
        """The least that web interfaces look at."""
        rank = ranks_of({module: spec.rank for module, spec in adapter.modules.items()})["r"]
        found = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(self.alpha)}
        if self.large:
            found["ss_base_model_version"] = "sdxl_base_v1-0"
        if adapter.base_model:
            found["ss_sd_model_name"] = adapter.base_model
        return {**super().metadata(adapter), **found}
