"""Adding trained gates to a session: from a folder, a zip or their files; what they need and the visitor lacks is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from backends import gates, library
from components import fragments
from components.events import ALONE, PRIVATE
from components.gate import gating
from components.library import uploads
from components.library.shelf import as_gating, local, shelf
from components.messages import told
from components.session.state import Gating, Session
from components.work import peek
from lego import AdapterError


@dataclass(frozen=True)
class AddBox:
    """The components of the section that events need."""

    folder: gr.Textbox
    folder_add: gr.Button
    files: gr.File
    files_add: gr.Button
    opened: gr.State
    made: gr.State


def create() -> AddBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Accordion("Add gates", open=False), gr.Row():
        with gr.Column(min_width=240, visible=local()):
            folder = gr.Textbox(label="Folder of gates", placeholder="/path/to/gates", max_length=1000)
            folder_add = gr.Button("Add this folder")
        with gr.Column(min_width=240):
            kinds = [".zip", ".safetensors", ".json", ".yaml", ".md"]
            files = gr.File(label="Gate files", file_count="multiple", file_types=kinds, height=120)
            gr.HTML(fragments.subtle("A zip of this page, or gates.safetensors with its gate_config.json."))
            files_add = gr.Button("Add these files")
    return AddBox(folder, folder_add, files, files_add, gr.State(None), gr.State(None))


Opened = tuple[str, tuple[str, ...]]
"""The gates' key, and the keys of LoRAs that came along."""


@told
def open_folder(session: Session, path: str) -> Opened:
    """Read gates from a local folder, and the LoRAs that the visitor lacks from where their recipe says, if they are there."""
    if not local():
        raise AdapterError("local folders are not opened here", None, "Upload the files instead.")
    if not path.strip():
        raise AdapterError("no folder is named", None, "Type its path.")
    found, known = gates.add_folder(path.strip()), shelf(session)
    sources = zip(found.experts, found.saved.recipe.sources, strict=True)
    lacking = [source for key, source in sources if key not in known]
    there = [source for source in lacking if source.hub or (found.path / Path(source.path or "")).exists()]
    return found.key, tuple(library.add_source(source, found.path).key for source in there)


@told
def open_files(files: list[str] | None) -> Opened:
    """Read gates from uploaded files; what their recipe names is not opened."""
    if not files:
        raise AdapterError("no files are chosen", None, "Choose a zip, or gates.safetensors with its gate_config.json.")
    return uploads.receive_gates(files).key, ()


def emptied() -> None:
    """The box is empty for the next files: these are received, and what the browser sent is deleted."""


@told
def admit(session: Session, opened: Opened) -> tuple[Session, Gating]:
    """Let added gates in, if all their LoRAs are on the visitor's shelf."""
    key, came = opened
    for each in came:
        session = session.add(each)
    found, known = gates.entry(key), shelf(session)
    experts = zip(found.saved.experts, found.experts, strict=True)
    if missing := [expert for expert, key in experts if key not in known]:
        names = ", ".join(f"{expert.name} ({expert.fingerprint[:12]})" for expert in missing)
        what = f"mixes LoRAs that are not in your library: {names}"
        raise AdapterError(what, found.name, "Add them in the Library, then these gates again.")
    coming = peek(session.base)
    here = coming is not None and coming.done and coming.error is None and gating.fits(coming.base(), found)
    gr.Info(f"Added {found.name}." + ("" if here else f" They need the base {found.saved.base.id}."))
    return session, as_gating(found, session.base if here else found.saved.base.id, found.name)


def wire(box: AddBox, session: gr.State) -> list[Any]:
    """Connect the section's events; gives the events after which added gates wait in ``made``."""
    slow = {**PRIVATE, "show_progress": "minimal", "concurrency_limit": 4}
    folder = [session, box.folder]
    opened = [
        box.folder_add.click(open_folder, folder, [box.opened], show_progress_on=box.folder, **slow),
        box.folder.submit(open_folder, folder, [box.opened], show_progress_on=box.folder, **slow),
        box.files_add.click(open_files, [box.files], [box.opened], show_progress_on=box.files, **slow),
    ]
    opened[-1].success(emptied, None, [box.files], **PRIVATE)
    return [event.success(admit, [session, box.opened], [session, box.made], **ALONE) for event in opened]
