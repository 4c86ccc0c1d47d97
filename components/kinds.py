"""Texts or pictures: what a base makes, and which base an adapter is for."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from backends import bases, gates, library
from backends.pipelines import INDEX
from components.map.blocks import of_pipeline
from components.session.state import Session
from components.work import peek

TEXT, IMAGE = "text", "image"


def of_base(base: str) -> str | None:
    """What a base makes; None while nothing tells, as for one of the hub that is still on its way."""
    coming = peek(base)
    if coming is not None and coming.done and coming.error is None:
        return coming.base().info.kind
    known = next((info.kind for info in bases.catalogue() if info.id == base), None)
    if known is None and Path(base).expanduser().is_dir():
        return IMAGE if (Path(base).expanduser() / INDEX).is_file() else TEXT
    return known


@lru_cache(maxsize=1024)
def of_adapter(key: str) -> str:
    """What the base makes that an adapter of the library is for: a pipeline's modules tell."""
    return IMAGE if any(map(of_pipeline, library.get(key).modules)) else TEXT


def suits(key: str, kind: str | None) -> bool:
    """Whether an adapter is for bases of this kind; anything may be while the kind is not known."""
    return kind is None or of_adapter(key) == kind


def own(session: Session) -> Session:
    """The session with what belongs to its kind of base only: merges, edited variants and gates of the other are left out,
    and of the gates that ship those of other bases.
    """
    kind = of_base(session.base)
    mine = (gating for gating in session.gates if gating.base == session.base or not gates.ships(gating.key))
    return replace(
        session,
        merges=tuple(made for made in session.merges if suits(made.key, kind)),
        edited=tuple(each for each in session.edited if all(suits(key, kind) for key, _ in each.weights)),
        gates=tuple(gating for gating in mine if all(suits(key, kind) for key in gating.experts)),
    )


def turned(session: Session) -> Session:
    """The session with the picks that its kind of base can use; the others wait aside for a base of theirs."""
    kind = of_base(session.base)
    every = (*session.picks, *session.aside)
    fit = tuple(pick for pick in every if suits(pick.key, kind))
    if kind is None or fit == session.picks:
        return session
    return replace(session, picks=fit, aside=tuple(pick for pick in every if pick not in fit))
