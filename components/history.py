"""Undo and redo: every change of the session, up to a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components import kinds
from components.session import Session

MOST = 60
"""Changes that can be undone."""

KEYS = """
document.addEventListener('keydown', (event) => {
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || event.altKey || (key !== 'z' && key !== 'y')) return;
  const typed = 'input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable=true]';
  if (event.target.closest?.(typed)) return;
  event.preventDefault();
  document.querySelector(key === 'y' || event.shiftKey ? 'button#redo, #redo button' : 'button#undo, #undo button')?.click();
});
"""


@dataclass(frozen=True)
class History:
    """The session as it was, is, and would be again."""

    past: tuple[Session, ...] = ()
    present: Session | None = None
    future: tuple[Session, ...] = ()

    def record(self, session: Session) -> History:
        """After a change. What follows by itself from a change before (picks that do not fit the base step aside) is part of it."""
        if self.present is None or session == self.present:
            return replace(self, present=session)
        if session == kinds.turned(self.present):
            return replace(self, present=session)
        return History((*self.past, self.present)[-MOST:], session)

    def undo(self) -> History:
        """One change back, where there is one."""
        if not self.past or self.present is None:
            return self
        return History(self.past[:-1], self.past[-1], (self.present, *self.future))

    def redo(self) -> History:
        """One undone change again, where there is one."""
        if not self.future or self.present is None:
            return self
        return History((*self.past, self.present), self.future[0], self.future[1:])


@dataclass(frozen=True)
class HistoryBox:
    """The components that events need."""

    undo: gr.Button
    redo: gr.Button
    held: gr.State


def create() -> HistoryBox:
    """Lay the buttons out; nothing is wired yet."""
    small: dict[str, Any] = {"size": "sm", "min_width": 70, "scale": 0, "interactive": False}
    undo = gr.Button("Undo", elem_id="undo", **small)
    redo = gr.Button("Redo", elem_id="redo", **small)
    gr.HTML("<span hidden></span>", js_on_load=KEYS, visible="hidden")
    return HistoryBox(undo, redo, gr.State(None))


def begin(session: Session) -> History:
    """Nothing to undo: the page as it opens."""
    return History(present=session)


def record(session: Session | None, held: History | None) -> Any:
    """Remember a change."""
    if session is None:
        return gr.skip()
    found = (held or History()).record(session)
    return gr.skip() if found == held else found


def back(held: History | None) -> tuple[Any, Any, Any]:
    """The session before the last change, and its base."""
    return _moved(held, held and held.undo())


def forth(held: History | None) -> tuple[Any, Any, Any]:
    """The session after the change that was undone, and its base."""
    return _moved(held, held and held.redo())


def _moved(held: History | None, found: History | None) -> tuple[Any, Any, Any]:
    if found is None or found == held or found.present is None:
        return (gr.skip(),) * 3
    return found, found.present, found.present.base


def able(held: History | None) -> tuple[Any, Any]:
    """Which of the two can be pressed."""
    return gr.Button(interactive=bool(held and held.past)), gr.Button(interactive=bool(held and held.future))


def wire(box: HistoryBox, session: gr.State, base: gr.Dropdown, ready: Any, quick: dict[str, Any]) -> list[Any]:
    """Connect the buttons; ``ready`` is when the page has opened; gives the events after which another base may be wanted."""
    session.change(record, [session, box.held], [box.held], **quick)
    ready.success(begin, [session], [box.held], **quick)
    box.held.change(able, [box.held], [box.undo, box.redo], **quick)
    moved = [box.held, session, base]
    return [
        button.click(function, [box.held], moved, **quick) for button, function in ((box.undo, back), (box.redo, forth))
    ]
