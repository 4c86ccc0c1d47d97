"""The parts of an adapter as its headers tell them: per module which tensors, or which rows of them, are its factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lego.adapter import Factors, ModuleSpec
from lego.formats.header import FLOATS, Header, TensorFile
from lego.formats.patterns import Pattern
from lego.formats.reasons import Reasons

Rows = tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A tensor of the file, or ranges of its rows one after the other; shape is that of the piece."""

    key: str
    shape: tuple[int, ...]
    rows: Rows | None = None


class Part(NamedTuple):
    """One module: what the headers tell, and where its factors lie."""

    spec: ModuleSpec
    down: Piece
    up: Piece
    bias: Piece | None = None

    def read(self, file: TensorFile) -> Factors:
        """Its factors, a convolution's flattened.

        Raises:
            AdapterError: for NaN or infinite values.
        """
        spec = self.spec
        down = file.read(self.down.key, self.down.rows).reshape(spec.rank, spec.d_in)
        up = file.read(self.up.key, self.up.rows).reshape(spec.d_out, spec.rank)
        bias = file.read(self.bias.key, self.bias.rows) if self.bias else None
        return Factors(down, up, spec.scale, bias, spec.kernel, spec.embedding)


@dataclass(frozen=True)
class Contents:
    """What one file holds.

    Attributes:
        format: a key of `lego.formats.FORMATS`.
        parts: by module.
        base_model: as the file names it.
        config: what has to survive a merge.
        fused: groups of modules that were one module in the file, so that they share their A: the same units several times.
    """

    format: str
    parts: Mapping[str, Part]
    base_model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    fused: tuple[tuple[str, ...], ...] = ()


Scale = Callable[[str, int], float]

MOST_WEIGHTS = 2**30
"""Of one tensor; the largest vocabularies need a quarter of it at rank 1024."""


def assemble(
    pieces: Mapping[str, Mapping[str, Piece]], header: Header, scale: Scale, reasons: Reasons
) -> dict[str, Part]:
    """Every module whose pieces make a LoRA; what does not becomes a reason.

    Args:
        pieces: by module: ``down``, ``up`` and perhaps ``bias``.
        header: of the file they are in.
        scale: s of a module, from its name and its rank.
    """
    parts = {}
    for module, halves in pieces.items():
        if "down" not in halves or "up" not in halves:
            held = next(iter(halves.values())).key
            reasons.add(
                f"has only lora_{'B' if 'down' not in halves else 'A'} of module {module} ({held})", kind="half"
            )
            continue
        down, up, bias = halves["down"], halves["up"], halves.get("bias")
        dtypes = [header.tensors[piece.key].dtype for piece in (down, up, bias) if piece]
        if not set(dtypes) <= set(FLOATS):
            reasons.add(f"module {module} is stored as {'/'.join(dtypes)}, not as floating point", kind="dtype")
        elif why := misshapen(module, down.shape, up.shape, bias and bias.shape):
            reasons.add(*why)
        else:
            rank, d_in, d_out, embedding = (
                down.shape[0],
                math.prod(down.shape[1:]),
                up.shape[0],
                "lora_embedding_" in down.key,
            )
            spec = ModuleSpec(
                rank, d_in, d_out, scale(module, rank), dtypes[0], bias is not None, down.shape[2:], embedding
            )
            parts[module] = Part(spec, down, up, bias)
    return parts


def misshapen(
    module: str, down: tuple[int, ...], up: tuple[int, ...], bias: tuple[int, ...] | None = None
) -> tuple[str, str | None, str] | None:
    """Why shapes are not those of a linear module's or a convolution's factors, as arguments of `Reasons.add`; None when they are."""
    what = f"module {module} has factors of shapes {list(down)} and {list(up)}"
    sound = len(down) == len(up) and 2 <= len(down) <= 5 and 0 not in (*down, *up) and set(up[2:]) <= {1}
    if sound and len(down) > 2 and up[1] < down[0] and down[0] % up[1] == 0:
        why = "a grouped convolution's B is block-diagonal and has no merged form"
        return f"cannot be merged: {what}, and {why}", "Train without its grouped convolutions.", "grouped"
    if not sound or down[0] != up[1]:
        return f"{what}, which do not fit together", None, "shapes"
    if max(math.prod(down), math.prod(up)) > MOST_WEIGHTS:
        return f"{what}, larger than any LoRA's", None, "large"
    if bias is not None and bias != up[:1]:
        return f"module {module} has a bias of shape {list(bias)} beside {up[0]} outputs", None, "bias"
    return None


class ConfigScale:
    """s = alpha/r, or alpha/sqrt(r) with rsLoRA: r from the tensor's shape, alpha from ``alpha_pattern`` where one matches.

    A rank in the config that contradicts the tensor's, and an alpha that is no number or 0, become reasons.
    """

    def __init__(self, config: Mapping[str, Any], source: str, reasons: Reasons) -> None:
        self.config, self.source, self.reasons = config, source, reasons
        self.ranks = Pattern(config.get("rank_pattern"), "rank_pattern", reasons)
        self.alphas = Pattern(config.get("alpha_pattern"), "alpha_pattern", reasons)

    def __call__(self, module: str, rank: int) -> float:
        declared = self.ranks.get(module, self.config.get("r"))
        if declared is not None and declared != rank:
            self.reasons.add(f"module {module} has rank {rank} but {self.source} says {declared}", kind="rank")
        alpha = self.alphas.get(module, self.config.get("lora_alpha", rank))
        return scaling(alpha, rank, bool(self.config.get("use_rslora")), f"lora_alpha of module {module}", self.reasons)


def scaling(alpha: Any, rank: int, rslora: bool, name: str, reasons: Reasons) -> float:
    """alpha over the rank or its root; 1 where alpha is no usable number, which becomes a reason."""
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e30:
        reasons.add(f"{name} is {str(alpha)[:40]!r}, not a number", kind="alpha")
        return 1.0
    if alpha == 0:
        reasons.add(f"{name} is 0, so it does nothing", kind="zero")
        return 1.0
    return alpha / (math.sqrt(rank) if rslora else rank)
