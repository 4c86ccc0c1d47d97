"""Keeping and sharing: the session's recipe in the address and as YAML, opened again from an address or a dropped file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends.streamed import streamed
from components import fragments, kinds
from components.compare import aligning, axes_box, drawing, export
from components.compare import tab as compare
from components.compare.form import Form
from components.compare.tab import CompareTab
from components.events import PRIVATE
from components.followed import Followed, Followers
from components.library.shelf import local, shelf
from components.messages import told
from components.session import opening, restore
from components.session.remembered import Remembered
from components.session.state import Session, columns
from components.work import lines, loading, peek
from lego import AdapterError

KEPT, RUN = "session", "compare"
"""What an address begins with after its #: a session, or one that is to be compared at once."""

FILE = "session-file"
READ = f"""() => {{
  const address = location.hash.slice(1);
  window.brickyardOpens = /^({KEPT}|{RUN})=/.test(address); // it stands until its session is there
  return [address];
}}"""
WRITE = f"""(link) => {{
  if (window.brickyardOpens) return;
  const write = () => history.replaceState(history.state, '', link ? `#{KEPT}=${{link}}` : location.pathname + location.search);
  clearTimeout(window.brickyardWrites); // browsers refuse what is written with every letter
  window.brickyardWrites = setTimeout(write, 300);
}}"""
ARRIVED = f"(link) => {{ window.brickyardOpens = false; ({WRITE})(link); }}"
FAILED = "() => { window.brickyardOpens = false; }"
COPY = f"""async (link) => {{
  if (!link) return;
  const address = `${{location.origin}}${{location.pathname}}${{location.search}}#{RUN}=${{link}}`;
  try {{ await navigator.clipboard.writeText(address); }} catch {{ window.prompt('Copy this address', address); }}
}}"""

OPEN = """
// Another app answers at this address: this page's session is gone there, and comes back from the address.
const {root, api_prefix, app_id} = window.gradio_config;
const look = async () => {
  if (document.hidden) return;
  const answer = await fetch(`${root}${api_prefix}/app_id`).catch(() => null);
  if (answer?.ok && (await answer.json()).app_id !== app_id) location.reload();
};
setInterval(look, 5000);
document.addEventListener('visibilitychange', look);
// An address that is put into a page which is open already: the browser alone would do nothing.
window.addEventListener('hashchange', (event) => {
  clearTimeout(window.brickyardWrites);
  history.replaceState(history.state, '', event.newURL); // this page may have written its own over it meanwhile
  location.reload();
});
"""


@dataclass(frozen=True)
class ShareBox:
    """The components of the header that events need."""

    link: gr.Textbox
    shared: gr.Textbox
    copy: gr.Button
    make: gr.Button
    save: gr.DownloadButton
    address: gr.State
    wanted: gr.State
    asked: gr.State


def create() -> ShareBox:
    """Lay the buttons out; nothing is wired yet."""
    held: dict[str, Any] = {"visible": "hidden", "max_length": opening.LONGEST + 20}
    link, shared = gr.Textbox(label="Session as an address", **held), gr.Textbox(label="Address to copy", **held)
    copy = gr.Button("Copy link", size="sm", min_width=90, scale=0)
    make = gr.Button("Save session", size="sm", min_width=110, scale=0)
    gr.HTML("<span hidden></span>", js_on_load=OPEN, visible="hidden")
    save = gr.DownloadButton("session.yaml", size="sm", min_width=110, scale=0, visible=False, elem_id=FILE)
    return ShareBox(link, shared, copy, make, save, gr.State(""), gr.State(None), gr.State(None))


def _recipe(session: Session, settings: tuple[Any, ...]) -> Remembered:
    return Form.of(settings).recipe(session, kinds.of_base(session.base) == kinds.IMAGE)


def link_of(session: Session | None, *settings: Any) -> str:
    """The session as a piece of an address; empty while a setting is being typed, or where it would be too long."""
    try:
        return opening.to_link(_recipe(session, settings)) if session else ""
    except AdapterError:
        return ""  # half-typed settings; the tab itself says what is wrong


@told
def copied(session: Session, *settings: Any) -> str:
    """The session as a piece of an address, for the clipboard."""
    link = opening.to_link(_recipe(session, settings))
    if not link:
        raise AdapterError("this session is too long for an address", None, "Save it as a file instead.")
    where = ", on this machine alone: a colleague takes the file of “Save session”" if local() else ""
    gr.Info(f"The address is copied. It opens this session and compares{where}.")
    return link


@told
def saved(session: Session, *settings: Any) -> Any:
    """The session as a YAML file, ready to download."""
    return gr.DownloadButton(value=str(export.session_file(_recipe(session, settings))), visible=True)


def wanted_of(address: str) -> Any:
    """The page's address, where it holds a session."""
    return address if address.startswith((f"{KEPT}=", f"{RUN}=")) else gr.skip()


@told
def open_address(session: Session, address: str) -> Iterator[tuple]:
    """The session of an address; whether it is to be compared comes last."""
    kind, _, text = address.partition("=")
    for step in bring_back(session, opening.from_link(text)):
        yield *step, gr.skip()
    yield *(gr.skip(),) * OUTPUTS, address if kind == RUN else gr.skip()


OUTPUTS = 24
"""How many components ``outputs`` names."""


def bring_back(session: Session, wanted: Remembered) -> Iterator[tuple]:
    """A session from its recipe: what it was made of is looked for, then everything on the page follows."""
    base = restore.base_of(wanted.base)
    before, coming, me = peek(base), loading(base), object()
    try:
        for _ in coming.watch(me):
            yield compare.awaited(coming, halt=True), *(gr.skip(),) * (OUTPUTS - 1)
    except GeneratorExit:
        if coming is not before:  # what was on its way already, as from the start, goes on
            coming.give_up(me)
        raise
    coming.base()
    yield fragments.progress("Looking for its adapters", None), *(gr.skip(),) * (OUTPUTS - 1)
    made: list[restore.Restored] = []

    def work(tell: Any) -> None:
        made.append(restore.restore(session, wanted, base, lambda text, part: tell((text, part))))

    for line in lines(streamed(work, "restore")):
        yield line, *(gr.skip(),) * (OUTPUTS - 1)
    found = made[0]
    for note in found.notes:
        gr.Warning(note)
    every = columns(kinds.own(found.session), shelf(found.session))
    variants = compare.offer(every, found.chosen)
    shown = "\n".join(prompt.replace("\n", "\\n") for prompt in found.prompts)
    mode = compare.VARIANTS if found.axes is None else compare.AXES
    axes = axes_box.restored(found.session, found.axes, found.subject)
    texts = found.writing
    told_by = texts.length, texts.temperature, texts.seed, texts.format
    judge = aligning.usual(base) if wanted.judge is None else wanted.judge
    drawn = *drawing.shown(found.drawing), judge
    # The session last: what follows it reads what else is on the page, which must be there by then.
    yield "", gr.skip(), base, *variants, base, shown, mode, *axes, *told_by, *drawn
    yield "", found.session, *(gr.skip(),) * (OUTPUTS - 2)


def ended() -> str:
    """After a stop or an error."""
    return fragments.subtle("The session stays as it was.")


def outputs(tab: CompareTab, session: gr.State, base: gr.Dropdown) -> list[Any]:
    """What ``bring_back`` fills."""
    return [tab.progress, session, base, tab.variants, tab.known, tab.draw.suited, *tab.kept, tab.draw.judge]


def wire(box: ShareBox, tab: CompareTab, session: Followed, settings: Followers, base: gr.Dropdown, opened: Any) -> Any:
    """Connect the buttons, and the address, which is read once the page has ``opened`` and follows it from then on.

    Gives the event after which another base may be wanted.
    """
    given = [session, *tab.settings]
    box.copy.click(copied, given, [box.shared], **PRIVATE).success(None, [box.shared], None, js=COPY, **PRIVATE)
    made = box.make.click(saved, given, [box.save], **PRIVATE)
    made.success(None, None, None, js=fragments.PRESS % FILE, **PRIVATE)
    opened.then(wanted_of, [box.address], [box.wanted], **PRIVATE)
    filled = [*outputs(tab, session, base), box.asked]
    brought = box.wanted.change(open_address, [session, box.wanted], filled, **PRIVATE)
    tab.progress.halt(None, None, None, cancels=[brought], **PRIVATE)
    tab.progress.halt(None, None, None, js=FAILED, **PRIVATE)
    brought.failure(ended, None, [tab.progress], **PRIVATE)
    brought.failure(None, None, None, js=FAILED, **PRIVATE)
    brought.success(link_of, given, [box.link], **PRIVATE).then(None, [box.link], None, js=ARRIVED, **PRIVATE)
    for followed in (session, settings):
        followed.follow(link_of, given, [box.link])
    box.link.change(None, [box.link], None, js=WRITE, **PRIVATE)
    return brought
