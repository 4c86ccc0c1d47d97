"""What happens in the background when the app starts, so that the first visitor does not wait for it."""

from __future__ import annotations

from backends import bases
from components import export, making, map, maps
from components.shelf import start_session
from components.work import in_thread, loading


def warm_up() -> None:
    """Start loading the base, make the first merge, draw the first map; all in threads."""
    base = bases.catalogue()[0].id
    loading(base)
    in_thread(lambda: _first_page(base), "first page")


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
