"""Which library entries a visitor may see: the built-in ones, what they added, what they merged."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from backends import bases, gates, library
from backends.gates import GateEntry
from backends.library import Entry
from components import kinds
from components.session import leaving
from components.session.state import Gating, Pick, Session
from lego import AdapterError

START_PICKS = {kinds.TEXT: ("past-tense", "sentiment", "language"), kinds.IMAGE: ("animals", "vehicles", "ink-style")}
"""The adapters picked at first sight of a kind of base, by folder name, before others: three tasks; two subjects and a style. The
first two propose the prompts for pictures."""


def local() -> bool:
    """Whether the page runs on its visitor's own machine: only then are local folders opened."""
    return "SPACE_ID" not in os.environ


def checked_base(name: object) -> str:
    """The id of a base model as a visitor gave it.

    Raises:
        AdapterError: when it is empty, overlong, or a folder where visitors are not on this machine.
    """
    wanted = name.strip() if isinstance(name, str) else ""
    path = wanted.startswith((".", "~", "/", "\\")) or Path(wanted).exists()
    if not wanted or len(wanted) > 1000 or (path and not local()):
        raise AdapterError(
            "this base model cannot be used here", wanted[:60] or None, "Choose one from the list or a hub id."
        )
    return wanted


def builtin_base(kind: str) -> str:
    """The id of the base that is built in for a kind.

    Raises:
        AdapterError: when there is none.
    """
    if kind != kinds.IMAGE:
        return bases.BUILTIN
    if bases.IMAGE not in [info.id for info in bases.catalogue()]:
        raise AdapterError("no base that draws is built in here", None, "Name one: a hub id or a folder.")
    return bases.IMAGE


@lru_cache(maxsize=2)
def builtin(kind: str = kinds.TEXT) -> tuple[Entry, ...]:
    """The adapters that ship with the app for one kind of base; those for pictures are opened only where they are wanted."""
    return tuple(library.builtin(kind))


def shelf(session: Session) -> dict[str, Entry]:
    """The entries that this session may use, by key."""
    image = kinds.of_base(session.base) == kinds.IMAGE
    found = {entry.key: entry for entry in (*builtin(), *(builtin(kinds.IMAGE) if image else ()))}
    mixed = (key for gating in session.gates for key in gating.experts)
    for key in (*session.added, *(made.key for made in session.merges), *mixed):
        found.setdefault(key, library.entry(key))
    return found


def entry_of(session: Session, key: object) -> Entry:
    """The entry with this key; keys come from the page and are checked.

    Raises:
        AdapterError: when the session has no such adapter.
    """
    found = shelf(session).get(key) if isinstance(key, str) else None
    if found is None:
        raise AdapterError("is not in your library", str(key)[:40], "Add it first.")
    return found


def known(key: str) -> Entry:
    """The entry with this key, if its files are not somebody else's upload.

    Raises:
        AdapterError: when there is none.
    """
    found = library.entry(key)
    if not leaving.may_use(found.path):
        raise AdapterError("there is no adapter with this key", key[:40], "Add it to the library first.")
    return found


def known_gates(key: str) -> GateEntry:
    """The gates with this key, if they are not somebody else's upload.

    Raises:
        AdapterError: when there are none.
    """
    found = gates.entry(key)
    if not leaving.may_use(found.path):
        raise AdapterError("there are no gates with this key", key[:40], "Train or add them first.")
    return found


def named(name: object) -> Entry:
    """The entry that an endpoint's caller names: a library key, the name of a built-in adapter, on this machine also a folder.

    A key is the hash of what the adapter holds: who knows it has, or made, that adapter.

    Raises:
        AdapterError: when there is none.
    """
    for kind in (kinds.TEXT, kinds.IMAGE):
        if found := next((entry for entry in builtin(kind) if name in (entry.key, entry.name)), None):
            return found
    if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{12,64}", name):
        return known(name)
    if isinstance(name, str) and "/" in name and local():
        return library.add_folder(name)
    raise AdapterError(f"there is no adapter {str(name)[:60]!r}", None, "Ask /adapters for those there are.")


def start_session(base: str) -> Session:
    """What a new visitor finds: three built-in adapters picked, and the built-in gates."""
    kind = kinds.of_base(base) or kinds.TEXT
    return with_gates(Session(base=base, picks=start_picks(kind)), kind)


def with_gates(session: Session, kind: str) -> Session:
    """The session with the built-in gates for bases of this kind that it does not have yet."""
    have = {gating.key for gating in session.gates}
    if not (new := [found for found in gates.builtin(kind) if found.key not in have]):
        return session
    known = {entry.key for entry in builtin(kind)}
    own = (as_gating(found, found.saved.base.id) for found in new if set(found.experts) <= known)
    return replace(session, gates=(*session.gates, *own))


def start_picks(kind: str) -> tuple[Pick, ...]:
    """Three built-in adapters for bases of this kind."""
    by_name = {entry.name: entry.key for entry in builtin(kind)}
    keys = [by_name[name] for name in START_PICKS[kind] if name in by_name]
    keys += [key for key in by_name.values() if key not in keys]
    return tuple(Pick(key, 1.0, slot) for slot, key in enumerate(keys[:3]))


def on_base(session: Session, base: str) -> Session:
    """The session on another base, with the picks that fit its kind; the built-in bases come with some."""
    session = kinds.turned(replace(session, base=base))
    session = with_gates(session, kinds.of_base(base) or kinds.TEXT)
    if session.picks or base not in (bases.BUILTIN, bases.IMAGE):
        return session
    return replace(session, picks=start_picks(kinds.of_base(base) or kinds.TEXT))


def as_gating(found: GateEntry, base: str, name: str = "") -> Gating:
    """Trained gates as a session keeps them."""
    return Gating(found.key, name or f"MoLE {found.name}", base, found.experts)


def gates_of(session: Session, key: object) -> Gating:
    """The session's gates with this key; keys come from the page and are checked.

    Raises:
        AdapterError: when the session has none.
    """
    found = next((gating for gating in session.gates if gating.key == key), None)
    if found is None:
        raise AdapterError("are not among your gates", str(key)[:40], "Train or add them first.")
    return found


def named_gates(name: object) -> GateEntry:
    """The gates that an endpoint's caller names: a key, or the name of built-in ones; as `named`.

    Raises:
        AdapterError: when there are none.
    """
    for found in (*gates.builtin(kinds.TEXT), *gates.builtin(kinds.IMAGE)):
        if name in (found.key, found.name):
            return found
    if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{12}", name):
        return known_gates(name)
    raise AdapterError(f"there are no gates {str(name)[:60]!r}", None, "Train some with /train_gate.")
