"""What one visitor has chosen: a small frozen value, kept in the page's one ``gr.State``.

Tensors, models and files live in process-wide caches keyed by content; a session only names them. Every change makes a
new ``Session`` (``dataclasses.replace``), so two visitors can never write into each other's choices.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from backends.library import Entry
from backends.text import Variant
from lego.unitset import NO_UNITS, UnitId, UnitSet
from mole.gate import BASE
from mole.live import Weighting

MAX_PICKS = 8
"""How many adapters can be picked at once: one distinguishable colour each."""


@dataclass(frozen=True)
class Pick:
    """A picked adapter: its library key, its weight, and the slot of the palette that is its colour in every view."""

    key: str
    weight: float = 1.0
    slot: int = 0


@dataclass(frozen=True)
class Made:
    """A merge of this session: the merged adapter's key, its name, the colour slots of its sources."""

    key: str
    name: str
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Edited:
    """A variant whose units are not all what its weights say: some stay silent, some are multiplied by a factor."""

    name: str
    weights: tuple[tuple[str, float], ...]
    muted: UnitSet = NO_UNITS
    scaled: tuple[tuple[UnitSet, float], ...] = ()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The keys of its adapters."""
        return tuple(key for key, _ in self.weights)

    @property
    def weighting(self) -> Weighting:
        """The same, as the pool takes it."""
        return Weighting(self.weights, self.muted, scaled=self.scaled)


LORA = "lora:"
"""What the id of a variant begins with that is one adapter, before the adapter's key."""
MERGE = "merge:"
"""What that of a merge begins with."""


@dataclass(frozen=True)
class Named:
    """A selection under a name."""

    name: str
    units: UnitSet


@dataclass(frozen=True)
class Selection:
    """The units that the map's views show together. It is kept beside the session: no other tab follows it.

    Attributes:
        units: what is selected; nothing selected leaves everything as it is.
        primary: the unit whose details are shown.
        pinned: another one, beside it.
    """

    units: UnitSet = NO_UNITS
    primary: UnitId | None = None
    pinned: UnitId | None = None

    def of_one(self, unit: UnitId) -> Selection:
        """The selection after a click on a unit: it alone, or as the primary one of what is selected already."""
        return replace(self, units=self.units if unit in self.units else UnitSet.of([unit]), primary=unit)

    def among(self, keys: Collection[str]) -> Selection:
        """What is left of it where only these adapters are picked."""
        kept = UnitSet(tuple(part for part in self.units.parts if part[0] in keys))
        primary, pinned = (unit if unit and unit[0] in keys else None for unit in (self.primary, self.pinned))
        return Selection(kept, primary, pinned)


@dataclass(frozen=True)
class Gating:
    """Trained gates of this session: their key in the library, the base they run on, the LoRAs they mix by key.

    ``masks`` are what the visitor wants to compare besides: each the keys of the LoRAs that are left out.
    """

    key: str
    name: str
    base: str
    experts: tuple[str, ...]
    masks: tuple[tuple[str, ...], ...] = ()

    def weighting(self, masked: tuple[str, ...] = ()) -> Weighting:
        """The weighting of a gated variant."""
        return Weighting(tuple((key, 1.0) for key in self.experts), gates=self.key, masked=masked)


@dataclass(frozen=True)
class Session:
    """Everything one visitor has chosen. Small, frozen, hashable.

    ``aside`` are the picks for bases of the other kind: texts or pictures.
    """

    base: str
    picks: tuple[Pick, ...] = ()
    aside: tuple[Pick, ...] = ()
    added: tuple[str, ...] = ()
    merges: tuple[Made, ...] = ()
    edited: tuple[Edited, ...] = ()
    gates: tuple[Gating, ...] = ()
    named: tuple[Named, ...] = ()

    def pick(self, key: str) -> Pick | None:
        """The pick of this adapter, or None where it is not picked."""
        return next((pick for pick in self.picks if pick.key == key), None)

    def toggle(self, key: str) -> Session:
        """Pick the adapter, or unpick it; a new pick takes the first free colour, one that no merge has where there is such."""
        if self.pick(key):
            return replace(self, picks=tuple(pick for pick in self.picks if pick.key != key))
        used = {pick.slot for pick in self.picks}
        held = {slot for made in self.merges for slot in made.slots}
        free = min(range(MAX_PICKS + 1), key=lambda slot: (slot in used, slot == MAX_PICKS, slot in held, slot))
        return replace(self, picks=(*self.picks, Pick(key, 1.0, free)))

    def weigh(self, key: str, weight: float) -> Session:
        """Give a picked adapter another weight."""
        return replace(self, picks=tuple(replace(p, weight=weight) if p.key == key else p for p in self.picks))

    def add(self, key: str) -> Session:
        """Remember an adapter that this visitor brought along."""
        return self if key in self.added else replace(self, added=(*self.added, key))

    def join(self, made: Made) -> Session:
        """Let a merge join the variants; the same merge joins once, under its newest name."""
        return replace(self, merges=(*(old for old in self.merges if old.key != made.key), made))

    def edit(self, edited: Edited) -> Session:
        """Let an edited variant join the variants, replacing one of the same name."""
        return replace(self, edited=(*(old for old in self.edited if old.name != edited.name), edited))

    def keep(self, named: Named) -> Session:
        """Keep a selection, replacing one of the same name."""
        return replace(self, named=(*(old for old in self.named if old.name != named.name), named))

    def gate(self, gating: Gating) -> Session:
        """Let trained gates join the variants; the same gates join once, under their newest name, with their masks."""
        known = next((old.masks for old in self.gates if old.key == gating.key), ())
        gating = replace(gating, masks=gating.masks or known)
        return replace(self, gates=(*(old for old in self.gates if old.key != gating.key), gating))

    def mask(self, key: str, masked: tuple[str, ...]) -> Session:
        """Let gates without some LoRAs join the variants."""
        return replace(
            self,
            gates=tuple(
                replace(old, masks=tuple(dict.fromkeys((*old.masks, masked)))) if old.key == key else old
                for old in self.gates
            ),
        )

    def slots(self, keys: tuple[str, ...]) -> tuple[int, ...]:
        """The colours of those of some adapters that are picked."""
        return tuple(pick.slot for key in keys if (pick := self.pick(key)))

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """The picked adapters with their weights, in the order of picking."""
        return tuple((pick.key, pick.weight) for pick in self.picks)


@dataclass(frozen=True)
class Column:
    """One variant as the page shows it: a stable id, its name, what it weighs, and the colour slots it is made of."""

    id: str
    name: str
    weighting: Weighting
    slots: tuple[int, ...] = ()

    @property
    def variant(self) -> Variant:
        """The same, as the backend runs it."""
        return Variant(self.name, self.weighting)


def columns(session: Session, entries: dict[str, Entry]) -> list[Column]:
    """Every variant of a session: the base, each picked LoRA alone, their exact sum and average, merges, edited ones, gates."""
    picks = [pick for pick in session.picks if pick.key in entries]
    slots = tuple(pick.slot for pick in picks)
    result = [Column("base", "Base", Weighting(()))]
    result += [Column(LORA + p.key, entries[p.key].title, Weighting(((p.key, 1.0),)), (p.slot,)) for p in picks]
    if len(picks) > 1:
        total = tuple((pick.key, pick.weight) for pick in picks)
        result += [Column("sum", "Exact sum", Weighting(total), slots)]
        if size := sum(abs(weight) for _, weight in total):
            mean = tuple((key, weight / size) for key, weight in total)
            result += [Column("average", "Average", Weighting(mean), slots)]
    result += [Column(f"{MERGE}{m.key}", m.name, Weighting(((m.key, 1.0),)), m.slots) for m in session.merges]
    result += [Column(f"edited:{e.name}", e.name, e.weighting, session.slots(e.adapters)) for e in session.edited]
    result += [
        column for gating in session.gates if gating.base == session.base for column in gated(session, gating, entries)
    ]
    return distinct(result)


def gated(session: Session, gating: Gating, entries: dict[str, Entry]) -> list[Column]:
    """Trained gates as variants: with all their LoRAs, then with each mask that was chosen."""
    found = [Column(f"gates:{gating.key}", gating.name, gating.weighting(), session.slots(gating.experts))]
    for masked in gating.masks:
        kept = tuple(key for key in gating.experts if key not in masked)
        name = f"{gating.name} {without(session, masked, entries)}"
        place = f"gates:{gating.key}:{','.join(masked)}"
        found.append(Column(place, name, gating.weighting(masked), session.slots(kept)))
    return found


def without(session: Session, masked: tuple[str, ...], entries: dict[str, Entry]) -> str:
    """What a mask leaves out, for people."""
    return "without " + " and ".join(expert_title(session, key, entries) for key in masked)


def expert_title(session: Session, key: str, entries: dict[str, Entry]) -> str:
    """What the visitor calls an expert of gates: a LoRA, or the base."""
    return "the base" if key == BASE else title_of(session, entries[key])


def title_of(session: Session, entry: Entry) -> str:
    """What the visitor calls an adapter: the name of their merge, or its own title."""
    return next((made.name for made in session.merges if made.key == entry.key), entry.title)


def distinct(found: list[Column]) -> list[Column]:
    """The same columns with names that differ, so that a column can be told by its name."""
    seen: dict[str, int] = {}
    result = []
    for column in found:
        seen[column.name] = seen.get(column.name, 0) + 1
        count = seen[column.name]
        result.append(column if count == 1 else replace(column, name=f"{column.name} ({count})"))
    return result
