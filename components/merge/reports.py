"""A merge report for reading: a table of sources, the numbers that matter, and a picture per module."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go

import lego
from backends import library
from backends.library import Entry
from components import figures, fragments
from components.map.blocks import of_pipeline, place_of, places, running_order
from components.session.state import Session, title_of
from lego import MergeReport, module_kind, module_layer
from lego.report import SourceReport, spread
from lego.weights import shown

MEASURES = ("relative error", "norm ratio", "cosine", "rank")


def sources(session: Session, entries: dict[str, Entry]) -> str:
    """What will be merged: the picked adapters with their weights."""
    title = fragments.heading("What is merged", "The picked adapters with their weights; change both in the Library.")
    if not session.picks:
        return title + fragments.empty("Nothing is picked", "Pick adapters in the Library.")
    pieces = "".join(
        f"<span>{fragments.swatch((pick.slot,))}{escape(title_of(session, entries[pick.key]))} "
        f'<b class="by-num">×&thinsp;{pick.weight:g}</b></span>'
        for pick in session.picks
    )
    return f'{title}<div class="by-legend" style="margin-top:8px">{pieces}</div>'


def current(report: MergeReport, session: Session) -> bool:
    """Whether a merge is of what is picked now, with its weights."""
    picked = {library.get(pick.key).sha256: pick.weight for pick in session.picks}
    return picked == {source.sha256: source.weight for source in report.sources}


def table(report: MergeReport, name: str, old: str = "") -> str:
    """The report as HTML: numbers first, then warnings, sources and the settings; before them what is ``old`` about it."""
    numbers = fragments.facts(
        [
            ("Rank", spread([report.rank_min, report.rank_max])),
            ("Modules", str(report.modules)),
            ("Norm, exact sum", f"{report.norm_before:.3g}"),
            ("Norm, merged", f"{report.norm_after:.3g}"),
            ("Relative error", f"{report.relative_error:.3f}"),
            ("Norm ratio", f"{report.norm_ratio:.3f}"),
            ("Cosine", f"{report.cosine:.3f}"),
            ("Time", f"{report.seconds:.2f} s"),
        ]
    )
    rows = [_source(source) for source in report.sources]
    names = ["Source", "Weight", "Rank", "Modules", "Norm", "sha256"]
    about = f"{lego.method(report.method).title}: {_settings(report)}. Measured against the exact weighted sum of the sources."
    if report.export_error is not None:
        about += f" Rounding to the file's precision: relative error {report.export_error:.1e}."
    warnings = "".join(fragments.note(warning) for warning in report.warnings)
    dated = fragments.note(old) if old else ""
    sources_table = fragments.table(names, rows, right=(1, 2, 3, 4), label="Sources")
    return fragments.heading(name, about) + dated + numbers + warnings + sources_table


def _source(source: SourceReport) -> list[str]:
    rank, digest = spread(source.ranks), f"<code>{escape(source.sha256[:12])}</code>"
    return [escape(source.name), escape(shown(source.weight)), rank, str(source.modules), f"{source.norm:.3g}", digest]


def _settings(report: MergeReport) -> str:
    settings = {name.replace("_", " "): value for name, value in report.parameters.items()}
    words = {True: "on", False: "off"}
    told = [f"{name} {words[value] if isinstance(value, bool) else value}" for name, value in settings.items()]
    return ", ".join([*told, f"seed {report.seed}"])


def chart(report: MergeReport, measure: str) -> go.Figure:
    """One measure for every module: kinds as rows, layers or a pipeline's blocks as columns."""
    field = measure.replace(" ", "_") if measure in MEASURES else "relative_error"
    modules = sorted((m.module for m in report.per_module), key=running_order)
    blocks = places(filter(of_pipeline, modules))
    layers: list = blocks or sorted({module_layer(module) for module in modules})
    spots = {module: _spot(module) for module in modules}
    kinds = list(dict.fromkeys(kind for kind, _ in spots.values()))
    values = np.full((len(kinds), len(layers)), np.nan)
    for m in report.per_module:
        kind, layer = spots[m.module]
        values[kinds.index(kind), layers.index(layer)] = getattr(m, field)
    return figures.per_module(kinds, layers, values, measure, "block" if blocks else "layer")


def _spot(module: str) -> tuple[str, int | str]:
    """The row and the column of a module."""
    if of_pipeline(module):
        return place_of(module).kind, place_of(module).label
    return module_kind(module), module_layer(module)
