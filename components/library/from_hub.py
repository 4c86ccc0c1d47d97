"""Adapters from the hub in the Library tab: searched by the base, looked at, fetched with progress, private ones with a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from backends import finding, library
from backends.finding import Found
from backends.streamed import streamed
from components import fragments
from components.events import HUB, PRIVATE
from components.messages import told
from components.session import leaving
from components.session.state import Session
from components.work import lines
from lego import AdapterError

LAYOUTS = "A LoRA of PEFT, or a single .safetensors file of diffusers or kohya."
ONCE = "Only for private and gated ones. Used while this page is open, written nowhere."
NONE_FOUND = fragments.empty("Nothing found", "Try fewer words, or type an id beside this.")
SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-id]');
  if (button) trigger('choose', {id: button.dataset.id});
});
"""


@dataclass(frozen=True)
class HubBox:
    """The components of the section that events need."""

    words: gr.Textbox
    search: gr.Button
    found: gr.HTML
    id: gr.Textbox
    token: gr.Textbox
    add: gr.Button
    progress: gr.HTML
    wanted: gr.State
    key: gr.State


def create() -> HubBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Row():
        with gr.Column(min_width=260):
            info = "LoRAs for the base model, those with the most downloads first."
            words = gr.Textbox(
                label="Search the hub", placeholder="any words", info=info, max_length=finding.MOST_WORDS
            )
            search = gr.Button("Search")
        with gr.Column(min_width=260):
            name = gr.Textbox(label="Hub id", placeholder="owner/name", info=LAYOUTS, max_length=200)
            token = gr.Textbox(label="Access token", type="password", info=ONCE, max_length=200)
            add = gr.Button("Add from the hub")
    progress = gr.HTML(label="Hub progress", js_on_load=fragments.HALT)
    found = gr.HTML(js_on_load=SCRIPT, label="Adapters on the hub")
    return HubBox(words, search, found, name, token, add, progress, gr.State(""), gr.State(""))


@told
def search(session: Session, words: str, token: str, account: str | None) -> Iterator[tuple[str, Any]]:
    """The hub's adapters for the session's base."""
    base = finding.hub_id(session.base)
    yield fragments.progress(f"Searching for LoRAs of {base or 'any base'}", None), gr.skip()
    yield "", draw(finding.search(base, words, token.strip() or account), base)


def draw(found: Sequence[Found], base: str | None) -> str:
    """What was found, each with a button that adds it."""
    if not found:
        return NONE_FOUND
    rows = [[_name(each), f"{each.downloads:,}", f"{each.likes:,}", escape(each.changed), _add(each)] for each in found]
    head = ["Adapter", "Downloads", "Likes", "Changed", ""]
    title = (
        f"For {base}, by downloads in the last month." if base else "This base is not on the hub: LoRAs of any base."
    )
    return fragments.subtle(title) + fragments.table(head, rows, right=(1, 2), label="Adapters on the hub", tall=True)


def _name(found: Found) -> str:
    notes = [note for note, is_so in (("gated", found.gated), ("private", found.private)) if is_so]
    return escape(found.id) + (f' <small class="by-subtle">{", ".join(notes)}</small>' if notes else "")


def _add(found: Found) -> str:
    name = escape(found.id)
    return f'<span class="by-chips"><button type="button" data-id="{name}" aria-label="Add {name}">Add</button></span>'


def chosen(event: gr.EventData) -> str:
    """The id whose button was pressed; it comes from the page and is checked where it is used."""
    return str(event.id)[:200]


def typed(name: str) -> str:
    """The id that was typed."""
    return name


@told
def fetch(name: str, token: str, account: str | None) -> Iterator[tuple[str, str]]:
    """Fetch an adapter, if its headers say that it can be used."""
    if not name.strip():
        raise AdapterError("no hub id is given", None, "Type one like owner/name.")
    made: list[library.Entry] = []

    def work(tell: Any) -> None:
        shown = token.strip() or account
        made.append(library.add_hub(name, token=shown, progress=lambda text, part: tell((text, part))))

    for line in lines(streamed(work, "hub")):
        yield line, ""
    leaving.keep(made[0].path)
    yield "", made[0].key


def cleared() -> str:
    """No line of progress after an error."""
    return ""


def ended() -> str:
    """After a stop or an error."""
    return fragments.subtle("Nothing was added.")


def wire(box: HubBox, session: gr.State, account: gr.State) -> list[Any]:
    """Connect the section's events; gives those after which an adapter's key waits in ``key``."""
    asked = [session, box.words, box.token, account]
    for listen in (box.search.click, box.words.submit):
        searched = listen(search, asked, [box.progress, box.found], **HUB)
        searched.failure(cleared, None, [box.progress], **PRIVATE)
    named = [listen(typed, [box.id], [box.wanted], **PRIVATE) for listen in (box.add.click, box.id.submit)]
    named.append(box.found.choose(chosen, None, [box.wanted], **PRIVATE))
    fetched = [each.then(fetch, [box.wanted, box.token, account], [box.progress, box.key], **HUB) for each in named]
    box.progress.halt(None, None, None, cancels=fetched, **PRIVATE)
    for each in fetched:
        each.failure(ended, None, [box.progress], **PRIVATE)
    return fetched
