"""Putting a merge or gates into the visitor's own account on the hub, with their card; only where visitors can sign in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr

from backends import gates, publish
from backends.streamed import streamed
from components import fragments
from components.compare import export
from components.events import HUB, PRIVATE
from components.library import account
from components.library.shelf import gates_of
from components.merge import making
from components.messages import told
from components.session.state import Session
from lego import AdapterError

Files = tuple[str, Sequence[Path]]
"""What something is called, and its files."""


@dataclass(frozen=True)
class PushBox:
    """The components of the section that events need."""

    name: gr.Textbox
    private: gr.Checkbox
    push: gr.Button
    state: gr.HTML


def create(what: str) -> PushBox | None:
    """Lay the section out, where visitors can sign in; nothing is wired yet.

    Args:
        what: is pushed, for the button.
    """
    if not account.available():
        return None
    with gr.Accordion(f"Push {what} to your account", open=False):
        with gr.Row(elem_classes="by-bottom"):
            info = "A new repository of your account; empty: named after what it holds."
            name = gr.Textbox(label=f"Repository for {what}", info=info, max_length=96, min_width=220)
            info = "Nobody else sees it until you say so on the hub."
            private = gr.Checkbox(True, label=f"Keep {what} private", info=info, min_width=220)
            button = gr.Button(f"Push {what}", scale=0, min_width=170)
        state = gr.HTML(label=f"Where {what} went", js_on_load=fragments.HALT)
    return PushBox(name, private, button, state)


def merge_files(session: Session, shown: str | None) -> Files:
    """The files of one of the session's merges.

    Raises:
        AdapterError: when it is none of them.
    """
    made = next((made for made in session.merges if made.key == shown), None)
    if made is None:
        raise AdapterError("there is no merge to push", None, "Merge first.")
    return made.name, export.adapter_files(made.key)


def gates_files(session: Session, shown: str | None) -> Files:
    """The files of some of the session's gates.

    Raises:
        AdapterError: when they are none of them.
    """
    mine = gates_of(session, shown)
    return mine.name, export.gates_files(gates.entry(mine.key))


def pusher(files_of: Callable[[Session, str | None], Files]) -> Callable[..., Iterator[str]]:
    """The handler that pushes what is shown."""

    @told
    def push(session: Session, shown: str | None, name: str, private: bool, token: str | None) -> Iterator[str]:
        if not token:
            raise AdapterError("you are not signed in", None, "Use the sign-in button at the top of the page.")
        title, files = files_of(session, shown)
        repo, made = name.strip() or making.slug(title) or "brickyard", []
        yield fragments.progress(f"Pushing {repo} to the hub", None)

        def work(tell: Any) -> None:
            message = f"Add {title}, made with Brickyard"
            made.append(publish.push(files, repo, token, bool(private), message, lambda *told: tell(told)))

        start = monotonic()
        for text, part in streamed(work, "push"):
            line = f"Pushing {repo} to the hub: {text}{fragments.left(monotonic() - start, part)}"
            yield fragments.progress(line, part, halt=text != publish.COMMITTING)
        kept = "Private: only you see it." if private else "Everyone can see it."
        address = escape(made[0])
        link = f'<a href="{address}" target="_blank" rel="noopener">{address}</a>'
        yield f'<p class="by-subtle">Pushed to {link}. {kept}</p>'

    return push


def wire(
    box: PushBox | None, session: gr.State, shown: gr.Dropdown, token: gr.State, files_of: Callable[..., Files]
) -> None:
    """Connect the section's events."""
    if box is None:
        return
    asked = [session, shown, box.name, box.private, token]
    pushed = box.push.click(pusher(files_of), asked, [box.state], **HUB)
    pushed.failure(ended, None, [box.state], **PRIVATE)
    box.state.halt(None, None, None, cancels=[pushed], **PRIVATE)


def ended() -> str:
    """After a stop or an error."""
    return fragments.subtle("Nothing was pushed.")
