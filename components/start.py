"""What happens in the background when the app starts, so that the first visitor does not wait for it."""

from __future__ import annotations

from backends import bases
from components import export, kinds, leaving, making, map, maps
from components.shelf import start_picks, start_session
from components.work import Loading, in_thread, loading


def warm_up() -> None:
    """Start loading the base, make the first merge, draw the first map; all in threads."""
    leaving.sweep()
    base = bases.catalogue()[0].id
    first = loading(base)
    in_thread(lambda: _first_page(base), "first page")
    if bases.IMAGE in [info.id for info in bases.catalogue()]:
        in_thread(lambda: _pictures(first), "first pictures")


def _pictures(first: Loading) -> None:
    """Load what draws, and its first merge, once what the page opens with is there; should that fail, the page says so."""
    for _ in first.watch():
        pass
    base = loading(bases.IMAGE)
    for _ in base.watch():
        pass
    picks = start_picks(kinds.IMAGE)
    if len(picks) > 1:
        making.first(tuple((pick.key, pick.weight) for pick in picks), tuple(pick.slot for pick in picks))


def _first_page(base: str) -> None:
    session = start_session(base)
    if not session.picks:
        return
    making.first(session.weights, tuple(pick.slot for pick in session.picks))
    first = maps.view(session, map.where(maps.kinds(session)[0], map.ALL_LAYERS), 1)
    _ = first.mapped.pca, first.mapped.umap  # the second is computed in its own queue


def allowed_paths() -> list[str]:
    """Folders that the server may give files from: the downloads."""
    return [str(export.folder())]
