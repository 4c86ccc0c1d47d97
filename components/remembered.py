"""The recipe of a comparison of pictures, as its PNG files carry it: everything needed to draw the same pictures again.

It names adapters by hash and by where anybody finds them (built in, the hub, what they were merged from); of files it keeps
only the name, since a picture that is passed on should not tell its maker's folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from backends import gates, library
from backends.base import BaseInfo
from components.gallery import Gallery
from components.session import Pick
from components.work import loading
from lego.merge import VERSION
from lego.recipe import SHA256, Document, Part, Recipe
from lego.unitset import UnitSet
from lego.write import RECIPE
from mole.pool import Weighting

Text = Annotated[str, Field(max_length=4000, description="a text")]
Key = Annotated[str, Field(pattern="^[0-9a-f]{12}$", description="the first 12 digits of a hash")]
Whole = Annotated[int, Field(ge=0, description="a whole number")]


class BaseOf(Part):
    """The base: what it is called, where it came from, the hash of its weights. A folder's place is not told."""

    id: Text | None = None
    title: Text = ""
    fingerprint: str = Field(pattern=SHA256, description="a SHA-256")


class AdapterOf(Part):
    """An adapter: its key and hash, and where it came from: built in, the hub, a merge, or a file of this name."""

    key: Key
    name: Text
    sha256: str = Field(pattern=SHA256, description="the weights file's SHA-256")
    builtin: bool = False
    hub: Text | None = Field(default=None, description="a hub id with its commit, owner/name@commit")
    file: Text | None = None
    merge: Recipe | None = Field(default=None, description="the merge that made it")

    def __str__(self) -> str:
        where = f"{self.hub}, " if self.hub else f"{self.file}, " if self.file else ""
        return f"{self.name} ({where}SHA-256 {self.sha256[:12]}…)"


class GatesOf(Part):
    """Trained gates."""

    key: Key
    name: Text


class ScaledOf(Part):
    """Units whose weight is multiplied by a factor."""

    factor: float
    units: list[tuple[Key, Text, Whole]] = Field(max_length=200_000, description="[[key, module, unit], …]")


class VariantOf(Part):
    """A variant: what it weighs."""

    name: Text
    adapters: list[tuple[Key, float]] = Field(default=[], max_length=64, description="[[key, weight], …]")
    muted: list[tuple[Key, Text, Whole]] = Field(default=[], max_length=200_000, description="[[key, module, unit], …]")
    gates: Key | None = None
    masked: list[Text] = Field(default=[], max_length=64, description="a list of keys")
    scaled: list[ScaledOf] = Field(default=[], max_length=64, description="a list of {factor: …, units: […]}")

    @property
    def weighting(self) -> Weighting:
        """The same as the backend takes it."""
        scaled = tuple((UnitSet.of(each.units), each.factor) for each in self.scaled)
        return Weighting(tuple(self.adapters), UnitSet.of(self.muted), self.gates, tuple(self.masked), scaled)


class PickOf(Part):
    """A picked adapter with its weight and its colour."""

    key: Key
    weight: float = 1.0
    slot: int = Field(default=0, ge=0, le=64, description="a colour's number")


class DrawingOf(Part):
    """How pictures are drawn."""

    steps: int = Field(description="a whole number")
    guidance: float | None = Field(default=None, description="a number")
    scheduler: Text = ""
    negative: Text = ""
    size: tuple[int, int] | None = Field(default=None, description="[width, height]")


class Remembered(Document):
    """A comparison of pictures."""

    brickyard: Literal["comparison"] = Field(description="comparison")
    version: Text = VERSION
    base: BaseOf
    adapters: list[AdapterOf] = Field(default=[], max_length=64, description="a list of adapters")
    gates: list[GatesOf] = Field(default=[], max_length=64, description="a list of gates")
    picks: list[PickOf] = Field(default=[], max_length=64, description="a list of picked adapters")
    variants: list[VariantOf] = Field(min_length=1, max_length=96, description="a list of at least one variant")
    prompts: list[Text] = Field(min_length=1, max_length=16, description="a list of at least one prompt")
    seeds: list[Whole] = Field(min_length=1, max_length=16, description="a list of at least one seed")
    drawing: DrawingOf


def remember(found: Gallery, picks: Iterable[Pick] = ()) -> Remembered:
    """The recipe of a comparison.

    Args:
        found: with what it was drawn from.
        picks: of the session it was made in.
    """
    base = loading(found.base).base()
    used = dict.fromkeys(key for weighting in found.weightings for key, _ in weighting.adapters)
    mixed = dict.fromkeys(weighting.gates for weighting in found.weightings if weighting.gates)
    return Remembered(
        brickyard="comparison",
        base=_base(base.info, base.fingerprint, base.commit),
        adapters=[_adapter(key) for key in used],
        gates=[GatesOf(key=key, name=gates.entry(key).name) for key in mixed],
        picks=[PickOf(key=pick.key, weight=pick.weight, slot=pick.slot) for pick in picks if pick.key in used],
        variants=[_variant(name, w) for name, w in zip(found.names, found.weightings, strict=True)],
        prompts=list(found.prompts),
        seeds=list(found.seeds),
        drawing=DrawingOf.model_validate(dict(found.settings)),
    )


def _base(info: BaseInfo, fingerprint: str, commit: str | None) -> BaseOf:
    name = None if info.source == "folder" else info.id
    if info.source == "hub" and commit:
        name = f"{info.id.partition('@')[0]}@{commit}"
    return BaseOf(id=name, title=info.title, fingerprint=fingerprint)


def _adapter(key: str) -> AdapterOf:
    entry, adapter = library.entry(key), library.get(key)
    where: dict[str, object] = {"builtin": entry.source == "built-in", "hub": adapter.origin or entry.origin}
    if entry.source == "merge":
        where["merge"] = _told(Recipe.read(entry.path / RECIPE))
    elif entry.source == "folder":
        where["file"] = Path(adapter.weights_file or entry.path).name if entry.path.is_file() else entry.path.name
    return AdapterOf.model_validate({"key": key, "name": entry.title, "sha256": adapter.sha256, **where})


def _told(recipe: Recipe) -> Recipe:
    """A merge's recipe without the folders of the machine it was made on: its sources are told by name, hash and hub id."""
    return recipe.model_copy(
        update={"sources": [source.model_copy(update={"path": None}) for source in recipe.sources]}
    )


def _variant(name: str, weighting: Weighting) -> VariantOf:
    return VariantOf(
        name=name,
        adapters=list(weighting.adapters),
        muted=sorted(weighting.muted),
        gates=weighting.gates,
        masked=list(weighting.masked),
        scaled=[ScaledOf(factor=factor, units=list(units)) for units, factor in weighting.scaled],
    )
