"""The recipe of a session: base, adapters, merges, gates, selections, and what is compared and how, without any weights.

Files that leave the page carry it, an address can hold it. It names adapters by hash and by where anybody finds them (built in, the
hub, what they were merged from); of files it keeps only the name, since what is passed on should not tell its maker's folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from backends import gates, library
from components.compare.gallery import Gallery
from components.session.state import Column, Gating, Pick, Session
from components.work import peek
from lego.merge import VERSION
from lego.recipe import SHA256, Document, Part, Recipe
from lego.unitset import UnitId, UnitSet, indices
from lego.write import RECIPE
from mole.pool import Weighting

Text = Annotated[str, Field(max_length=4000, description="a text")]
Key = Annotated[str, Field(pattern="^[0-9a-f]{12}$", description="the first 12 digits of a hash")]
Weight = Annotated[float, Field(allow_inf_nan=False, description="a number")]
Whole = Annotated[int, Field(ge=0, description="a whole number")]


UnitsOf = Annotated[
    list[tuple[Key, Text, list[Whole]]], Field(max_length=20_000, description="[[key, module, [unit, …]], …]")
]


class BaseOf(Part):
    """The base: what it is called, where it came from, the hash of its weights once it is loaded. A folder's place is not told."""

    id: Text | None = None
    title: Text = ""
    fingerprint: str | None = Field(default=None, pattern=SHA256, description="a SHA-256")


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

    factor: Weight
    units: UnitsOf


class VariantOf(Part):
    """A variant: what it weighs."""

    name: Text
    adapters: list[tuple[Key, Weight]] = Field(default=[], max_length=64, description="[[key, weight], …]")
    muted: UnitsOf = Field(default=[])
    gates: Key | None = None
    masked: list[Text] = Field(default=[], max_length=64, description="a list of keys")
    scaled: list[ScaledOf] = Field(default=[], max_length=64, description="a list of {factor: …, units: […]}")

    @property
    def weighting(self) -> Weighting:
        """The same as the backend takes it."""
        scaled = tuple((unit_set(each.units), each.factor) for each in self.scaled)
        return Weighting(tuple(self.adapters), unit_set(self.muted), self.gates, tuple(self.masked), scaled)


class PickOf(Part):
    """A picked adapter with its weight and its colour."""

    key: Key
    weight: Weight = 1.0
    slot: int = Field(default=0, ge=0, le=64, description="a colour's number")


class DrawingOf(Part):
    """How pictures are drawn."""

    steps: int = Field(description="a whole number")
    guidance: Weight | None = Field(default=None, description="a number")
    scheduler: Text = ""
    negative: Text = ""
    size: tuple[int, int] | None = Field(default=None, description="[width, height]")


class WritingOf(Part):
    """How texts are written."""

    length: int = Field(default=32, ge=1, le=100_000, description="a whole number")
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False, description="a number")
    seed: Whole = 0
    format: Literal["chat", "raw"] = Field(default="chat", description="chat or raw")


class AxesOf(Part):
    """The axes of a grid: what columns and rows show, with the values as they were typed, and the variant that is varied.

    A weight's axis is named ``weight:`` and the adapter's key.
    """

    x: Text = ""
    x_values: Text = ""
    y: Text = ""
    y_values: Text = ""
    subject: VariantOf | None = None


class MadeOf(Part):
    """A merge among the variants: its key, what the visitor called it, its sources' colours."""

    key: Key
    name: Text
    slots: list[Whole] = Field(default=[], max_length=64, description="a list of colours' numbers")


class GatingOf(Part):
    """Gates among the variants, with the masks that are compared."""

    key: Key
    name: Text
    base: Text | None = Field(default=None, description="the base's id, where it is another one")
    masks: list[list[Text]] = Field(default=[], max_length=64, description="a list of lists of keys")


class EditedOf(Part):
    """An edited variant: its name, what it weighs, the units that stay silent, those that count more or less."""

    name: Text
    adapters: list[tuple[Key, Weight]] = Field(default=[], max_length=64, description="[[key, weight], …]")
    muted: UnitsOf = Field(default=[])
    scaled: list[ScaledOf] = Field(default=[], max_length=64, description="a list of {factor: …, units: […]}")


class NamedOf(Part):
    """A selection under a name."""

    name: Text
    units: UnitsOf


class Remembered(Document):
    """A session with what it compares."""

    brickyard: Literal["comparison"] = Field(description="comparison")
    version: Text = VERSION
    base: BaseOf
    adapters: list[AdapterOf] = Field(default=[], max_length=64, description="a list of adapters")
    gates: list[GatesOf] = Field(default=[], max_length=64, description="a list of gates")
    picks: list[PickOf] = Field(default=[], max_length=64, description="a list of picked adapters")
    aside: list[PickOf] = Field(default=[], max_length=64, description="a list of picked adapters")
    merges: list[MadeOf] = Field(default=[], max_length=200, description="a list of merges")
    edited: list[EditedOf] = Field(default=[], max_length=200, description="a list of edited variants")
    gatings: list[GatingOf] = Field(default=[], max_length=64, description="a list of gates among the variants")
    named: list[NamedOf] = Field(default=[], max_length=200, description="a list of selections")
    variants: list[VariantOf] = Field(min_length=1, max_length=96, description="a list of at least one variant")
    prompts: list[Text] = Field(default=[], max_length=16, description="a list of prompts")
    seeds: list[Whole] = Field(min_length=1, max_length=16, description="a list of at least one seed")
    drawing: DrawingOf
    writing: WritingOf = WritingOf()
    axes: AxesOf | None = Field(default=None, description="the axes of a grid")
    judge: Text | None = Field(
        default=None,
        description="the contrastive model that judges pictures, empty for none; the base's usual unless given",
    )


def remember(
    session: Session,
    compared: Sequence[Column],
    prompts: Sequence[str],
    drawing: Mapping[str, object],
    seeds: Sequence[int] = (0,),
    writing: WritingOf | None = None,
    axes: AxesOf | None = None,
    judge: str | None = None,
) -> Remembered:
    """The recipe of a session.

    Args:
        session: what the visitor has chosen.
        compared: the variants that are compared.
        prompts: of the comparison.
        drawing, seeds, writing: how pictures are drawn and texts are written.
        axes: of a grid, where one is compared.
        judge: of pictures, where it is not the base's usual one.
    """
    weightings = [column.weighting for column in compared]
    weightings += [axes.subject.weighting] if axes and axes.subject else []
    edited = [key for each in session.edited for key in each.adapters]
    experts = [key for gating in session.gates for key in gating.experts]
    picked = [pick.key for pick in (*session.picks, *session.aside)]
    merged = [made.key for made in session.merges]
    weighed = [key for weighting in weightings for key, _ in weighting.adapters]
    named = [key for each in session.named for key, _, _ in each.units.parts]
    used = dict.fromkeys((*picked, *session.added, *merged, *edited, *experts, *weighed, *named))
    mixed = dict.fromkeys((*(g.key for g in session.gates), *(w.gates for w in weightings if w.gates)))
    return Remembered(
        brickyard="comparison",
        base=_base(session.base),
        adapters=[_adapter(key) for key in used],
        gates=[GatesOf(key=key, name=gates.entry(key).name) for key in mixed],
        picks=_picks(session.picks),
        aside=_picks(session.aside),
        merges=[MadeOf(key=made.key, name=made.name, slots=list(made.slots)) for made in session.merges],
        edited=[
            EditedOf(name=e.name, adapters=list(e.weights), muted=grouped(e.muted), scaled=_scaled(e.scaled))
            for e in session.edited
        ],
        gatings=[_gating(gating, session.base) for gating in session.gates],
        named=[NamedOf(name=each.name, units=grouped(each.units)) for each in session.named],
        variants=[variant_of(column) for column in compared],
        prompts=list(prompts),
        seeds=list(seeds),
        drawing=DrawingOf.model_validate(dict(drawing)),
        writing=writing or WritingOf(),
        axes=axes,
        judge=None if judge and Path(judge).expanduser().exists() else judge,
    )


def of_gallery(found: Gallery, picks: Iterable[Pick] = ()) -> Remembered:
    """The recipe of a comparison of pictures that no page asked for."""
    told = zip(found.names, found.weightings, strict=True)
    compared = [Column(str(i), name, weighting) for i, (name, weighting) in enumerate(told)]
    session = Session(found.base, tuple(picks))
    return remember(session, compared, found.prompts, dict(found.settings), found.seeds)


def _picks(picks: Iterable[Pick]) -> list[PickOf]:
    return [PickOf(key=pick.key, weight=pick.weight, slot=pick.slot) for pick in picks]


def _gating(gating: Gating, base: str) -> GatingOf:
    other = None if gating.base == base else gating.base
    return GatingOf(key=gating.key, name=gating.name, base=other, masks=[list(mask) for mask in gating.masks])


def grouped(units: Iterable[UnitId]) -> list[tuple[str, str, list[int]]]:
    """Units by adapter and module."""
    return [(key, module, indices(bits)) for key, module, bits in UnitSet.of(units).parts]


def unit_set(given: Iterable[tuple[str, str, list[int]]]) -> UnitSet:
    """The units as they are `grouped`.

    Raises:
        AdapterError: for an index that no unit can have.
    """
    return UnitSet.of((key, module, index) for key, module, own in given for index in own)


def _scaled(given: Iterable[tuple[UnitSet, float]]) -> list[ScaledOf]:
    return [ScaledOf(factor=factor, units=grouped(units)) for units, factor in given]


def _base(base: str) -> BaseOf:
    """A base by where anybody finds it, and by its hash where it is loaded."""
    coming = peek(base)
    if coming is None or not coming.done or coming.error is not None:
        return BaseOf(id=None if Path(base).expanduser().exists() else base, title=Path(base).name)
    loaded = coming.base()
    info, name = loaded.info, None if loaded.info.source == "folder" else loaded.info.id
    if info.source == "hub" and loaded.commit:
        name = f"{info.id.partition('@')[0]}@{loaded.commit}"
    return BaseOf(id=name, title=info.title, fingerprint=loaded.fingerprint)


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


def variant_of(column: Column) -> VariantOf:
    """A variant by what it weighs."""
    weighting = column.weighting
    return VariantOf(
        name=column.name,
        adapters=list(weighting.adapters),
        muted=grouped(weighting.muted),
        gates=weighting.gates,
        masked=list(weighting.masked),
        scaled=_scaled(weighting.scaled),
    )
