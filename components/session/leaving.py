"""What belongs to one visitor on disk and in memory, and goes when their tab is closed.

Files lie under a hash of what they hold, shared by all who brought the same; the last one to leave takes them along.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from backends import gates, library, variants
from backends.bases import home
from backends.memory import give_back

GRACE = float(os.environ.get("BRICKYARD_GRACE", 600))
"""Seconds for a tab to come back, as after a broken connection, before what it held is freed."""
DAY = 24 * 3600
PRIVATE = ("uploads", "rows", "captions", "restricted")
"""Folders of the cache whose content is for those who brought it only."""

_holders: dict[Path, set[str]] = {}
_gone: dict[str, float] = {}
_lock = threading.Lock()


def visitor() -> str:
    """The session on whose behalf this is running; empty outside of one."""
    request = LocalContext.request.get(None)
    return str(getattr(request, "session_hash", None) or "")


def hold(place: Path, receive: Callable[[Path], None] | None = None) -> Path:
    """Keep a folder or file as long as this visitor is here.

    Args:
        place: in the cache folder; somebody else may hold it already.
        receive: writes it if it is not there.
    """
    with _lock:
        if receive and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            receive(place)
        if who := visitor():
            _holders.setdefault(place, set()).add(who)
    return place


def keep(path: Path) -> None:
    """Keep what a library entry's path is part of, as long as this visitor is here; nothing where everyone may have it."""
    for folder, depth in (("uploads", 1), ("restricted", 2)):
        root = home() / folder
        if path.is_relative_to(root):
            hold(root.joinpath(*path.relative_to(root).parts[:depth]))


def held(folder: str) -> list[Path]:
    """What this visitor holds in a folder of the cache."""
    root, who = home() / folder, visitor()
    with _lock:
        return [place for place, holders in _holders.items() if who in holders and place.is_relative_to(root)]


def may_use(place: Path) -> bool:
    """Whether this visitor may use a place by its hash alone: what others brought is theirs."""
    if not any(place.is_relative_to(home() / folder) for folder in PRIVATE):
        return True
    who = visitor()
    with _lock:
        return any(who in holders for kept, holders in _holders.items() if place.is_relative_to(kept))


def release(who: str) -> None:
    """Delete what only this visitor held: files, library entries and tensors in memory."""
    with _lock:
        for place in [place for place, holders in _holders.items() if who in holders]:
            _holders[place].discard(who)
            if _holders[place]:
                continue
            del _holders[place]
            for key in library.forget(place):
                variants.forget(key)
                again = home() / "uploads" / key
                if again in _holders and again != place:  # another visitor brought the same
                    library.add_upload(next(again.iterdir()))
            gates.forget(place)
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def wire(page: gr.Blocks) -> None:
    """Let a closed tab free what it held, once it is clear that it does not come back."""

    def left(request: gr.Request) -> None:
        with _lock:
            first = not _gone
            _gone[str(request.session_hash)] = time.time()
        if first:
            threading.Thread(target=_watch, args=(page,), name="leaving", daemon=True).start()

    page.unload(left)


def _watch(page: gr.Blocks) -> None:
    """Free what those held who have been gone long enough; ends when nobody is left to wait for."""
    while True:
        time.sleep(min(5.0, GRACE / 4))
        with _lock:
            due = [who for who, since in _gone.items() if time.time() - since > GRACE]
        for who in due:
            try:
                free(page, who, _gone[who])
            except OSError as error:
                print(f"brickyard: an upload could not be deleted: {error}", file=sys.stderr, flush=True)
        if due:
            give_back()
        with _lock:
            for who in due:
                _gone.pop(who, None)
            if not _gone:
                return


def free(page: Any, who: str, since: float) -> None:
    """Free what a session held, unless it was used since its tab closed: then the tab has come back."""
    states = page.state_holder
    used = states.time_last_used.get(who)
    if used is not None and used.timestamp() > since:
        return
    states.delete_state(who)
    states.session_data.pop(who, None)
    states.time_last_used.pop(who, None)
    page._queue.pending_event_ids_session.pop(who, None)
    release(who)


def sweep() -> None:
    """At the start: delete what visitors of an earlier process left behind a day ago or longer."""
    for folder in PRIVATE:
        for place in (home() / folder).glob("*"):
            if time.time() - max(found.stat().st_mtime for found in (place, *place.glob("*"))) > DAY:
                shutil.rmtree(place) if place.is_dir() else place.unlink()
