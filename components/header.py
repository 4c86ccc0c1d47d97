"""The top of the page: what this is, how the base model is doing, and what is picked, at one glance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any

import gradio as gr

from backends import bases
from components import fragments, kinds
from components.compare import comparing, examples
from components.events import ALONE, PRIVATE
from components.followed import Followed
from components.library import cards
from components.library.shelf import on_base, shelf
from components.merge import making
from components.messages import EXPECTED, told
from components.session.state import Session, title_of
from components.work import Loading, Turns, loading, peek

LOGO = (
    '<svg class="by-logo" viewBox="0 0 38 38" aria-hidden="true">'
    '<rect x="1" y="4" width="20" height="8" rx="2" fill="#b5532f"/>'
    '<rect x="24" y="4" width="13" height="8" rx="2" fill="#e08e2b"/>'
    '<rect x="1" y="15" width="11" height="8" rx="2" fill="#3d7fd6"/>'
    '<rect x="15" y="15" width="22" height="8" rx="2" fill="#b5532f" opacity=".75"/>'
    '<rect x="1" y="26" width="22" height="8" rx="2" fill="#2a9d7f"/>'
    '<rect x="26" y="26" width="11" height="8" rx="2" fill="#b5532f" opacity=".5"/></svg>'
)
TITLE = (
    f'<div class="by-header">{LOGO}<h1>Brickyard</h1>'
    "<p>Take LoRAs apart into their smallest bricks, merge them into one, and judge the result next to the originals.</p>"
    '<div class="by-tools">'
    '<button type="button" class="by-tool" data-hints aria-label="Show the first steps" title="First steps">?</button>'
    '<button type="button" class="by-tool" data-theme aria-label="Switch between light and dark" title="Light or dark">◐</button>'
    "</div></div>"
)
_watching = Turns()
SHORT = 2.0
"""Seconds of loading before its Stop is shown."""
OTHER = {kinds.TEXT: "Try it with pictures", kinds.IMAGE: "Try it with texts"}
THEME_SCRIPT = """
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-theme]')) document.body.classList.toggle('dark');
});
"""


@dataclass(frozen=True)
class Header:
    """The components of the header that events need."""

    status: gr.HTML
    again: gr.Button
    strip: gr.HTML
    compare: gr.Button
    other: gr.Button


def create() -> Header:
    """Lay the header out; nothing is wired yet."""
    gr.HTML(TITLE, js_on_load=THEME_SCRIPT)
    with gr.Row(elem_classes="by-top"):
        with gr.Column(scale=1, min_width=280, elem_classes="by-tight"):
            starting = _status("loading", "Base model", "starting")
            status = gr.HTML(starting, label="Base model state", js_on_load=fragments.HALT)
            strip = gr.HTML(label="What is picked", elem_classes="by-picked")
        with gr.Column(scale=0, min_width=352, elem_classes="by-tight"), gr.Row(elem_classes="by-ways"):
            again = gr.Button("Try again", visible=False, min_width=110)
            compare = gr.Button("Compare them", variant="primary", min_width=140, elem_classes="by-onward")
            other = gr.Button(OTHER[kinds.TEXT], visible=_has_pictures(), min_width=160)
    return Header(status, again, strip, compare, other)


def _has_pictures() -> bool:
    return bases.IMAGE in [info.id for info in bases.catalogue()]


def offer(session: Session) -> Any:
    """The way to the other built-in base: to pictures, and back to texts."""
    return gr.Button(OTHER[kinds.of_base(session.base) or kinds.TEXT], visible=_has_pictures())


@told
def switch(session: Session, *axes: str | None) -> tuple[Any, ...]:
    """The other built-in base with adapters picked and merged as on the first page; its id, prompts that fit, and what follows on
    the tab Compare, whose ``axes`` stay where it has them too.
    """
    base = bases.BUILTIN if kinds.of_base(session.base) == kinds.IMAGE else bases.IMAGE
    session = on_base(session, base)
    if len(session.picks) > 1 and not kinds.own(session).merges:
        session = session.join(making.first(session.weights, tuple(pick.slot for pick in session.picks)))
    return session, base, examples.first(session), *comparing.follow(session, None, [], [], *axes)


def _status(look: str, title: str, detail: str, fraction: float | None = None, halt: bool = False) -> str:
    bar = ""
    if look == "loading" and fraction is not None:
        bar = f'<span class="by-bar"><i style="width:{100 * fraction:.0f}%"></i></span>'
    return (
        f'<div class="by-status {look}" role="status" aria-label="Base model state"><span class="by-dot"></span>'
        f"<span>{escape(title)}</span>{bar}<small>{escape(detail)}</small>{fragments.STOP if halt else ''}</div>"
    )


def describe(base_id: str, coming: Loading) -> str:
    """The state of a base as one line: loading and how far, ready and where it runs, or what went wrong and what to do."""
    if not coming.done:
        return _status("loading", base_id, coming.line, coming.fraction, halt=monotonic() - coming.since > SHORT)
    if coming.error is not None:
        if not isinstance(coming.error, EXPECTED):
            raise coming.error
        todo = coming.error.fix or "Choose another base in the Library."
        return _status("error", base_id, f"{coming.error.what}. {todo} Maps and merges work without it.")
    base = coming.base()
    precision = str(base.dtype).removeprefix("torch.")
    return _status("ready", base.info.title, f"ready on {base.device}, {precision}")


def watch(session: Session, request: gr.Request) -> Iterator[tuple[Any, Any]]:
    """Follow the loading of the session's base until it is ready or failed, or the page has another one."""
    coming = loading(session.base)
    with _watching.begin(str(request.session_hash)) as turn:
        for _ in coming.watch(turn):
            if not turn.current:
                break
            yield describe(session.base, coming), gr.Button(visible=False)
        if turn.current:
            yield describe(session.base, coming), gr.Button(visible=coming.error is not None)
        else:
            yield gr.skip(), gr.skip()


@told
def halt(session: Session, request: gr.Request) -> None:
    """Stop loading the session's base, unless others wait for it."""
    coming = peek(session.base)
    if coming and not coming.done and not coming.give_up(_watching.of(str(request.session_hash))):
        gr.Info("Others wait for this base too, so it goes on loading.")


def settle(session: Session, settled: int) -> tuple[Any, int]:
    """Put picks aside that are for bases of another kind, now that it is known what the base makes."""
    fit = kinds.turned(session)
    return (gr.skip() if fit == session else fit), settled + 1


def strip(session: Session) -> str:
    """What is picked and what was made of it, in the colours that every view uses."""
    session = kinds.own(session)
    entries = shelf(session)
    names = {pick.key: escape(title_of(session, entries[pick.key])) for pick in session.picks}
    picks = [f"<span>{fragments.swatch((p.slot,))}{names[p.key]}{_times(p.weight)}</span>" for p in session.picks]
    made = [f"<span>{fragments.swatch(m.slots)}{escape(m.name)}</span>" for m in session.merges]
    picked = "".join(picks) or '<span class="by-subtle">no adapters</span>'
    made += [f"<span>{fragments.swatch(session.slots(e.adapters))}{escape(e.name)}</span>" for e in session.edited]
    made += [f"<span>{fragments.swatch(session.slots(g.experts))}{escape(g.name)}</span>" for g in session.gates]
    merged = f'<span class="by-subtle">Combined</span>{"".join(made)}' if made else ""
    return f'<div class="by-legend" role="group" aria-label="Picked"><span class="by-subtle">Picked</span>{picked}{merged}</div>'


def _times(weight: float) -> str:
    return "" if weight == 1 else f' <b class="by-num">×&thinsp;{weight:g}</b>'


def wire(top: Header, session: Followed, based: list[Any], cards_shown: gr.HTML, settled: Followed) -> None:
    """Connect the header's events; after each of ``based`` another base may be wanted; ``settled`` changes when it is there."""
    session.follow(strip, [session], [top.strip])
    session.follow(offer, [session], [top.other])
    state, each = [top.status, top.again], {**PRIVATE, "trigger_mode": "multiple"}
    watched = [
        listen(watch, [session], state, **each) for listen in (*(event.then for event in based), top.again.click)
    ]
    top.status.halt(halt, [session], None, **PRIVATE)
    for event in watched:  # now it is known what the base makes, and which adapters fit
        event.then(settle, [session, settled], [session, settled], **ALONE)
    settled.follow(cards.draw, [session], [cards_shown])
