"""One selection for all views of the map: how each of them sets it, and how the map, the table, the details and the strip follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from components import fragments
from components.map import maps, unit_details, views
from components.map.unit_figures import Marks
from components.session.state import Selection, Session
from lego import AdapterError
from lego.unitset import UnitSet

LISTED = 100
"""Units in the table."""

GONE = "Select again: the map has changed."


def caught(
    session: Session,
    seen: maps.View,
    chosen: Selection,
    view: str,
    found: Sequence[UnitSet],
    origin: object,
    value: Any,
) -> Selection:
    """The selection after something was selected somewhere.

    Args:
        session, seen: whose, and on which map.
        chosen: what was selected before.
        view: the view beside the map.
        found: the clusters of the latest ablation.
        origin, value: as the browser sends them: ``map`` with rows, ``unit`` with an id, ``layer`` with its number, ``view`` with the
            place of a cell, ``ablated`` with the number of a cluster, ``clear``.

    Raises:
        AdapterError: when the value names nothing that is there.
    """
    if origin == "clear":
        return Selection()
    if origin == "unit":
        return chosen.of_one(unit_details.checked(session, value))
    if origin == "map":
        units = maps.unit_set(seen, maps.checked(seen, value))
    elif origin == "layer" and isinstance(value, int):
        units = maps.unit_set(seen, np.flatnonzero(maps.layers(seen)[0] == value))
    elif origin == "view":
        units = views.units_at(session, seen, view, value)
    elif origin == "ablated" and isinstance(value, int) and 0 <= value < len(found):
        units = found[value]
    else:
        raise AdapterError("this cannot be selected", None, GONE)
    alone = next(iter(units)) if len(units) == 1 else None
    return replace(chosen, units=units, primary=alone)


def marks(seen: maps.View, chosen: Selection) -> Marks:
    """What the map shows of the selection: what is not selected grey, lines from the primary unit to its nearest."""
    rows = maps.rows_of(seen, chosen.units) if chosen.units else None
    primary, pinned = (maps.row_of(seen, unit) for unit in (chosen.primary, chosen.pinned))
    links = () if primary is None else tuple((primary, i) for i, _ in unit_details.nearest(seen, primary))
    return Marks(rows, tuple(row for row in (primary, pinned) if row is not None), links)


def table(seen: maps.View, chosen: Selection) -> str:
    """The selected units, or the strongest of the map where none is; every row selects."""
    rows = maps.rows_of(seen, chosen.units)
    order = rows if chosen.units else np.arange(len(seen.units))
    order = order[np.argsort(-seen.units.norm[order], kind="stable")][:LISTED]
    cells = [_row(seen, int(i), chosen) for i in order]
    head = ["Adapter", "Module", "Rank index", "Norm", "Cluster"]
    return _title(seen, chosen, len(rows)) + fragments.table(head, cells, right=(2, 3, 4), label="Bricks", tall=True)


def _title(seen: maps.View, chosen: Selection, here: int) -> str:
    count = len(chosen.units)
    if not count:
        return fragments.heading("Bricks", f"The strongest {min(LISTED, len(seen.units))}; select one for its details.")
    away = f"{count - here} of them are in modules that this map does not show. " if here < count else ""
    more = f"The strongest {LISTED} of those on this map:" if here > LISTED else ""
    return fragments.heading(f"{count:,} brick{'s' if count > 1 else ''} selected", away + more)


def _row(seen: maps.View, i: int, chosen: Selection) -> list[str]:
    key, module, index = unit = maps.unit_id(seen, i)
    group = seen.groups[seen.keys.index(key)]
    name = fragments.pick("unit", unit, f"{module}, rank index {index}", unit == chosen.primary, inner=escape(module))
    swatch = f"{fragments.swatch((group.slot,))} {escape(group.name)}"
    return [swatch, name, str(index), f"{seen.units.norm[i]:.3f}", str(seen.clusters[i] + 1)]


def strip(seen: maps.View, chosen: Selection) -> str:
    """The layers of the map side by side, each filled by the share of its units that is selected; a click selects a layer."""
    layer, labels, along = maps.layers(seen)
    if len(labels) < 2:
        return ""
    total = np.bincount(layer, minlength=len(labels))
    own = np.bincount(layer[maps.rows_of(seen, chosen.units)], minlength=len(labels))
    cells = [
        fragments.pick(
            "layer",
            i,
            f"{along} {label}: {own[i]} of {total[i]} bricks selected",
            look="by-layer",
            inner=f'<i style="height:{100 * own[i] / max(1, total[i]):.0f}%"></i><span>{escape(label)}</span>',
        )
        for i, label in enumerate(labels)
    ]
    name = f"{along.capitalize()}s"
    return f'<div class="by-strip" role="group" aria-label="{name}"><small>{name}</small>{"".join(cells)}</div>'
