"""Dropping a picture onto the page: the comparison that it carries comes back, and is drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from components import compare, drawing, fragments, restore, sheet
from components.compare import CompareTab
from components.messages import told
from components.remembered import Remembered
from components.session import Session, columns
from components.shelf import shelf
from components.work import loading
from lego import AdapterError

SCRIPT = """
const files = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
const zones = 'input[type=file], .upload-container, [data-testid$=upload]';
const elsewhere = (event) => event.defaultPrevented || event.target.closest?.(zones);
const send = async (file) => {
  document.body.classList.remove('by-dropping');
  if (file) trigger('restore', {path: (await upload(file)).path});
};
document.addEventListener('dragover', (event) => {
  if (!files(event) || elsewhere(event)) return;
  event.preventDefault();
  document.body.classList.add('by-dropping');
});
document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) document.body.classList.remove('by-dropping'); });
document.addEventListener('drop', (event) => {
  if (!files(event) || elsewhere(event)) return;
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
document.addEventListener('change', (event) => {
  if (!event.target.matches?.('input[data-restore]')) return;
  send(event.target.files[0]);
  event.target.value = '';
});
"""


def create() -> gr.HTML:
    """What listens on the whole page."""
    return gr.HTML(
        '<span class="by-drop-hint">Drop a picture from here to restore its comparison</span>', js_on_load=SCRIPT
    )


def uploaded(path: Any) -> Path:
    """The file that was dropped.

    Raises:
        AdapterError: when the browser names any other file of this machine.
    """
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve() if isinstance(path, str) else folder
    if not file.is_relative_to(folder) or not file.is_file():
        raise AdapterError("this file was not uploaded", None, "Drop the picture again.")
    return file


@told
def restored(session: Session, event: gr.EventData) -> Iterator[tuple]:
    """Bring back the comparison that a dropped picture carries; what is missing for it is told."""
    file = uploaded(event.path)
    wanted = Remembered.check(sheet.recipe_in(file), file.name)
    base = restore.base_of(wanted.base)
    coming = loading(base)
    for _ in coming.watch():
        yield compare.awaited(coming), *(gr.skip(),) * 12
    coming.base()
    yield fragments.progress("Looking for its adapters", None), *(gr.skip(),) * 12
    found = restore.restore(session, wanted, base)
    for note in found.notes:
        gr.Warning(note)
    every = columns(found.session, shelf(found.session))
    variants = gr.CheckboxGroup([(column.name, column.id) for column in every], value=list(found.chosen))
    shown = "\n".join(prompt.replace("\n", "\\n") for prompt in found.prompts)
    known = [column.id for column in every]
    yield "", found.session, base, variants, known, shown, base, *drawing.shown(found.drawing)


def cleared() -> str:
    """No line of progress after an error."""
    return ""


def wire(drop: gr.HTML, tab: CompareTab, session: gr.State, known: gr.State, base: gr.Dropdown) -> Any:
    """Connect the drop; gives the event after whose success the comparison is to be drawn."""
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    outputs = [tab.progress, session, base, tab.variants, known, tab.prompts, tab.draw.suited, *tab.draw.settings[:-1]]
    dropped = drop.restore(restored, [session], outputs, concurrency_limit=4, concurrency_id="restore", **private)
    dropped.failure(cleared, None, [tab.progress], **private)
    return dropped
