"""The Merge tab: a method with its own parameters, the merge as a new variant, its report, and the download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import Any

import gradio as gr

import lego
from components import charts, controls, fragments, kinds, queueing
from components.compare import export
from components.events import ALONE, NEWEST, PRIVATE, newest
from components.followed import Followed
from components.library.shelf import shelf
from components.merge import making, reports
from components.messages import told
from components.session.state import Made, Session
from components.stoppable import buttons, halt
from components.work import Job
from lego import AdapterError

START = "lego"
NOTHING = fragments.empty("No merge yet", "Pick at least one adapter, choose a method and press Merge.")


@dataclass(frozen=True)
class MergeTab:
    """The components of the tab that events need."""

    sources: gr.HTML
    method: gr.Dropdown
    about: gr.HTML
    groups: list[gr.Column]
    values: list[Any]
    seed: gr.Number
    name: gr.Textbox
    run: gr.Button
    stop: gr.Button
    progress: gr.HTML
    made: gr.State
    shown: gr.Dropdown
    download: gr.DownloadButton
    report: gr.HTML
    measure: gr.Radio
    chart: charts.Chart
    reported: gr.State


def create() -> MergeTab:
    """Lay the tab out; nothing is wired yet."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            settings = _settings()
        with gr.Column(scale=3, min_width=320):
            result = _result()
    return MergeTab(*settings, gr.State(None), *result, gr.State(None))


def _settings() -> tuple[Any, ...]:
    sources = gr.HTML()
    choices = [(method.title, name) for name, method in lego.methods().items()]
    method = gr.Dropdown(choices, value=START, label="Method", filterable=False)
    about = gr.HTML(_about(START))
    groups, values = [], []
    for name, found in lego.methods().items():
        box, own = controls.group(found, visible=name == START)
        groups.append(box)
        values += own
    with gr.Row():
        name_box = gr.Textbox(
            label="Name", placeholder="named after its method", max_length=making.NAME_LIMIT, min_width=160
        )
        seed = gr.Number(0, label="Merge seed", precision=0, minimum=0, min_width=80)
    with gr.Column(elem_classes="by-merging plain"):
        progress = gr.HTML()
        with gr.Row():
            run_button = gr.Button("Merge", variant="primary")
            stop = gr.Button("Stop merging", visible=False)
    return sources, method, about, groups, values, seed, name_box, run_button, stop, progress


def _result() -> tuple[Any, ...]:
    with gr.Row(elem_classes="by-bottom"):
        shown = gr.Dropdown([], label="Report of", interactive=True, min_width=200, scale=3)
        download = gr.DownloadButton("Download adapter (zip)", interactive=False, min_width=160, scale=2)
    report = gr.HTML(NOTHING, label="Merge report")
    measure = gr.Radio(list(reports.MEASURES), value="relative error", label="Per module", visible=False)
    chart = charts.create("Merge per module", elem_id="per-module")
    return shown, download, report, measure, chart


def _about(name: str) -> str:
    method = lego.methods()[name]
    paper = f' <a href="{method.paper}" target="_blank" rel="noopener">Paper</a>' if method.paper else ""
    return f'<p class="by-subtle">{fragments.escape(method.summary)}{paper}</p>'


def choose(name: str) -> list[Any]:
    """Show the chosen method's own parameters and what it does."""
    return [_about(name), *(gr.Column(visible=name == other) for other in lego.methods())]


@told
def run(session: Session, method: str, seed: float | None, name: str, *values: Any) -> Iterator[tuple]:
    """Merge the picked adapters with progress; the result waits in ``made`` until it joins the session."""
    if not session.picks:
        raise AdapterError("no adapters are picked", None, "Pick some in the Library first.")
    parameters = controls.read_one(method, values)
    work = partial(making.make, session.weights, method, parameters, int(seed or 0), name)
    with Job(lambda progress: work(progress=progress)) as job:
        for done, total in job.steps():
            text = f"{done} of {total} modules" if total else "Reading the adapters"
            yield fragments.progress(text, done / total if total else None), None, *buttons(busy=True)
        entry = job.result()
    shown_name = named(session, name.strip()[: making.NAME_LIMIT] or making.title_of(method, parameters), entry.key)
    line = fragments.subtle(f"{shown_name} is merged: its report is here, and Compare has it.")
    yield line, Made(entry.key, shown_name, tuple(pick.slot for pick in session.picks)), *buttons(busy=False)


def named(session: Session, name: str, key: str) -> str:
    """The name of a merge, numbered where another of the session has it."""
    others = {old.name for old in kinds.own(session).merges if old.key != key}
    return next(each for each in chain([name], (f"{name} ({number})" for number in count(2))) if each not in others)


def join(session: Session, made: Made | None) -> tuple[Session, Any]:
    """Let the finished merge join the session's variants, numbered where one of its name is there, and show its report."""
    if made is None:
        return session, gr.skip()
    made = replace(made, name=named(session, made.name, made.key))
    session = session.join(made)
    return session, gr.Dropdown(_choices(kinds.own(session)), value=made.key)


def ended() -> tuple[Any, ...]:
    """Set the buttons back after a stop or an error."""
    return "", *buttons(busy=False)


def _choices(session: Session) -> list[tuple[str, str]]:
    return [(made.name, made.key) for made in reversed(session.merges)]


def refresh(session: Session, shown: str | None) -> tuple[str, Any]:
    """Say what will be merged, and offer the session's merges for its kind of base."""
    session = kinds.own(session)
    entries = shelf(session)
    keys = [made.key for made in reversed(session.merges)]
    value = shown if shown in keys else (keys[0] if keys else None)
    return reports.sources(session, entries), gr.Dropdown(_choices(session), value=value)


def reported(session: Session) -> tuple[Any, ...]:
    """What a report tells of a session: the rest may change without drawing it again."""
    return kinds.own(session).merges, session.weights


@told
def show(session: Session, shown: str | None, measure: str) -> tuple[Any, ...]:
    """The report of the chosen merge, its chart, and its download."""
    session = kinds.own(session)
    names = {made.key: made.name for made in session.merges}
    if not names:
        return NOTHING, gr.Radio(visible=False), None, gr.DownloadButton(interactive=False)
    if shown not in names:  # the choice is still on its way: several events may be
        shown = session.merges[-1].key
    report = making.report_of(shown)
    chart = reports.chart(report, measure)
    file = export.adapter_zip(shown, names[shown])
    old = "" if reports.current(report, session) else "Other adapters or weights are picked now: press Merge for those."
    return (
        reports.table(report, names[shown], old),
        gr.Radio(visible=True),
        chart,
        gr.DownloadButton(value=str(file), interactive=True),
    )


def wire(tab: MergeTab, session: Followed) -> None:
    """Connect the tab's events."""
    newest([tab.method.input], choose, [tab.method], [tab.about, *tab.groups])
    result = [tab.report, tab.measure, tab.chart, tab.download]
    asked = [session, tab.shown, tab.measure]
    session.follow(refresh, [session, tab.shown], [tab.sources, tab.shown])
    session.follow(reported, [session], [tab.reported])
    tab.reported.change(show, asked, result, **NEWEST)
    newest([tab.shown.input, tab.measure.input], show, asked, result)
    merging = {**PRIVATE, "concurrency_limit": 2, "concurrency_id": "merge"}
    settings = [session, tab.method, tab.seed, tab.name, *tab.values]
    running = tab.run.click(run, settings, [tab.progress, tab.made, tab.run, tab.stop], **merging)
    queueing.follow(tab.run.click, "merge", tab.progress)
    running.success(join, [session, tab.made], [session, tab.shown], **ALONE)
    running.failure(ended, None, [tab.progress, tab.run, tab.stop], **PRIVATE)
    halt(tab.stop, [running])
