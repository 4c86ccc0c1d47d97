"""What one column of a comparison is made of, before anything is merged or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lego
from backends import library
from backends.library import Entry
from components.session.state import Column, Session
from lego import AdapterError
from lego.recipe import Recipe
from lego.write import RECIPE
from mole.pool import Weighting


@dataclass(frozen=True)
class Merging:
    """A merge as `making.make` takes it: sources by library key, method, all its parameters, seed."""

    weights: tuple[tuple[str, float], ...]
    method: str
    parameters: tuple[tuple[str, Any], ...]
    seed: int = 0

    @classmethod
    def of(
        cls, weights: tuple[tuple[str, float], ...], method: str, given: Mapping[str, Any], seed: int = 0
    ) -> Merging:
        """With the method's defaults for what is not given.

        Raises:
            AdapterError: for a parameter outside what the method takes.
        """
        return cls(weights, method, tuple(lego.method(method).validate(given).items()), seed)

    def varied(self, **changed: Any) -> Merging:
        """With another value of a parameter."""
        return Merging.of(self.weights, self.method, {**dict(self.parameters), **changed}, self.seed)


@dataclass(frozen=True)
class Cell:
    """What decides the answers of one column.

    Attributes:
        weighting: what it weighs, unless something is to be merged first.
        merging: what is to be merged first; None where nothing is.
        origin: how the weighting's one adapter was merged; None where it is none, or its sources are not here.
        factor: on all weights.
        settings: of the run, where they differ from the page's: (name, value).
        id, name: of the variant it began as.
        slots: colours.
    """

    weighting: Weighting
    merging: Merging | None = None
    origin: Merging | None = None
    factor: float = 1.0
    settings: tuple[tuple[str, Any], ...] = ()
    id: str = ""
    name: str = ""
    slots: tuple[int, ...] = ()

    def source(self, session: Session) -> Merging:
        """The merge to vary: how it was made; of what was not merged, LEGO with its defaults on the same adapters or the picks.

        Raises:
            AdapterError: when there is nothing to merge.
        """
        if found := self.merging or self.origin:
            return found
        if self.weighting.gates or self.weighting.factors:
            what = "gates decide its weights" if self.weighting.gates else "some of its bricks are muted or scaled"
            raise AdapterError(f"cannot be merged: {what}", self.name, "Choose a LoRA, a sum or a merge.")
        weights = self.weighting.adapters or session.weights
        if not weights:
            raise AdapterError("there is nothing to merge", self.name, "Pick adapters in the Library first.")
        return Merging.of(weights, "lego", {})

    def merged(self, merging: Merging) -> Cell:
        """The same, merged like this; as it was where that is how it was made."""
        return replace(self, merging=None if merging == self.origin else merging)

    def weighed(self, key: str, weight: float) -> Cell:
        """The same with another weight of one adapter; merged again where the adapter is a source of its merge."""
        found = self.merging or self.origin
        if found and key in dict(found.weights):
            weights = tuple((k, weight if k == key else w) for k, w in found.weights)
            return self.merged(replace(found, weights=weights))
        adapters = tuple((k, weight if k == key else w) for k, w in self.weighting.adapters)
        return replace(self, weighting=replace(self.weighting, adapters=adapters))

    def resolved(self, made: Mapping[Merging, str]) -> Weighting:
        """What it weighs, once its merge is in the library under a key."""
        if self.merging is not None and self.merging not in made:
            return Weighting()
        found = self.weighting if self.merging is None else Weighting(((made[self.merging], 1.0),))
        return replace(found, adapters=tuple((key, weight * self.factor) for key, weight in found.adapters))

    def decides(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        """What tells it from another cell: a factor on nothing is none, and greedy texts have no seed."""
        weighs = self.merging or replace(
            self.weighting, adapters=tuple((key, weight * self.factor) for key, weight in self.weighting.adapters)
        )
        own = {**settings, **dict(self.settings)}
        if own.get("temperature") == 0:
            own.pop("seed", None)
        return weighs, self.factor if self.merging else 1.0, tuple(sorted(own.items(), key=lambda item: item[0]))


def cell_of(column: Column, entries: Mapping[str, Entry]) -> Cell:
    """A session's variant as a cell, with how it was merged where that is known and its sources are here."""
    origin = None
    weights = column.weighting.adapters
    if len(weights) == 1 and entries[weights[0][0]].source == "merge":
        origin = origin_of(entries[weights[0][0]], entries)
    return Cell(column.weighting, origin=origin, id=column.id, name=column.name, slots=column.slots)


def origin_of(entry: Entry, entries: Mapping[str, Entry]) -> Merging | None:
    """How a merge of the library was made; None where a source is not among the entries, or has weights by module."""
    recipe = Recipe.read(entry.path / RECIPE)
    keys = {library.get(key).sha256: key for key in entries}
    weights = [(keys.get(source.sha256 or ""), source.weight) for source in recipe.sources]
    if any(key is None or isinstance(weight, dict) for key, weight in weights):
        return None
    given = tuple((str(key), float(weight)) for key, weight in weights)  # type: ignore[arg-type]
    return Merging.of(given, recipe.method, recipe.parameters, recipe.seed)
