"""LoRAs as data: the factors of one module, and an adapter as named modules that are read one at a time."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lego.errors import AdapterError

if TYPE_CHECKING:
    from lego.edit import Edit
    from lego.recipe import Recipe
    from lego.report import MergeReport


@dataclass(frozen=True)
class Factors:
    """One adapted module of one LoRA: the update is ``scale · up @ down``.

    A convolution is flattened: its down (rank, in, kh, kw) becomes (rank, in·kh·kw), its up (out, rank, 1, 1) becomes (out, rank).

    Attributes:
        down: A of the papers, (rank, d_in), fp32.
        up: B of the papers, (d_out, rank), fp32.
        scale: s = alpha/r, or alpha/sqrt(r) with rsLoRA.
        bias: of B, (d_out,), where the LoRA trains one: the module's output gains ``scale · bias``.
        kernel: (kh, kw) of a convolution; empty for a linear module.
        embedding: whether it adapts an embedding, whose weight (tokens, d) is the transpose of ``up @ down``.
    """

    down: Float[Tensor, "rank d_in"]
    up: Float[Tensor, "d_out rank"]
    scale: float = 1.0
    bias: Float[Tensor, " d_out"] | None = None
    kernel: tuple[int, ...] = ()
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Number of units (rows of A)."""
        return self.down.shape[0]

    def folded(self) -> Factors:
        """The same update with the scale folded into both halves, its sign into ``up``; scale 1."""
        if self.scale == 1:
            return self
        root = abs(self.scale) ** 0.5
        bias = None if self.bias is None else self.bias * self.scale
        return replace(
            self, down=self.down * root, up=self.up * (root if self.scale > 0 else -root), scale=1.0, bias=bias
        )

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The dense update s·B·A. For tests and small modules: nothing in this package needs it."""
        return self.scale * (self.up @ self.down)


@dataclass(frozen=True)
class ModuleSpec:
    """What the headers tell about one module, without reading a tensor; the fields are those of `Factors`."""

    rank: int
    d_in: int
    d_out: int
    scale: float
    dtype: str = "F32"
    bias: bool = False
    kernel: tuple[int, ...] = ()
    embedding: bool = False

    @property
    def form(self) -> tuple[int, int, tuple[int, ...], bool]:
        """What sources of one merge have to agree in: d_in, d_out, kernel, embedding."""
        return self.d_in, self.d_out, self.kernel, self.embedding


def module_kind(module: str) -> str:
    """The last part of a module's name, a number with the one before: ``layers.3.q_proj`` → ``q_proj``, ``to_out.0`` as it is."""
    *before, last = module.rsplit(".", 2)
    return f"{before[-1]}.{last}" if before and last.isdigit() else last


def module_layer(module: str) -> int:
    """The first number in a module's name, its layer; −1 when there is none."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return int(found.group(1)) if found else -1


def natural_order(module: str) -> list[tuple[int, int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[._]", module)]


def largest(tensor: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension; NaN where there is one. Two plain reductions are several times faster than a norm."""
    return torch.maximum(tensor.amax(dim), -tensor.amin(dim))


def finite(tensor: Tensor, where: str) -> Tensor:
    """The tensor, when all its values are finite.

    Raises:
        AdapterError: for NaN or infinity.
    """
    # A sum that is finite has only finite terms, and costs a tenth of looking at each of them; huge terms may overflow it.
    if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise AdapterError("holds NaN or infinite values", where, "The file is damaged or its training diverged.")
    return tensor


def check_shapes(factors: Factors, where: str) -> None:
    """Look whether the halves and the bias of a module belong together.

    Raises:
        AdapterError: when they do not, or there is no unit.
    """
    down, up = tuple(factors.down.shape), tuple(factors.up.shape)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
        raise AdapterError(f"down {down} and up {up} are no LoRA", where, "Down is (rank, d_in), up (d_out, rank).")
    if factors.bias is not None and tuple(factors.bias.shape) != up[:1]:
        raise AdapterError(f"a bias {tuple(factors.bias.shape)} does not belong to {up[0]} outputs", where)


class Modules:
    """What follows from the headers of all modules, by name in ``modules``."""

    modules: Mapping[str, ModuleSpec]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks of its modules, ascending."""
        return tuple(sorted({spec.rank for spec in self.modules.values()}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The different kinds of module it adapts (``q_proj`` …), in order of appearance."""
        return tuple(dict.fromkeys(module_kind(module) for module in self.modules))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it adapts, ascending."""
        return tuple(sorted({module_layer(module) for module in self.modules}))


@dataclass(eq=False)
class Adapter(Modules):
    """A LoRA: factors by module name, read from disk one module at a time.

    ``adapter[module]`` reads and returns that module's `Factors`; nothing else is read or kept.

    Attributes:
        name: short name, the folder's unless given.
        modules: what the headers tell about each module, in natural order.
        read: returns the factors of a module.
        base_model: the base the adapter was trained on, as its config names it.
        path: the folder or file it was read from; None for one made in memory.
        weights_file: the file with its weights.
        origin: hub id and commit (``owner/name@commit``) of one that came from the hub.
        format: of the file it was read from, a key of `lego.formats.FORMATS`; a merge is written in its first source's.
        config: other facts of its format that have to survive a merge (``task_type``, ``fan_in_fan_out``).
        card: front matter of its README.md.
        report, recipe: set on merged adapters.
        edits: what `lego.edit.edited` did to its units since it was read.
    """

    name: str
    modules: Mapping[str, ModuleSpec]
    read: Callable[[str], Factors]
    base_model: str | None = None
    path: Path | None = None
    weights_file: Path | None = None
    origin: str | None = None
    format: str = "peft"
    config: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    report: MergeReport | None = None
    recipe: Recipe | None = None
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        if not self.modules:
            raise AdapterError("adapts no module", self.path or self.name, "It holds no LoRA weights.")
        self.modules = {module: self.modules[module] for module in sorted(self.modules, key=natural_order)}

    @classmethod
    def from_factors(cls, name: str, factors: Mapping[str, Factors], **facts: Any) -> Adapter:
        """An adapter held in memory.

        Raises:
            AdapterError: when a module's factors do not belong together.
        """
        for module, f in factors.items():
            check_shapes(f, f"{name}, {module}")
        specs = {
            module: ModuleSpec(
                f.rank, f.down.shape[1], f.up.shape[0], f.scale, "F32", f.bias is not None, f.kernel, f.embedding
            )
            for module, f in factors.items()
        }
        return cls(name, specs, factors.__getitem__, **facts)

    def __getitem__(self, module: str) -> Factors:
        if module not in self.modules:
            raise AdapterError(f"has no module {module!r}", self.path or self.name)
        return self.read(module)

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}, {len(self.modules)} modules, ranks {self.ranks})"

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(spec.rank * (spec.d_in + spec.d_out) for spec in self.modules.values())

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights: of the file's bytes as the hub gives it, or of the factors with their scale for one in memory."""
        digest = hashlib.sha256()
        if self.weights_file is not None:
            with self.weights_file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for module in self.modules:
            factors = self[module]
            digest.update(f"{module}{factors.scale}".encode())
            for tensor in (factors.down, factors.up, factors.bias):
                digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the update: the weights and each module's scale."""
        scales = [(module, spec.rank, spec.scale) for module, spec in self.modules.items()]
        return hashlib.sha256(f"{self.sha256}{scales}".encode()).hexdigest()
