"""What happens in the background when the app starts, so that the first visitor does not wait for it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gradio as gr

from backends import bases
from components import kinds, theme
from components.compare import export
from components.library import uploads
from components.library.shelf import start_picks, start_session
from components.map import maps
from components.merge import making
from components.session import leaving
from components.work import Loading, in_thread, loading

MOST_WAITING = 2000
"""Events that may wait, all queues together: one click of one visitor makes a dozen small ones."""
MOST_THREADS = 100
"""Events that run at once; most of them wait for something."""


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
    first = maps.view(session, maps.where(maps.kinds(session)[0], maps.ALL_LAYERS), 1)
    _ = first.mapped.pca


def options() -> dict[str, Any]:
    """How the page is launched: its look, its limits, and its endpoints as tools of agents where the package for that is there."""
    return {
        "theme": theme.theme(),
        "css": theme.css(),
        "allowed_paths": [str(export.folder())],
        "max_file_size": uploads.FILE_BYTES,
        "i18n": gr.I18n(en={"common.upload": "Upload files"}),  # Gradio names its button so and has no text for it
        "footer_links": ["api", "gradio", "settings"],
        "ssr_mode": False,
        "run_history": False,  # it would keep what is typed, access tokens too
        "max_threads": MOST_THREADS,
        "mcp_server": find_spec("mcp") is not None,
    }
