"""Running a plan: merges first and outermost, then every batch, each yield a line that says how far and all that came so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from backends import library
from backends.bases import TextBase
from backends.image import Drawing, draw
from backends.text import Sampling, generate
from components import fragments, paces
from components.compare import aligning, comparison, drawing, gallery
from components.compare import tab as compare
from components.compare.cells import Merging
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.compare.plan import Plan, Run
from components.merge import making
from components.session.state import Column
from components.work import REDRAWN, Job, loading
from lego import AdapterError
from mole.cli import clock

MOST_MERGES = 24
TEXT, PICTURE = "text", "picture"
READING = 8
"""Tokens of an answer that take about as long as reading its prompt."""


@dataclass
class Progress:
    """How far a plan is: of all its texts or pictures, with the time that is left."""

    total: int
    done: int = 0
    start: float = field(default_factory=monotonic)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return monotonic() - self.start

    def line(self, text: str, part: float) -> str:
        """As the page shows it; ``part`` is what the current batch adds, in texts or pictures."""
        share = (self.done + part) / max(1, self.total)
        return fragments.progress(text + fragments.left(self.seconds, share), share)


def check(plan: Plan, draws: bool) -> None:
    """Refuse more than one run takes.

    Raises:
        AdapterError: with the limit.
    """
    if draws:
        drawing.check_count(len(plan.cells), len(plan.prompts), len(plan.seeds))
    elif plan.count > compare.MOST_ROWS:
        what = f"{len(plan.cells)} columns × {len(plan.prompts)} prompts are too many"
        raise AdapterError(what, None, f"One run takes {compare.MOST_ROWS} texts.")
    if len(plan.merges) > MOST_MERGES:
        raise AdapterError(f"{len(plan.merges)} merges are too many", None, f"One run takes {MOST_MERGES}.")


def expected(base: str, plan: Plan, wanted: Sampling | Drawing) -> float | None:
    """Seconds that a plan will take: as long as the same took here before, else a guess; None while the base is not there."""
    coming = loading(base)
    if not coming.done or coming.error is not None:
        return None
    loaded = coming.base()
    what, first = (TEXT, READING) if isinstance(loaded, TextBase) else (PICTURE, 0)
    usual = wanted.max_new_tokens if isinstance(wanted, Sampling) else wanted.steps
    rows = len(plan.prompts) * max(1, len(plan.seeds))
    amount = sum(first + float(dict(cell.settings).get("steps", usual)) for cell in plan.cells) * rows
    running = paces.expected(what, base, amount)
    merging = sum(paces.expected(paces.MERGED, "", size_of(merge)) or 0.0 for merge in plan.merges)
    return merging + (paces.guessed(loaded, amount) if running is None else running)


def size_of(merging: Merging) -> int:
    """Parameters of a merge's sources."""
    return sum(library.get(key).parameters for key, _ in merging.weights)


def merged(merging: Merging, number: int, total: int) -> Iterator[str | dict[Merging, str]]:
    """Make one merge: lines that say how far, then its key in the library."""
    given = (merging.weights, merging.method, dict(merging.parameters), merging.seed, "")
    title = making.title_of(merging.method, dict(merging.parameters))
    with Job(lambda progress: making.make(*given, progress=progress)) as job:
        for done, modules in job.steps():
            text = f"merge {number} of {total}: {title}"
            yield fragments.progress(text, done / modules if modules else None)
        yield {merging: job.result().key}


def prepared(plan: Plan) -> Iterator[tuple[str, list[Column], Run | None]]:
    """Every batch with the columns as they are by then; before those that need a merge, lines that say how far that is."""
    made: dict[Merging, str] = {}
    for merging, runs in plan.groups:
        if merging:
            for step in merged(merging, len(made) + 1, len(plan.merges)):
                if isinstance(step, str):
                    yield step, [], None
                else:
                    made |= step
        for run in runs:
            yield "", plan.columns(made), run


def every(base: str, plan: Plan, wanted: Sampling | Drawing, judge: str) -> Iterator[tuple[str, Any]]:
    """Texts or pictures of every column, as they come; ``judge`` is the model that says how well pictures fit."""
    if isinstance(wanted, Drawing):
        return pictures(base, plan, wanted, judge)
    return texts(base, plan, wanted)


def texts(base: str, plan: Plan, wanted: Sampling) -> Iterator[tuple[str, Comparison]]:
    """Let every column answer every prompt."""
    check(plan, draws=False)
    loaded, far, most = loading(base).base(), Progress(plan.count), wanted.max_new_tokens
    if not isinstance(loaded, TextBase):
        raise AdapterError("draws pictures", loaded.info.title)
    found = comparison.begin(base, plan.columns({}), plan.prompts, compare.settings_of(wanted), plan.own, plan.layout)
    yield fragments.progress(f"{plan.count} texts", None), found
    for line, columns, run in prepared(plan):
        if run is None:
            yield line, found
            continue
        found = replace(found, weightings=tuple(column.weighting for column in columns))
        own, start, longest = [columns[i].variant for i in run.columns], monotonic(), 0
        each = len(own) * len(plan.prompts)
        for grid in generate(loaded, own, plan.prompts, replace(wanted, **dict(run.settings))):
            found = found.placed(run.columns, grid, False, far.seconds)
            longest = max(max(row) for row in grid.tokens)
            yield far.line(_batch(plan, far, f"token {longest} of at most {most}"), each * longest / most), found
        far.done += each
        paces.note(TEXT, base, each * (READING + longest), monotonic() - start)
    yield fragments.subtle(told(plan, far)), replace(found, finished=True, seconds=far.seconds)


def pictures(base: str, plan: Plan, wanted: Drawing, judge: str) -> Iterator[tuple[str, Gallery]]:
    """Draw every column, in one batch where memory and settings allow."""
    check(plan, draws=True)
    loaded, far, shown = loading(base).base(), Progress(plan.count), 0.0
    if isinstance(loaded, TextBase):
        raise AdapterError("draws no pictures", loaded.info.title)
    if loaded.guidance is None and any("guidance" in dict(own) for own in plan.own):
        raise AdapterError("has no guidance to vary", loaded.info.title, "Choose another axis.")
    wanted = replace(wanted, seeds=plan.seeds, guidance=None if loaded.guidance is None else wanted.guidance)
    settings = drawing.settings_of(wanted)
    found = gallery.begin(base, plan.columns({}), plan.prompts, plan.seeds, settings, plan.own, plan.layout)
    yield fragments.progress(f"{plan.count} pictures", None), found
    for line, columns, run in prepared(plan):
        if run is None:
            yield line, found
            continue
        found = replace(found, weightings=tuple(column.weighting for column in columns))
        own, start, steps = [columns[i].variant for i in run.columns], monotonic(), 0
        each = len(own) * len(plan.prompts) * len(plan.seeds)
        for sheet in draw(loaded, own, plan.prompts, replace(wanted, **dict(run.settings))):
            if sheet.finished or monotonic() - shown > REDRAWN:
                shown, found, steps = monotonic(), drawing.filled(found, sheet, run.columns), sheet.steps
                text = _batch(plan, far, f"step {sheet.step} of {sheet.steps}")
                yield far.line(text, each * sheet.step / max(1, sheet.steps)), found
        far.done += each
        paces.note(PICTURE, base, each * steps, monotonic() - start)
    found = replace(found, finished=True, files=found.shots, seconds=far.seconds)
    if judge != aligning.NONE:
        yield fragments.progress("Measuring alignment", None), found
        found = replace(found, scores=aligning.scores(found, judge))
    yield fragments.subtle(told(plan, far)), found


def _batch(plan: Plan, far: Progress, text: str) -> str:
    """What is running, and how much was done before it where a plan has several batches."""
    return (
        text
        if far.done == 0 and sum(len(runs) for _, runs in plan.groups) == 1
        else f"{far.done} of {plan.count} done, {text}"
    )


def counted(plan: Plan) -> str:
    """The numbers that make the count."""
    word = "variant" if plan.layout is None else "column"
    sizes: Sequence[tuple[Sequence[Any], str]] = ((plan.cells, word), (plan.prompts, "prompt"), (plan.seeds, "seed"))
    return " × ".join(f"{len(each)} {name}{'s' if len(each) > 1 else ''}" for each, name in sizes if each)


def told(plan: Plan, far: Progress) -> str:
    """What was done, in how long."""
    merges = len(plan.merges)
    before = f"{merges} merge{'s' if merges > 1 else ''}, " if merges else ""
    return f"{before}{counted(plan)} in {clock(far.seconds)}"
