"""What a merge method is: one typed function on a `Pool`, registered by a decorator.

A method's parameters are declared once, in its signature. The command line's options, the page's controls, the recipe's schema
and the documentation come from there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor
from torch.nn.functional import pad

from lego.errors import AdapterError
from lego.units import Pool

# The merged factors of the pool's modules: (M, k, d_in) and (M, d_out, k).
Merged = tuple[Float[Tensor, "modules k d_in"], Float[Tensor, "modules d_out k"]]


def check_rank(value: int | str) -> int | str:
    """Accept 16, "16", "2r", "0.5r", "r", "95%" or "all"."""
    text = str(value).strip().lower()
    number = text.rstrip("r%") or "1"
    if text == "all":
        return text
    try:
        fits = 0 < float(number) <= (100 if text.endswith("%") else 1e6)
    except ValueError:
        fits = False
    if not fits or text not in (number, f"{number}r", f"{number}%", "r"):
        fits = False
    if not fits or (text == number and not float(number).is_integer()):
        raise ValueError(
            "give a number of units such as 16, a multiple of the sources' rank such as 2r, a kept energy such as 95%, or all"
        )
    return int(float(number)) if text == number else text


# A rank: a number, a multiple of the sources' rank ("2r"), the least that keeps a share of each module's energy ("95%"), or "all"
# for as many as the sources have together.
Rank = Annotated[int | str, AfterValidator(check_rank)]


def resolve_rank(rank: int | str, pool: Pool, reference: str = "mean") -> int:
    """A `Rank` as a number for this pool, at least 1 and at most the number of units.

    Args:
        rank: as `check_rank` accepts it, but no energy: `Method` has turned that into a number for each module.
        pool: gives r and the upper limit.
        reference: what r means when the sources' ranks differ: their ``mean``, ``max`` or ``min``.
    """
    rank = check_rank(rank)
    if rank == "all":
        return pool.units
    count = rank if isinstance(rank, int) else round(float(rank.removesuffix("r") or 1) * source_rank(pool, reference))
    return max(1, min(count, pool.units))


def rows_by_rank(pool: Pool, share: str) -> dict[int, list[int]]:
    """The pool's modules, as rows, by the least rank that keeps a share of their energy, such as "95%"."""
    ranks = pool.core.keeping(float(share.removesuffix("%")) / 100)
    return {rank: [row for row, found in enumerate(ranks) if found == rank] for rank in set(ranks)}


def source_rank(pool: Pool, reference: str = "mean") -> float:
    """r of the sources in this pool: the mean, largest or smallest of their ranks."""
    ranks = pool.ranks
    return {"mean": sum(ranks) / len(ranks), "max": max(ranks), "min": min(ranks)}[reference]


class Common(BaseModel):
    """The parameters of every method."""

    model_config = ConfigDict(extra="forbid")

    strength: float = Field(
        1.0,
        ge=-10,
        le=10,
        allow_inf_nan=False,
        description="λ, a factor on the whole merged update. It decides as much as the method does.",
    )


Kind = Literal["int", "float", "bool", "choice", "rank"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as the page and the command line need it."""

    name: str
    type: Kind
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        function: takes a `Pool` and the parameters, returns the merged factors.
        title, summary, paper, equations: for people.
        random: whether the seed matters.
        unit_invariant: whether the result ignores the order of the units inside each adapter. Methods that combine A with A and
            B with B do not, although that order means nothing.
        normalised: whether the weights are divided by Σ_j |w_j|.
        schema: pydantic model of the parameters.
    """

    name: str
    title: str
    summary: str
    function: Callable[..., Merged]
    paper: str | None
    equations: str
    random: bool
    unit_invariant: bool
    normalised: bool
    schema: type[Common] = field(repr=False)

    @property
    def parameters(self) -> list[Parameter]:
        """The method's own parameters first, then the common ones."""
        names = [name for name in self.schema.model_fields if name not in Common.model_fields]
        return [describe(name, self.schema) for name in (*names, *Common.model_fields)]

    def validate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters with their values, defaults filled in.

        Raises:
            AdapterError: for an unknown name or a value outside what the parameter takes.
        """
        for parameter in self.parameters:
            if isinstance(given.get(parameter.name), bool) and parameter.type != "bool":
                raise AdapterError(
                    f"parameter {parameter.name}: yes and no are no {parameter.type}", f"method {self.name}"
                )
        try:
            return self.schema.model_validate(dict(given)).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "?"
            if first["type"] == "extra_forbidden":
                known = ", ".join(parameter.name for parameter in self.parameters)
                raise AdapterError(
                    f"has no parameter {name!r}", f"method {self.name}", f"It takes: {known}."
                ) from error
            message = first["msg"].removeprefix("Value error, ")
            raise AdapterError(f"parameter {name}={first['input']!r}: {message}", f"method {self.name}") from error

    def __call__(self, pool: Pool, **parameters: Any) -> Merged:
        """The merged factors of one pool, strength included; parameters as `validate` returns them."""
        own = {name: value for name, value in parameters.items() if name not in Common.model_fields}
        energy = [name for name, value in own.items() if str(value).endswith("%")]
        down, up = self.by_energy(pool, energy[0], own) if energy else self.function(pool, **own)
        return down, up * parameters.get("strength", 1.0)

    def by_energy(self, pool: Pool, name: str, own: dict[str, Any]) -> Merged:
        """Run modules of equal rank together, where the rank is the least that keeps a share of the energy of D."""
        downs: list[Tensor] = [pool.down] * len(pool.modules)
        ups: list[Tensor] = [pool.up] * len(pool.modules)
        for rank, rows in rows_by_rank(pool, own[name]).items():
            for row, down, up in zip(rows, *self.function(pool.rows(rows), **{**own, name: rank}), strict=True):
                downs[row], ups[row] = down, up
        most = max(len(down) for down in downs)
        padded = [
            (pad(d, (0, 0, 0, most - len(d))), pad(u, (0, most - len(d)))) for d, u in zip(downs, ups, strict=True)
        ]
        return torch.stack([down for down, _ in padded]), torch.stack([up for _, up in padded])


def describe(name: str, schema: type[Common]) -> Parameter:
    """One parameter from its pydantic field."""
    info = schema.model_fields[name]
    limits = {
        key: getattr(item, key) for item in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(item, key)
    }
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else None
    plain: dict[Any, Kind] = {int: "int", float: "float", bool: "bool"}
    kind: Kind = "choice" if choices else plain.get(info.annotation, "rank")
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    return Parameter(name, kind, info.default, info.description or "", low, high, choices)


REGISTRY: dict[str, Method] = {}


def merge_method(
    *,
    title: str,
    equations: str,
    paper: str | None = None,
    random: bool = False,
    unit_invariant: bool = False,
    normalised: bool = False,
) -> Callable[[Callable[..., Merged]], Callable[..., Merged]]:
    """Register a function as the merge method of its own name. Its keyword-only arguments are its parameters."""

    def register(function: Callable[..., Merged]) -> Callable[..., Merged]:
        name, doc = function.__name__, inspect.getdoc(function) or ""
        hints = get_type_hints(function, include_extras=True)
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in keywords}
        schema = create_model(f"{name}_parameters", __base__=Common, **fields)
        summary = doc.split("\n\n")[0].replace("\n", " ")
        facts = (title, summary, function, paper, equations, random, unit_invariant, normalised)
        REGISTRY[name] = Method(name, *facts, schema)
        return function

    return register


@cache
def load_methods() -> None:
    """Import every file of `lego.methods`, which registers them."""
    package = importlib.import_module("lego.methods")
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith("_"):
            importlib.import_module(f"lego.methods.{found.name}")


def methods() -> dict[str, Method]:
    """All merge methods by name."""
    load_methods()
    return {name: REGISTRY[name] for name in sorted(REGISTRY)}


def method(name: str) -> Method:
    """One merge method.

    Raises:
        AdapterError: when there is none of that name.
    """
    found = methods()
    if name not in found:
        raise AdapterError(f"there is no merge method {name!r}", None, f"Methods: {', '.join(found)}.")
    return found[name]
