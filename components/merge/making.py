"""Merges as the page makes them: from library keys to a library entry that holds exactly what is downloaded."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import monotonic
from typing import Any

import torch

import lego
from backends import library
from backends.library import Entry
from components import paces
from components.session.state import Made
from lego import AdapterError, MergeReport
from lego.edit import Edit, edited

NAME_LIMIT = 60


def make(
    weights: Sequence[tuple[str, float]],
    method: str,
    parameters: dict[str, Any],
    seed: int,
    name: str,
    progress: Callable[[int, int], None] | None = None,
    edits: Mapping[str, Sequence[Edit]] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Entry:
    """Merge adapters of the library and put the result there.

    Args:
        weights: (library key, weight) of each source.
        method, parameters, seed: as `lego.merge` takes them.
        name: for the files; the method's title where it is empty.
        progress: called with (modules done, modules in all); may raise to stop.
        edits: what is done to the units of some of the sources before, by key.
        dtype: of the weights on disk.

    Raises:
        AdapterError: when the sources or parameters cannot be used together.
    """
    sources, start = [edited(library.get(key), (edits or {}).get(key, ())) for key, _ in weights], monotonic()
    entry = library.merge(
        sources,
        slug(name) or slug(title_of(method, parameters)),
        method=method,
        weights=[weight for _, weight in weights],
        seed=seed,
        progress=progress,
        dtype=dtype,
        **parameters,
    )
    paces.note(paces.MERGED, "", sum(source.parameters for source in sources), monotonic() - start)
    return entry


def title_of(method: str, parameters: dict[str, Any]) -> str:
    """A short name for a merge: its method, its rank where it has one, its strength where it is not 1."""
    chosen = lego.method(method)
    words = [chosen.title, *(f"{p.name}={parameters[p.name]}" for p in chosen.parameters if p.type == "rank")]
    words += [f"×{parameters['strength']:g}"] if parameters.get("strength", 1) != 1 else []
    return " ".join(words)


def slug(name: str) -> str:
    """The name as a file may be called: letters, digits, dot, dash and underscore; empty where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:NAME_LIMIT]


_first_lock = threading.Lock()


@lru_cache(maxsize=8)
def _first(weights: tuple[tuple[str, float], ...]) -> Entry:
    return make(weights, "lego", lego.method("lego").validate({}), 0, "")


def first(weights: tuple[tuple[str, float], ...], slots: tuple[int, ...]) -> Made:
    """The LEGO merge, with its defaults, that a page opens with; made once in the process for the same picks."""
    with _first_lock:
        entry = _first(weights)
    return Made(entry.key, title_of("lego", lego.method("lego").validate({})), slots)


@lru_cache(maxsize=64)
def report_of(key: str) -> MergeReport:
    """The report of a merge in the library.

    Raises:
        AdapterError: when the adapter is not a merge of this app.
    """
    adapter = library.get(key)
    if adapter.report is not None:
        return adapter.report
    file = adapter.path / "report.json" if adapter.path else None
    if file is None or not file.is_file():
        raise AdapterError("has no merge report", adapter.name, "It was not made here.")
    return MergeReport.model_validate_json(file.read_text(encoding="utf-8"))
