"""The Library tab: the base model, adapters as cards to pick and weigh, and ways to add more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends import bases, library
from backends.library import Entry
from components import fragments
from components.events import ALONE, PRIVATE
from components.followed import Followed
from components.library import cards, from_hub, uploads
from components.library.from_hub import LAYOUTS, HubBox
from components.library.shelf import checked_base, entry_of, local, on_base
from components.messages import told
from components.session.state import MAX_PICKS, Session
from lego import AdapterError

FILES = (
    "adapter_model.safetensors with its adapter_config.json, single .safetensors files of diffusers or kohya, or a zip."
)
CARDS_SCRIPT = """
const keyOf = (event) => event.target.closest('[data-key]')?.dataset.key;
element.addEventListener('click', (event) => {
  const face = event.target.closest('button.by-face');
  if (face && !face.disabled) trigger('pick', {key: keyOf(event)});
});
element.addEventListener('input', (event) => {
  const pair = event.target.closest('.by-weight')?.querySelectorAll('input') ?? [];
  pair.forEach((input) => { if (input !== event.target) input.value = event.target.value; });
});
element.addEventListener('change', (event) => {
  if (event.target.closest('.by-weight')) trigger('weigh', {key: keyOf(event), weight: Number(event.target.value)});
});
"""


@dataclass(frozen=True)
class LibraryTab:
    """The components of the tab that events need."""

    base: gr.Dropdown
    cards: gr.HTML
    hub: HubBox
    folder: gr.Textbox
    folder_add: gr.Button
    files: gr.File
    files_add: gr.Button
    directory: gr.UploadButton


def create() -> LibraryTab:
    """Lay the tab out; nothing is wired yet."""
    choices = [(info.title, info.id) for info in bases.catalogue()]
    others = "a model id of the Hugging Face hub" + (" or the path of a local folder" if local() else "")
    info = f"The built-in model, or type {others} and press Enter."
    base = gr.Dropdown(choices, value=choices[0][1], label="Base model", info=info, allow_custom_value=True)
    how = f"Click a card to pick or drop it, up to {MAX_PICKS}. Weights count in sums, the map and merges."
    gr.HTML(fragments.heading("Adapters", how))
    shown = gr.HTML(fragments.progress("Reading the library", None), js_on_load=CARDS_SCRIPT, label="Adapters")
    with gr.Accordion("Add adapters", open=False):
        hub = from_hub.create()
        with gr.Row():
            with gr.Column(min_width=260, visible=local()):
                folder = gr.Textbox(label="Local folder", placeholder="/path/to/adapter", info=LAYOUTS, max_length=1000)
                folder_add = gr.Button("Add the folder")
            with gr.Column(min_width=260):
                kinds = [".safetensors", ".json", ".md", ".zip"]
                files = gr.File(label="Adapter files", file_count="multiple", file_types=kinds, height=150)
                gr.HTML(fragments.subtle(FILES) + fragments.subtle(uploads.LIMITS))
                with gr.Row():
                    files_add = gr.Button("Add the files", min_width=150)
                    directory = gr.UploadButton("Upload a folder", file_count="directory", min_width=150)
    return LibraryTab(base, shown, hub, folder, folder_add, files, files_add, directory)


@told
def pick(session: Session, event: gr.EventData) -> tuple[Session, str]:
    """Pick or drop the adapter of the clicked card, and draw the cards at once."""
    entry = entry_of(session, event.key)
    if session.pick(entry.key) is None:
        if len(session.picks) >= MAX_PICKS:
            raise AdapterError(f"{MAX_PICKS} adapters are picked already", None, "Drop one first.")
        if why := cards.misfit(session, entry):
            raise AdapterError(why, entry.title)
    session = session.toggle(entry.key)
    return session, cards.draw(session)


@told
def weigh(session: Session, event: gr.EventData) -> Session:
    """Give a picked adapter the weight of its slider."""
    entry, weight = entry_of(session, event.key), event.weight
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise AdapterError("the weight is not a number", entry.title)
    return session.weigh(entry.key, max(cards.LOWEST, min(cards.HIGHEST, float(weight))))


def _added(session: Session, entry: Entry) -> Session:
    why = cards.misfit(session, entry)
    gr.Info(f"Added {entry.title}." + (f" It does not fit this base: {why}" if why else ""))
    session = session.add(entry.key)
    return session if why or session.pick(entry.key) or len(session.picks) >= MAX_PICKS else session.toggle(entry.key)


@told
def open_folder(path: str) -> str:
    """Read an adapter from a local folder or file; refused where visitors are not on this machine."""
    if not local():
        raise AdapterError("local folders are not opened here", None, "Upload the files instead.")
    if not path.strip():
        raise AdapterError("no folder is named", None, "Type its path.")
    return library.add_folder(path.strip()).key


@told
def open_files(files: list[str] | None) -> tuple[str, None]:
    """Read the adapters among uploaded files, told apart by their names; the box is empty for the next ones."""
    return " ".join(entry.key for entry in uploads.receive(files or [])), None


@told
def join(session: Session, keys: str) -> Session:
    """Put newly added adapters on this session's shelf, and pick those that fit."""
    for key in keys.split():
        session = _added(session, library.entry(key))
    return session


@told
def choose_base(session: Session, base: str) -> Session:
    """Change the base model; what does not fit it says so on its card, and picks for another kind of base wait aside."""
    return on_base(session, checked_base(base))


def wire(tab: LibraryTab, session: Followed, account: gr.State) -> Any:
    """Connect the tab's events; returns the event after which another base is wanted."""
    quick = {**ALONE, "trigger_mode": "multiple"}
    session.follow(cards.draw, [session], [tab.cards])
    tab.cards.pick(pick, [session], [session, tab.cards], **quick)
    tab.cards.weigh(weigh, [session], [session], **quick)
    keys = gr.State("")
    slow = {**PRIVATE, "show_progress": "minimal", "concurrency_limit": 4}
    opened = [
        listen(open_folder, [tab.folder], [keys], show_progress_on=tab.folder, **slow)
        for listen in (tab.folder_add.click, tab.folder.submit)
    ]
    for listen, files in ((tab.files_add.click, tab.files), (tab.directory.upload, tab.directory)):
        opened.append(listen(open_files, [files], [keys, files], show_progress_on=files, **slow))
    for event in opened:
        event.success(join, [session, keys], [session], **quick)
    for event in from_hub.wire(tab.hub, session, account):
        event.success(join, [session, tab.hub.key], [session], **quick)
    return tab.base.input(choose_base, [session, tab.base], [session], **quick)
