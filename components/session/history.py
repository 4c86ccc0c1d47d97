"""Undo and redo: every change of the session and of what is compared and how, up to a bound."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr

from components import kinds
from components.compare import axes_box
from components.compare import tab as compare
from components.compare.form import Form
from components.compare.tab import CompareTab
from components.events import ALONE, newest
from components.followed import Followers
from components.library.shelf import shelf
from components.session.remembered import AxesOf
from components.session.state import Session, columns

MOST = 60
"""Changes that can be undone."""
TYPING = 2.0
"""Seconds within which a setting that changes again is still being typed."""

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
class Moment:
    """The page at one time: the session, and the settings of Compare."""

    session: Session
    form: Form

    @classmethod
    def of(cls, session: Session, settings: tuple[Any, ...]) -> Moment:
        """From the page; how a result is looked at or judged is no part of it."""
        form = Form.of(settings)
        return cls(session, replace(form, ids=tuple(form.ids), against="", blind=False, scores=(), judge=""))

    def changed(self, other: Moment) -> list[str]:
        """The settings in which two moments differ."""
        return [each.name for each in fields(Form) if getattr(self.form, each.name) != getattr(other.form, each.name)]


@dataclass(frozen=True)
class History:
    """The page as it was, is, and would be again.

    Attributes:
        past, present, future: what undo and redo walk through.
        since: when a person last changed it, in seconds of a monotonic clock.
        before: the present before settings changed, as long as it is not known whether a person did that.
    """

    past: tuple[Moment, ...] = ()
    present: Moment | None = None
    future: tuple[Moment, ...] = ()
    since: float = 0.0
    before: Moment | None = None

    def record(self, moment: Moment, now: float) -> History:
        """After a change of the session."""
        before = self.present
        if before is None or moment.session in (before.session, kinds.turned(before.session)):
            # The same one, or picks that do not fit a base have stepped aside by themselves.
            return replace(self, present=moment, before=None)
        return History((*self.past, before)[-MOST:], moment, since=now)

    def enter(self, moment: Moment, now: float) -> History:
        """After a person changed a setting."""
        before = self.present
        if moment == before and self.before is not None:  # the change itself was heard of first
            return replace(self, present=self.before, before=None).enter(moment, now)
        if before is None or moment == before:
            return self
        if self._typing(moment, now):
            return replace(self, present=moment, since=now, before=None)
        return History((*self.past, before)[-MOST:], moment, since=now)

    def follow(self, moment: Moment) -> History:
        """After settings of the same session changed, perhaps by themselves: that is part of the change before."""
        if self.present is None or moment.session != self.present.session or moment == self.present:
            return self
        return replace(self, present=moment, before=self.present)

    def _typing(self, moment: Moment, now: float) -> bool:
        """Whether a change is one more letter of the change before."""
        if not self.past or self.present is None or now - self.since > TYPING:
            return False
        if not self.past[-1].session == self.present.session == moment.session:
            return False
        return self.past[-1].changed(self.present) == self.present.changed(moment)

    def undo(self, now: float) -> History:
        """One change back, where there is one."""
        if not self.past or self.present is None:
            return self
        return History(self.past[:-1], self.past[-1], (self.present, *self.future), now)

    def redo(self, now: float) -> History:
        """One undone change again, where there is one."""
        if not self.future or self.present is None:
            return self
        return History((*self.past, self.present), self.future[0], self.future[1:], now)


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


Held = tuple[Any, Any, Any]
"""The history and both buttons, as far as they change."""


def begin(session: Session, *settings: Any) -> Held:
    """Nothing to undo: the page as it opens."""
    return _held(None, History(present=Moment.of(session, settings), since=time.monotonic()))


def record(session: Session | None, held: History | None, *settings: Any) -> Held:
    """Remember a change of the session."""
    if session is None:
        return _held(held, held)
    return _held(held, (held or History()).record(Moment.of(session, settings), time.monotonic()))


def enter(session: Session | None, held: History | None, *settings: Any) -> Held:
    """Remember a change of a setting."""
    if session is None or held is None:
        return _held(held, held)
    return _held(held, held.enter(Moment.of(session, settings), time.monotonic()))


def follow(session: Session | None, held: History | None, *settings: Any) -> Held:
    """Settings changed, perhaps by themselves."""
    if session is None or held is None:
        return _held(held, held)
    return _held(held, held.follow(Moment.of(session, settings)))


def _held(before: History | None, found: History | None) -> Held:
    if found is None or found == before:
        return (gr.skip(),) * 3
    return found, gr.Button(interactive=bool(found.past)), gr.Button(interactive=bool(found.future))


def back(held: History | None) -> tuple[Any, ...]:
    """The page before the last change."""
    return _moved(held, held and held.undo(time.monotonic()))


def forth(held: History | None) -> tuple[Any, ...]:
    """The page after the change that was undone."""
    return _moved(held, held and held.redo(time.monotonic()))


def _moved(held: History | None, found: History | None) -> tuple[Any, ...]:
    if held is None or found is None or found == held or held.present is None or found.present is None:
        return (gr.skip(),) * (5 + SETTINGS)
    session, form = found.present.session, found.present.form
    moved = (session, session.base) if session != held.present.session else (gr.skip(), gr.skip())
    settings = (gr.skip(),) * SETTINGS if form == held.present.form else _settings(session, form)
    return *_held(held, found), *moved, *settings


SETTINGS = 19
"""How many components ``_settings`` fills: the variants, those that are known, and what `CompareTab.kept` names."""


def _settings(session: Session, form: Form) -> tuple[Any, ...]:
    """The settings of Compare as they were."""
    variants = compare.offer(columns(kinds.own(session), shelf(session)), form.ids)
    typed = {name: getattr(form, name) for name in ("x", "x_values", "y", "y_values")}
    axes = axes_box.restored(session, AxesOf(**typed), form.subject)
    texts = form.length, form.temperature, form.seed, form.format
    return *variants, form.prompts, form.mode, *axes, *texts, *form.drawing


def wire(
    box: HistoryBox,
    session: gr.State,
    settings: Followers,
    base: gr.Dropdown,
    tab: CompareTab,
    opened: Any,
) -> list[Any]:
    """Connect the buttons; gives the events after which another base may be wanted.

    Args:
        settings: run after every change of what ``tab`` takes.
        base: the choice of the base.
        opened: when the page has opened.
    """
    given, shown, held = [session, box.held, *tab.settings], [tab.variants, *tab.kept], [box.held, box.undo, box.redo]
    session.change(record, given, held, **ALONE)
    newest([each.input for each in shown], enter, given, held, **ALONE)
    settings.follow(follow, given, held)
    opened.success(begin, [session, *tab.settings], held, **ALONE)
    moved = [*held, session, base, tab.variants, tab.known, *tab.kept]
    return [
        button.click(function, [box.held], moved, **ALONE) for button, function in ((box.undo, back), (box.redo, forth))
    ]
