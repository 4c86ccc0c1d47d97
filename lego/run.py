"""Run a recipe: its sources opened and checked, merged, and written as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lego.adapter import Adapter
from lego.errors import AdapterError
from lego.merge import Progress
from lego.recipe import Recipe
from lego.report import MergeReport
from lego.sources import Fetch, open_sources
from lego.write import merge_into


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    folder: Path | None = None,
    fetch: Fetch | None = None,
    device: str = "cpu",
    name: str | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Do what a recipe says.

    Args:
        recipe: the merge.
        out: the folder to make; it must not exist.
        folder: what the recipe's relative paths are relative to; the current one unless given.
        fetch: opens sources from the hub.
        device: where it is computed.
        name: of the merged adapter; the folder's unless given.
        progress: as in `merge`.

    Raises:
        AdapterError: when a source is missing or another than the recipe says, or the merge cannot be made or written.
    """
    if out.exists() or out.is_symlink():  # before minutes of work, not after
        raise AdapterError("exists already", out, "Choose another name or remove it first.")
    adapters = open_sources(recipe.sources, folder or Path(), fetch)
    return merge_opened(recipe, adapters, out, device=device, name=name, progress=progress)


def merge_opened(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    out: Path,
    *,
    device: str = "cpu",
    name: str | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """As `run_recipe`, with its sources opened already.

    Raises:
        AdapterError: when the merge cannot be made or written.
    """
    adapters = with_base(adapters, recipe.base_model)
    return merge_into(
        out,
        adapters,
        method=recipe.method,
        weights=[source.weight for source in recipe.sources],
        seed=recipe.seed,
        name=name or out.name,
        device=device,
        format=recipe.output.format,
        dtype=getattr(torch, recipe.output.dtype),
        progress=progress,
        tuned_on=recipe.tuned_on,
        **recipe.parameters,
    )


def with_base(adapters: Sequence[Adapter], base_model: str | None) -> list[Adapter]:
    """The sources with the recipe's base where none of them names one.

    Raises:
        AdapterError: when they name another.
    """
    named = next((adapter for adapter in adapters if adapter.base_model), None)
    if not base_model or (named and named.base_model == base_model):
        return list(adapters)
    if named:
        raise AdapterError(f"is for {named.base_model}, but the recipe's base_model is {base_model}", named.name)
    return [replace(adapters[0], base_model=base_model), *adapters[1:]]
