"""What the Compare tab does: plan, say how long it will take, run, mark, export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from backends.streamed import streamed
from components import fragments, kinds, queueing
from components.compare import (
    ahead,
    aligning,
    axes_box,
    blind,
    comparison,
    document,
    examples,
    export,
    pictures,
    running,
)
from components.compare.blind import Ballot
from components.compare.comparison import Comparison, Scored
from components.compare.form import Form
from components.compare.gallery import Gallery
from components.compare.plan import Plan
from components.compare.tab import (
    IDLE,
    NOTHING,
    REPORT,
    CompareTab,
    awaited,
    read_prompts,
    refresh,
    turn,
)
from components.compare.votes import Vote
from components.events import AT_ONCE, MODEL, PRIVATE, newest
from components.followed import Followed, Followers
from components.messages import told
from components.session.remembered import Remembered
from components.session.state import Session
from components.stoppable import buttons, halt, waiting
from components.theme import css
from components.work import lines, loading
from lego import AdapterError
from mole.cli import clock

Found = Comparison | Gallery | None
AHEAD = "Computed ahead. Compare runs it here; other variants, prompts and settings too."


def expect(session: Session | None, *settings: Any) -> str:
    """How many texts or pictures the settings make, and how long that will take; or what is wrong with them."""
    if session is None:
        return ""
    form, draws = Form.of(settings), kinds.of_base(session.base) == kinds.IMAGE
    try:
        found, wanted = form.plan(session, draws), form.wanted(draws)
        running.check(found, draws)
        seconds = running.expected(session.base, found, wanted)
    except AdapterError as error:
        return fragments.note(str(error))
    merges = f"{len(found.merges)} merge{'s' if len(found.merges) > 1 else ''} first, then " if found.merges else ""
    cells = f"{found.count} {'pictures' if draws else 'texts'}" if found.count > 1 else "one cell"
    time = f", about {clock(max(1, seconds))}" if seconds is not None else ""
    return fragments.subtle(f"{merges}{cells} ({running.counted(found)}){time}")


def follow(
    session: Session, suited: str | None, chosen: list[str], known: list[str], *axes: str | None
) -> tuple[Any, ...]:
    """What a session changes on the tab, in one message so that nothing jumps: variants, examples, axes, and the settings."""
    offered = axes_box.refresh(session, *axes)
    return *refresh(session, chosen, known), examples.draw(session), *offered, *turn(session, suited)


def show() -> tuple[Any, ...]:
    """Go to the tab, and say that a comparison is about to begin."""
    return gr.Tabs(selected="compare"), *waiting()


@told
def start(session: Session, known: list[str], suited: str | None, *settings: Any) -> Iterator[tuple]:
    """Compare, once the base is there and it is known what it makes: texts or pictures."""
    form, coming = Form.of(settings).knowing(session, known), loading(session.base)
    read_prompts(form.prompts)
    for _ in coming.watch():
        yield awaited(coming), gr.skip(), None, *(gr.skip(),) * 4, *buttons(busy=True)
    draws = coming.base().info.kind == kinds.IMAGE
    form = form.suiting(session.base, suited) if draws else form
    planned, wanted = form.plan(session, draws), form.wanted(draws)
    against, ballot = marked(planned, form.against), None
    if form.blind:
        ballot = blind.ballot(len(planned.cells), len(planned.prompts), len(planned.seeds))
    shown = "" if ballot else gr.skip()
    recipe = form.recipe(session, draws)
    yield gr.skip(), shown, None, offer(planned, against), ballot, None, recipe, *buttons(busy=True)
    found: Found = None
    for line, found in running.every(session.base, planned, wanted, form.judge):
        # What is judged blind may be revealed meanwhile: the grid is then drawn by that, and once more after the end.
        shown, judged = redraw(found, against, ballot, form.scores, running=True), gr.skip()
        if ballot:
            shown, judged = gr.skip(), found
        yield line, shown, found, gr.skip(), gr.skip(), judged, gr.skip(), *buttons(busy=True)
    yield line, gr.skip(), found, *(gr.skip(),) * 4, *buttons(busy=False)


@told
def at_once(session: Session, asked: int, known: list[str], suited: str | None, *settings: Any) -> tuple[Any, ...]:
    """What was computed ahead, however busy the model is; where nothing was, one comparison more is ``asked`` for."""
    form, draws = Form.of(settings).knowing(session, known), kinds.of_base(session.base) == kinds.IMAGE
    form = form.suiting(session.base, suited) if draws else form
    found = None
    if not form.blind and form.judge in (aligning.NONE, aligning.usual(session.base)):
        planned = form.plan(session, draws)
        found = ahead.found(session, planned, form.wanted(draws))
    if found is None:
        line, *both = waiting()
        return line, *(gr.skip(),) * 6, *both, asked + 1
    against = marked(planned, form.against)
    shown, line = redraw(found, against, None, form.scores), fragments.subtle(AHEAD)
    recipe = form.recipe(session, draws)
    return line, shown, found, offer(planned, against), None, None, recipe, *buttons(busy=False), asked


def marked(planned: Plan, against: str) -> str:
    """The column whose texts the others are marked against: the one that was chosen, else the base, in a grid of axes the first."""
    names = planned.names
    if against in names or against == NOTHING[1]:
        return against
    return "Base" if "Base" in names else names[0]


def offer(planned: Plan, against: str) -> Any:
    """The columns that texts can be marked against."""
    return gr.Dropdown([NOTHING, *planned.names], value=against)


def ended(found: Found, against: str, ballot: Ballot | None, scores: Sequence[Scored]) -> tuple[Any, ...]:
    """After a stop or an error: keep what came, set the buttons back."""
    line = "" if found and found.finished else fragments.subtle("Stopped.")
    return line, redraw(found, against, ballot, scores), *buttons(busy=False)


def redraw(
    found: Found, against: str, ballot: Ballot | None = None, scores: Sequence[Scored] = (), running: bool = False
) -> str:
    """The texts, with what differs from one column's marked; or the pictures; nothing while they are judged blind."""
    if ballot is not None:
        return ""
    if isinstance(found, Gallery):
        return pictures.draw(found, running)
    return comparison.draw(found, bool(against), running, against, scores) if found else IDLE


def reveal(found: Found, against: str, scores: Sequence[Scored]) -> tuple[None, str]:
    """End blind judging and show everything with its name."""
    return None, redraw(found, against, None, scores)


@told
def exports(recipe: Remembered | None, found: Found, stamp: bool, ballot: Ballot | None) -> tuple[Any, Any]:
    """Files of the comparison for the two export buttons; none while it is judged blind."""
    if found is None or ballot is not None or (isinstance(found, Gallery) and not found.finished):
        return gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)
    if isinstance(found, Gallery):
        files = export.gallery_files(found, recipe if stamp else None)
    else:
        files = export.comparison_files(found, recipe if stamp else None)
    return tuple(gr.DownloadButton(value=str(file), interactive=True) for file in files)  # type: ignore[return-value]


@told
def report(
    session: Session,
    recipe: Remembered | None,
    found: Found,
    cast: tuple[Vote, ...],
    ballot: Ballot | None,
    *settings: Any,
) -> Iterator[tuple[Any, Any]]:
    """One page of recipe, map, fidelity, comparison, scores and votes, ready to download.

    Raises:
        AdapterError: while it would tell what is being judged blind, or what is compared is not done.
    """
    form = Form.of(settings)
    if ballot is not None:
        raise AdapterError("the comparison is judged blind", None, "Press Reveal all first.")
    if found is not None and not found.finished:
        raise AdapterError("the comparison is not finished", None, "Wait for it, or compare again.")
    told_by = recipe or form.recipe(session, kinds.of_base(session.base) == kinds.IMAGE)
    made = []

    def work(tell: Any) -> None:
        given = session, told_by, found, form.scores, cast, css(), form.against
        made.append(document.page(*given, lambda text, part: tell((f"Making the report: {text}", part))))

    for line in lines(streamed(work, "report")):
        yield line, gr.skip()
    yield "", gr.DownloadButton(value=str(export.report_file(made[0])), visible=True)


@told
def example(session: Session, text: str, event: gr.EventData) -> str:
    """Put an example prompt into the box as a further line; the index comes from the page and is checked."""
    offered = examples.offered(session)
    if not isinstance(event.index, int) or not 0 <= event.index < len(offered):
        raise AdapterError("this example is not on offer any more", None, "Choose another.")
    line = offered[event.index].line
    lines = [old for old in text.splitlines() if old.strip()]
    return "\n".join(lines if line in lines else [*lines, line])


def wire(
    tab: CompareTab, session: Followed, settings: Followers, asked: list[Any], settled: Followed, tabs: gr.Tabs
) -> None:
    """Connect the tab's events.

    Args:
        settings: run after every change of what the tab takes.
        asked: the listeners of what asks for a comparison elsewhere, such as the header's button.
        settled: changes when the base is there.
        tabs: show this one where a comparison was asked for.
    """
    given = [session, tab.draw.suited, tab.variants, tab.known, *tab.axes.offered]
    session.follow(follow, given, tab.following)
    session.follow(examples.kept, [session, tab.known, tab.prompts], [tab.prompts])
    settled.follow(turn, [session, tab.draw.suited], tab.turned)
    tab.examples.example(example, [session, tab.prompts], [tab.prompts], **PRIVATE)
    wire_axes(tab, session)
    wire_runs(tab, session, asked, tabs)
    blind.wire(tab.blind)
    for followed in (session, settled, settings):
        followed.follow(expect, [session, *tab.settings], [tab.expected])


def wire_axes(tab: CompareTab, session: gr.State) -> None:
    """The section of the axes follows the session and its own choices."""
    axes = tab.axes
    seen = [axes.panel, tab.variants, axes.subject]
    for choice, values in ((axes.x, axes.x_values), (axes.y, axes.y_values)):
        newest([choice.input], axes_box.turn, [session, choice], [values])
    newest(
        [each.change for each in (tab.mode, axes.x, axes.y)],
        axes_box.shown,
        [tab.mode, axes.x, axes.y],
        seen,
        **AT_ONCE,
    )


def wire_runs(tab: CompareTab, session: gr.State, asked: list[Any], tabs: gr.Tabs) -> None:
    """Compare, Stop, marks and exports."""
    files = [tab.save_json, tab.save_html]
    after = [tab.progress, tab.grid, tab.run, tab.stop]
    given = [session, tab.known, tab.draw.suited, *tab.settings]
    clicked = tab.run.click(waiting, None, [tab.progress, tab.run, tab.stop], **PRIVATE)
    more = gr.State(0)  # how many comparisons were asked for elsewhere that were not computed ahead
    runs = [listen(start, given, tab.running, **MODEL) for listen in (clicked.then, more.change)]
    for listen in (clicked.then, more.change):
        queueing.follow(listen, "model", tab.progress)
    kept = [tab.recipe, tab.found, tab.stamp, tab.blind.ballot]
    seen = [tab.found, tab.against, tab.blind.ballot, tab.scores]
    for listen in asked:
        shown = listen(
            at_once, [session, more, tab.known, tab.draw.suited, *tab.settings], [*tab.running, more], **PRIVATE
        )
        # The tab last: what is filled unseen moves nothing.
        shown.then(lambda: gr.Tabs(selected="compare"), None, [tabs], **PRIVATE)
        shown.success(exports, kept, files, **PRIVATE)
        shown.failure(ended, seen, after, **PRIVATE)
    for one in runs:
        one.success(redraw, seen, [tab.grid], **PRIVATE)
        one.success(exports, kept, files, **PRIVATE)
        one.success(expect, [session, *tab.settings], [tab.expected], **PRIVATE)
        one.failure(ended, seen, after, **PRIVATE).then(exports, kept, files, **PRIVATE)
    halt(tab.stop, runs)
    newest([tab.stamp.input], exports, kept, files)
    newest([tab.against.input, tab.scores.change], redraw, seen, [tab.grid])
    revealed = tab.blind.reveal.click(
        reveal, [tab.found, tab.against, tab.scores], [tab.blind.ballot, tab.grid], **PRIVATE
    )
    revealed.then(exports, kept, files, **PRIVATE)
    told_by = [session, tab.recipe, tab.found, tab.blind.cast, tab.blind.ballot, *tab.settings]
    made = tab.make_report.click(report, told_by, [tab.reporting, tab.report], **{**PRIVATE, "concurrency_limit": 2})
    made.failure(lambda: fragments.subtle("No report was made."), None, [tab.reporting], **PRIVATE)
    tab.reporting.halt(None, None, None, cancels=[made], **PRIVATE)
    made.success(None, None, None, js=fragments.PRESS % REPORT, **PRIVATE)
