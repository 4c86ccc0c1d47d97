"""The named endpoints for programs (``gradio_client``): JSON in, JSON out. Everything that comes in is checked."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

import lego
from backends import bases, library
from backends.bases import TextBase
from backends.library import Entry
from backends.text import generate
from components import kinds
from components.compare import comparison, export
from components.compare import tab as compare
from components.endpoints import gates as gate_endpoints
from components.library.shelf import builtin, checked_base, local, named
from components.map import maps
from components.merge import making
from components.messages import told
from components.session.state import Column, Weighting
from components.work import loading
from lego import AdapterError
from lego.inspect import inspect as facts_of

MOST_ADAPTERS = 16


@told
def adapters() -> list[dict]:
    """The built-in adapters: key, name, title, task, ranks, alpha, targets, size in bytes, base model and card of each."""
    return [_described(entry) for kind in (kinds.TEXT, kinds.IMAGE) for entry in builtin(kind)]


def _described(entry: Entry) -> dict[str, Any]:
    names = ("key", "name", "title", "source", "task", "alpha", "size_bytes", "base_model")
    return {name: getattr(entry, name) for name in names} | {
        "ranks": list(entry.ranks),
        "targets": list(entry.targets),
        "card": entry.card,
    }


@told
def inspect(adapter: str) -> dict:
    """What an adapter is: ranks, kinds, layers, parameters, hash, card, and every module with its shape.

    Args:
        adapter: a key or name from /adapters, a key from /merge; on your own machine also the path of a folder.
    """
    if local() and isinstance(adapter, str) and "/" in adapter:
        return facts_of(lego.read_adapter(adapter))
    entry = named(adapter)
    return {**facts_of(library.get(entry.key)), "key": entry.key, "path": None}


def _weighted(given: list[str], weights: list[float] | None) -> tuple[tuple[str, float], ...]:
    if not isinstance(given, list) or not given or len(given) > MOST_ADAPTERS:
        raise AdapterError(f"adapters must be a list of 1 to {MOST_ADAPTERS} names")
    found = [1.0] * len(given) if weights is None else weights
    if not isinstance(found, list) or len(found) != len(given):
        raise AdapterError(f"{len(given)} adapters need {len(given)} weights")
    return tuple((named(name).key, _number("weight", weight)) for name, weight in zip(given, found, strict=True))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{name} must be a number, not {str(value)[:40]!r}")
    return float(value)


@told
def unit_map(
    adapters: list[str], where: str, k: int | str = "2r", weights: list[float] | None = None, projection: str = "pca"
) -> dict:
    """The units of some adapters in the plane, with their clusters: one list entry a unit.

    Args:
        adapters: keys or names.
        where: a module's name, or a kind of module such as "q_proj".
        k: clusters in each module: a number, or a multiple of the mean rank such as "2r".
        weights: of the adapters, 1 each unless given.
        projection: "pca" or "umap" (the first UMAP takes half a minute).
    """
    if projection not in ("pca", "umap"):
        raise AdapterError(f"there is no projection {str(projection)[:40]!r}", None, "Take pca or umap.")
    seen = maps.mapped(_weighted(adapters, weights), str(where))
    units, xy = seen.units, seen.pca if projection == "pca" else seen.umap.result()
    return {
        "adapters": list(units.adapters),
        "modules": list(units.modules),
        "units": {
            "x": xy[:, 0].tolist(),
            "y": xy[:, 1].tolist(),
            "adapter": units.adapter.tolist(),
            "module": units.module.tolist(),
            "layer": units.layer.tolist(),
            "rank_index": units.rank_index.tolist(),
            "norm": units.norm.tolist(),
            "cluster": units.clusters(_clusters(k)).tolist(),
        },
        "shown": len(units),
        "total": seen.total,
    }


def _clusters(k: Any) -> int | str:
    try:
        return lego.registry.check_rank(k)
    except ValueError as error:
        raise AdapterError(f"k={str(k)[:40]!r}: {error}") from error


@told
def merge(
    adapters: list[str],
    method: str = "lego",
    weights: list[float] | None = None,
    parameters: dict | None = None,
    seed: int = 0,
    name: str = "",
) -> dict:
    """Merge adapters; gives the merged adapter's key (for /compare and /inspect), its report, its recipe and a zip of its files.

    Args:
        adapters: keys or names.
        method: one of `python -m lego methods`.
        weights: of the adapters, 1 each unless given.
        parameters: of the method, by name.
        seed: of everything random.
        name: for the files.
    """
    chosen = lego.method(str(method)).validate(parameters or {})
    entry = making.make(_weighted(adapters, weights), str(method), chosen, int(_number("seed", seed)), str(name))
    file = export.adapter_zip(entry.key, str(name) or entry.title)
    recipe = (entry.path / "recipe.yaml").read_text(encoding="utf-8")
    report = making.report_of(entry.key).model_dump(mode="json")
    download = {"path": str(file), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
    return {"key": entry.key, "report": report, "recipe": recipe, "file": download}


@told
def compare_variants(
    variants: list[dict],
    prompts: list[str],
    base: str = "",
    length: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
) -> dict:
    """Let several variants of a base answer the same prompts, in one batch.

    Args:
        variants: each {"name": …, "adapters": {key or name: weight}}; no adapters is the base alone. Gates with their own LoRAs
            are {"name": …, "gates": key or name, "masked": [LoRAs to leave out]}, for example
            {"name": "without sentiment", "gates": "three-tasks", "masked": ["sentiment"]}.
        prompts: the prompts.
        base: the built-in model unless given.
        length: most new tokens.
        temperature: 0 takes the likeliest token.
        seed: of the sampling, shared by all variants.
        chat: put each prompt into the model's chat template.
    """
    prompts = checked_prompts(prompts)
    columns = columns_of(variants, len(prompts))
    numbers = [_number(*pair) for pair in (("length", length), ("temperature", temperature), ("seed", seed))]
    settings = compare.sampling(*numbers, "chat" if chat else "raw")
    base_id = checked_base(base) if base else bases.catalogue()[0].id
    found, loaded = comparison.begin(base_id, columns, prompts, compare.settings_of(settings)), loading(base_id).base()
    if not isinstance(loaded, TextBase):
        raise AdapterError("draws pictures", base_id, "Call /draw.")
    for grid in generate(loaded, [column.variant for column in columns], prompts, settings):
        found = found.filled(grid)
    return found.data()


def checked_prompts(prompts: Any) -> list[str]:
    """The prompts as a caller gives them.

    Raises:
        AdapterError: when they are no texts, too many, or one is too long.
    """
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise AdapterError("prompts must be a list of texts")
    compare.check_prompts(prompts)
    return prompts


def columns_of(variants: Any, prompts: int) -> list[Column]:
    """The variants as a caller names them.

    Raises:
        AdapterError: naming what is wrong with one, or when there are too many.
    """
    if not isinstance(variants, list) or not variants or not all(isinstance(v, dict) for v in variants):
        raise AdapterError('variants must be a list of {"name": …, "adapters": {…}}')
    if len(variants) * prompts > compare.MOST_ROWS:
        raise AdapterError(
            f"{len(variants)} variants × {prompts} prompts are too many", None, f"One run takes {compare.MOST_ROWS}."
        )
    columns = []
    for i, variant in enumerate(variants):
        weighting = _weighting(variant, f"variant {i}")
        name = variant.get("name") or (f"variant {i}" if weighting.adapters else "base")
        columns.append(Column(str(i), str(name)[:80], weighting))
    return columns


def _weighting(variant: dict[str, Any], where: str) -> Weighting:
    weights = variant.get("adapters") or {}
    if not isinstance(weights, dict):
        raise AdapterError("a variant's adapters must be {name: weight}", where)
    if gates := variant.get("gates"):
        if weights:
            raise AdapterError("a variant has adapters or gates, not both", where)
        return gate_endpoints.gated(gates, variant.get("masked"))
    return Weighting(tuple((named(name).key, _number("weight", weight)) for name, weight in weights.items()))


def register() -> None:
    """Make the endpoints; call inside the page's Blocks."""
    free: dict[str, Any] = {"concurrency_limit": 4}
    gr.api(adapters, api_name="adapters", **free)
    gr.api(inspect, api_name="inspect", **free)
    gr.api(unit_map, api_name="unit_map", **free)
    gr.api(merge, api_name="merge", concurrency_limit=2, concurrency_id="merge")
    gr.api(compare_variants, api_name="compare", concurrency_limit=1, concurrency_id="model")
    gate_endpoints.register()
