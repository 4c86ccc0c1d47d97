"""Dropping a file of this page onto it: the session that it carries comes back, and is compared again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from components.compare.tab import CompareTab
from components.events import PRIVATE
from components.messages import told
from components.session import opening, sharing
from components.session.state import Session
from lego import AdapterError

KINDS = ".png,.yaml,.yml,.json,.html"
RESTORE = (
    '<p class="by-subtle">A file that was downloaded here brings its session back: drop it anywhere on the page, or '
    f'<label class="by-link">choose it<input type="file" data-restore accept="{KINDS}" aria-label="File to restore"></label>.</p>'
)
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
        '<span class="by-drop-hint">Drop a file that was downloaded here to restore its session</span>',
        js_on_load=SCRIPT,
    )


def uploaded(path: Any) -> Path:
    """The file that was dropped.

    Raises:
        AdapterError: when the browser names any other file of this machine.
    """
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve() if isinstance(path, str) else folder
    if not file.is_relative_to(folder) or not file.is_file():
        raise AdapterError("this file was not uploaded", None, "Drop the file again.")
    return file


@told
def restored(session: Session, event: gr.EventData) -> Iterator[tuple]:
    """Bring back the session that a dropped file carries; what is missing for it is told."""
    yield from sharing.bring_back(session, opening.recipe_in(uploaded(event.path)))


def wire(drop: gr.HTML, tab: CompareTab, session: gr.State, base: gr.Dropdown) -> Any:
    """Connect the drop; gives the event after whose success the comparison is to be drawn."""
    outputs = sharing.outputs(tab, session, base)
    dropped = drop.restore(
        restored, [session], outputs, **{**PRIVATE, "concurrency_limit": 4, "concurrency_id": "restore"}
    )
    tab.progress.halt(None, None, None, cancels=[dropped], **PRIVATE)
    dropped.failure(sharing.ended, None, [tab.progress], **PRIVATE)
    return dropped
