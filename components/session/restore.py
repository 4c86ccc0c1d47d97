"""A session from a file or an address that carries its recipe: everything it names found again, or told exactly what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from backends import bases, library
from backends.bases import TextBase
from backends.hub import Progress
from backends.image import Drawing
from components import kinds
from components.library.shelf import as_gating, checked_base, known, known_gates, shelf
from components.merge import making
from components.session.remembered import AdapterOf, AxesOf, BaseOf, PickOf, Remembered, VariantOf, WritingOf, unit_set
from components.session.state import MAX_PICKS, Edited, Gating, Made, Named, Pick, Session, columns
from components.work import loading, peek
from lego import AdapterError
from lego.edit import Edit
from lego.recipe import Recipe
from lego.unitset import UnitId, UnitSet
from mole.pool import Weighting

DAMAGED = "Its recipe is damaged, or was made by another version."
HERE = "This recipe"


@dataclass(frozen=True)
class Restored:
    """What a recipe brought back.

    Attributes:
        session: with its base, adapters, merges, edited variants and gates.
        chosen: ids of the variants that were compared.
        prompts: as they were given.
        drawing: how pictures were drawn.
        writing: how texts were written.
        axes: of the grid that was compared; None where there was none.
        subject: id of the variant that they vary.
        notes: what is not quite as it was.
    """

    session: Session
    chosen: tuple[str, ...]
    prompts: tuple[str, ...]
    drawing: Drawing
    writing: WritingOf
    axes: AxesOf | None = None
    subject: str = ""
    notes: tuple[str, ...] = ()


def base_of(wanted: BaseOf) -> str:
    """The id under which the base is found here; nothing is loaded.

    Raises:
        AdapterError: when it came from a folder, and no base that is loaded is the same.
    """
    for info in bases.catalogue():
        if info.id == wanted.id or (info.ready and wanted.fingerprint and _fingerprint(info.id) == wanted.fingerprint):
            return info.id
    if wanted.id is None or "/" not in wanted.id:
        what = f"was made with the base {wanted.title!r}, which came from a folder (SHA-256 {(wanted.fingerprint or '?')[:12]}…)"
        raise AdapterError(what, HERE, "Choose that base in the Library, then open the recipe again.")
    return checked_base(wanted.id)


def _fingerprint(base: str) -> str | None:
    """Of a base that is in memory, whatever it is called; others are not loaded to be asked."""
    coming = peek(base)
    return coming.base().fingerprint if coming and coming.done and coming.error is None else None


def restore(session: Session, wanted: Remembered, base: str, progress: Progress | None = None) -> Restored:
    """The comparison as it was.

    Args:
        session: of who opened the recipe.
        wanted: the recipe.
        base: from `base_of`, loaded.
        progress: is told what is fetched or merged again, and the fraction done; may raise to stop.

    Raises:
        AdapterError: naming every adapter and every gates that are missing.
    """
    loaded, notes = loading(base).base(), []
    if wanted.base.fingerprint not in (None, loaded.fingerprint):
        notes.append(f"{loaded.info.title} is not quite the base of the recipe: its weights have changed since.")
    keys, missing = find(session, wanted.adapters, progress)
    missing += [f"the gates {each.name} ({each.key})" for each in wanted.gates if not _there(each.key)]
    if missing:
        fix = "Add them in the Library (gates on the Gate tab), then open the recipe again."
        raise AdapterError(f"needs what is not here: {', '.join(missing)}", HERE, fix)
    notes += [
        f"{each.name} was merged again and differs in its last digits."
        for each in wanted.adapters
        if each.key != keys[each.key]
    ]
    made = joined(replace(session, base=base), wanted, keys)
    drawing = Drawing(seeds=tuple(wanted.seeds), **wanted.drawing.model_dump())
    if drawing.guidance is None and not isinstance(loaded, TextBase):
        drawing = replace(drawing, guidance=loaded.guidance)
    ids, axes = chosen(made, wanted.variants, keys), wanted.axes and varied(wanted.axes, keys)
    subject = chosen(made, [axes.subject], keys)[0] if axes and axes.subject else ""
    return Restored(made, ids, tuple(wanted.prompts), drawing, wanted.writing, axes, subject, tuple(notes))


def varied(axes: AxesOf, keys: Mapping[str, str]) -> AxesOf:
    """The same axes; those of an adapter's weight under the key by which it is found here."""

    def here(name: str) -> str:
        what, colon, key = name.partition(":")
        return f"{what}{colon}{keys.get(key, key)}"

    return axes.model_copy(update={"x": here(axes.x), "y": here(axes.y)})


def _there(key: str) -> bool:
    try:
        known_gates(key)
    except AdapterError:
        return False
    return True


def find(
    session: Session, wanted: list[AdapterOf], progress: Progress | None = None
) -> tuple[dict[str, str], list[str]]:
    """The library's keys of what a recipe names, by the keys it names them by, and what is missing, for people."""
    keys, missing = {}, []
    for each in wanted:
        try:
            keys[each.key] = _key_of(session, each, progress)
        except AdapterError as error:
            missing.append(f"{each}" + (f": {error}" if each.hub or each.merge else ""))
    return keys, missing


def _key_of(session: Session, wanted: AdapterOf, progress: Progress | None) -> str:
    shelf(session)  # the built-in ones are known from here on
    try:
        return known(wanted.key).key
    except AdapterError:
        if wanted.hub:
            return _from_hub(wanted.hub, wanted.key, progress)
        if wanted.merge:
            return again(session, wanted.merge, wanted.name, progress)
        raise


def _from_hub(hub: str, key: str | None, progress: Progress | None) -> str:
    name, _, commit = hub.partition("@")
    found = library.add_hub(name, commit or None, progress=progress).key
    if key is not None and found != key:
        raise AdapterError("has changed on the hub", hub)
    return found


def again(session: Session, recipe: Recipe, name: str, progress: Progress | None = None) -> str:
    """Merge again what a recipe says was merged.

    Raises:
        AdapterError: when a source is missing.
    """
    by_hash = {library.get(key).sha256: key for key in shelf(session)}
    weights, missing, edits = [], [], {}
    for source in recipe.sources:
        key = by_hash.get(source.sha256 or "")
        if key is None and source.hub:
            key = _from_hub(f"{source.hub}@{source.revision or ''}", None, progress)
        if key is None:
            missing.append(f"{source.name} (SHA-256 {(source.sha256 or '')[:12]}…)")
        else:
            weights.append((key, source.weight))
            edits[key] = [Edit(each.factor, each.units) for each in source.edits or ()]
    if missing:
        raise AdapterError(f"it was merged from {', '.join(missing)}")
    dtype = getattr(torch, recipe.output.dtype)

    def tell(done: int, total: int) -> None:
        if progress:
            progress(f"Merging {name} again, {done} of {total} modules", done / total)

    given = weights, recipe.method, recipe.parameters, recipe.seed, name
    return making.make(*given, progress=tell, edits=edits, dtype=dtype).key


def joined(session: Session, wanted: Remembered, keys: Mapping[str, str]) -> Session:
    """The session with everything that the recipe names: on the shelf, picked, aside, merged, edited, gated, kept under a name.

    Picks for bases of the other kind stay aside where the recipe says nothing about them.
    """
    kind = kinds.of_base(session.base)
    others = tuple(pick for pick in (*session.picks, *session.aside) if not kinds.suits(pick.key, kind))
    aside = tuple(_pick(each, keys) for each in wanted.aside if each.key in keys) or others
    session = replace(session, picks=(), aside=aside)
    for key in dict.fromkeys(keys.values()):
        session = session.add(key)
    merged = {keys[each.key] for each in wanted.adapters if each.merge is not None}
    for pick in _picks(wanted, keys, merged):
        session = session if session.pick(pick.key) else replace(session, picks=(*session.picks, pick))
    session = replace(session, picks=session.picks[:MAX_PICKS])
    for merge in wanted.merges:
        session = session.join(Made(_named(merge.key, keys), merge.name, tuple(merge.slots)))
    for each in wanted.edited:
        weights = tuple((_named(key, keys), weight) for key, weight in each.adapters)
        scaled = tuple((renamed(unit_set(part.units), keys), part.factor) for part in each.scaled)
        session = session.edit(Edited(each.name, weights, renamed(unit_set(each.muted), keys), scaled))
    for kept in wanted.named:
        session = session.keep(Named(kept.name, renamed(unit_set(kept.units), keys)))
    for gating in wanted.gatings:
        found = as_gating(known_gates(gating.key), gating.base or session.base, gating.name)
        session = session.gate(replace(found, masks=tuple(tuple(keys.get(k, k) for k in m) for m in gating.masks)))
    for variant in wanted.variants:
        w = mapped(variant.weighting, keys)
        if w.gates:
            session = _gated(session, w, variant.name)
        elif len(w.adapters) == 1 and w.adapters[0][0] in merged and w.adapters[0][1] == 1 and not w.factors:
            here = {made.key for made in session.merges}
            session = session if w.adapters[0][0] in here else session.join(Made(w.adapters[0][0], variant.name))
        elif w not in [column.weighting for column in columns(session, shelf(session))]:
            session = session.edit(Edited(variant.name, w.adapters, UnitSet.of(w.muted), w.scaled))
    return session


def _named(key: str, keys: Mapping[str, str]) -> str:
    if key not in keys:
        raise AdapterError(f"uses {key}, which it does not name", HERE, DAMAGED)
    return keys[key]


def _pick(each: PickOf, keys: Mapping[str, str]) -> Pick:
    return Pick(keys[each.key], each.weight, each.slot)


def _picks(wanted: Remembered, keys: Mapping[str, str], merged: set[str]) -> list[Pick]:
    """The picked adapters, and those that stand alone as a variant."""
    alone = [
        v.adapters[0][0] for v in wanted.variants if len(v.adapters) == 1 and not v.gates and not v.weighting.factors
    ]
    given = [*wanted.picks, *(PickOf(key=key, slot=slot) for slot, key in enumerate(dict.fromkeys(alone)))]
    return [_pick(each, keys) for each in given if keys.get(each.key, "") not in (*merged, "")]


def _gated(session: Session, weighting: Weighting, name: str) -> Session:
    mine = next((gating for gating in session.gates if gating.key == weighting.gates), None)
    if mine is None:
        found = known_gates(str(weighting.gates))
        mine = as_gating(found, session.base, name if not weighting.masked else "")
        session = session.gate(mine)
    elif not weighting.masked:
        session = session.gate(Gating(mine.key, name, mine.base, mine.experts))
    return session.mask(mine.key, weighting.masked) if weighting.masked else session


def mapped(weighting: Weighting, keys: Mapping[str, str]) -> Weighting:
    """The same weighting with the keys under which its adapters are found here.

    Raises:
        AdapterError: when it weighs an adapter that the recipe does not name.
    """
    names = [key for key, _ in weighting.adapters]
    names += [key for units, _ in weighting.factors for key, _, _ in units.parts]
    if unknown := [key for key in names if key not in keys]:
        raise AdapterError(f"weighs {unknown[0]}, which it does not name", HERE, DAMAGED)
    return Weighting(
        tuple((keys[key], weight) for key, weight in weighting.adapters),
        renamed(weighting.muted, keys),
        weighting.gates,
        tuple(keys.get(key, key) for key in weighting.masked),
        tuple((renamed(units, keys), factor) for units, factor in weighting.scaled),
    )


def renamed(units: Iterable[UnitId], keys: Mapping[str, str]) -> UnitSet:
    """The same units under the keys that their adapters have here."""
    return UnitSet.of((_named(key, keys), module, unit) for key, module, unit in units)


def chosen(session: Session, variants: list[VariantOf], keys: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of the session's variants that weigh what the recipe's do.

    Raises:
        AdapterError: when there is none for one of them.
    """
    ids: dict[Weighting, str] = {}
    for column in columns(session, shelf(session)):
        ids.setdefault(column.weighting, column.id)
    found = [ids.get(mapped(variant.weighting, keys)) for variant in variants]
    if None in found:
        raise AdapterError(f"{variants[found.index(None)].name!r} cannot be restored", HERE, DAMAGED)
    return tuple(dict.fromkeys(filter(None, found)))
