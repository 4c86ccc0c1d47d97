"""The sources of a recipe as open adapters: found by path or hub id, and what the recipe says they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lego.adapter import Adapter
from lego.edit import Edit, edited
from lego.errors import AdapterError
from lego.recipe import Source

# Gives the adapter of a hub id at a revision (or the newest), its ``origin`` set. This package knows no hub: the caller brings one.
Fetch = Callable[[str, str | None], Adapter]


def open_sources(sources: Sequence[Source], folder: Path, fetch: Fetch | None = None) -> list[Adapter]:
    """Open every source.

    Args:
        sources: of a recipe.
        folder: what relative paths are relative to, the recipe file's.
        fetch: for those from the hub.

    Raises:
        AdapterError: when one is missing, cannot be merged, or is not the one whose hash the recipe gives.
    """
    return [checked(open_source(source, folder, fetch), source) for source in sources]


def open_source(source: Source, folder: Path, fetch: Fetch | None = None) -> Adapter:
    """Open one source, whatever its hash is, and do to its units what the recipe says.

    Raises:
        AdapterError: when it is missing, cannot be merged, or lacks units that are to be edited.
    """
    from lego import read_adapter

    if source.hub:
        if fetch is None:
            raise AdapterError("comes from the hub, which nothing here can ask", source.hub, "Download it first.")
        adapter = fetch(source.hub, source.revision)
    elif source.path:
        # Absolute, so that the recipe of what is made finds it again from anywhere.
        adapter = read_adapter(os.path.abspath(folder / Path(source.path).expanduser()))
    else:
        raise AdapterError("has neither a path nor a hub id", source, "Say where it is.")
    return with_edits(replace(adapter, name=source.name) if source.name else adapter, source)


def with_edits(adapter: Adapter, source: Source) -> Adapter:
    """The adapter after the edits that a recipe names.

    Raises:
        AdapterError: as `lego.edit.edited`.
    """
    return edited(adapter, [Edit(each.factor, each.units) for each in source.edits or ()])


def checked(adapter: Adapter, source: Source) -> Adapter:
    """The adapter, when it is the one that the recipe means.

    Raises:
        AdapterError: with both hashes when it is another.
    """
    if changed := difference(adapter, source):
        raise AdapterError(changed, source, "Take the file that was meant, or leave sha256 out of the recipe.")
    return adapter


def difference(adapter: Adapter, source: Source) -> str | None:
    """How the adapter is not what the recipe says; None when it is, or the recipe does not say."""
    if source.sha256 is None or source.sha256 == adapter.sha256:  # nothing is hashed without need
        return None
    return f"has changed: its weights have the SHA-256 {adapter.sha256}, the recipe says {source.sha256}"
