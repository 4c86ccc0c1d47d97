"""What the page opens with, computed ahead: the first comparison of each kind of base, and UMAPs of its picks.

``python -m assets.build first`` writes it. It is found by what it was made from, so whatever has changed since is computed anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.numpy import save_file

from backends.image import Drawing
from backends.text import Sampling
from components import kinds
from components.compare import aligning, comparison, drawing, examples, export, gallery, plan, running
from components.compare import tab as compare
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery, Score
from components.compare.plan import Plan
from components.library.shelf import builtin_base, shelf, start_picks, start_session
from components.map import laid, maps
from components.merge import making
from components.session.state import Session, columns
from components.work import loading

FIRST = "first/comparison.json"


def first_session(kind: str) -> Session:
    """What a visitor finds on the built-in base of a kind, with the first merge."""
    session = start_session(builtin_base(kind))
    slots = tuple(pick.slot for pick in session.picks)
    return session.join(making.first(session.weights, slots)) if slots else session


def first_plan(session: Session) -> Plan:
    """What is compared at first sight, but for the noise."""
    every = columns(kinds.own(session), shelf(session))
    usual = compare.usual(every)
    prompts = compare.read_prompts(examples.first(session))
    return plan.side_by_side([column for column in every if column.id in usual], prompts)


def digest(session: Session, planned: Plan, wanted: Sampling | Drawing) -> str:
    """What decides a comparison. The first merge goes by its sources: another processor may round its last digits differently."""
    first = [made.key for made in session.merges if made == making.first(session.weights, made.slots)]
    cells = [[cell.weighting, cell.merging, cell.settings] for cell in planned.cells]
    text = repr([session.base, session.weights, cells, planned.prompts, planned.seeds, planned.layout, wanted])
    for key in first:
        text = text.replace(key, "first")
    return hashlib.sha256(text.encode()).hexdigest()


def found(session: Session, planned: Plan, wanted: Sampling | Drawing) -> Comparison | Gallery | None:
    """The comparison, where it was computed ahead; None where it was not."""
    kind = kinds.IMAGE if isinstance(wanted, Drawing) else kinds.TEXT
    if planned.layout is not None or session.base != builtin_base(kind) or session.picks != start_picks(kind):
        return None
    known = _read(laid.ASSETS / kind / FIRST)
    if not known or known["digest"] != digest(session, planned, wanted):
        return None
    own, facts = planned.columns({}), {"finished": True, "seconds": known["seconds"]}
    if isinstance(wanted, Drawing):
        drawn = gallery.begin(session.base, own, planned.prompts, planned.seeds, drawing.settings_of(wanted))
        files = _table(known["pictures"], lambda name: str(_shown(laid.ASSETS / kind / "first" / name)))
        scores = tuple(tuple(tuple(Score(s, _tuples(o)) for s, o in row) for row in rows) for rows in known["scores"])
        return replace(drawn, **facts, shots=files, files=files, scores=scores, step=wanted.steps, steps=wanted.steps)
    begun = comparison.begin(session.base, own, planned.prompts, compare.settings_of(wanted))
    return replace(begun, **facts, **{name: _tuples(known[name]) for name in ("texts", "tokens", "ended")})


@lru_cache(maxsize=2)
def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _shown(file: Path) -> Path:
    with Image.open(file) as picture:
        return export.picture_file(picture.convert("RGB"))


def _tuples(rows: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, rows))


def _table(cells: Sequence[Sequence[Sequence[str]]], what: Any) -> gallery.Table:
    return tuple(tuple(tuple(what(name) for name in row) for row in rows) for rows in cells)


def compute(kind: str) -> tuple[str, Comparison | Gallery]:
    """Run the first comparison of a kind: what decides it, and all that came."""
    session = first_session(kind)
    loading(session.base).base()
    planned = first_plan(session)
    wanted: Drawing | Sampling
    if kind == kinds.IMAGE:
        wanted = drawing.read(Drawing().steps, drawing.own_guidance(session.base), "0", "", "", "")
        planned = replace(planned, seeds=wanted.seeds)
    else:
        wanted = compare.sampling(compare.LENGTH, 0, 0, "chat")
    *_, (_, result) = running.every(session.base, planned, wanted, aligning.usual(session.base))
    return digest(session, planned, wanted), result


def write(kind: str) -> None:
    """Compute and write the comparison of a kind."""
    folder = laid.ASSETS / kind / "first"
    folder.mkdir(exist_ok=True)
    decided, result = compute(kind)
    made: dict[str, Any] = {"digest": decided, "seconds": round(result.seconds, 1)}
    if isinstance(result, Gallery):
        names = {file: f"{i:02}.png" for i, file in enumerate(f for rows in result.files for row in rows for f in row)}
        for file, name in names.items():
            (folder / name).write_bytes(Path(file).read_bytes())
        made["pictures"] = _table(result.files, names.__getitem__)
        (folder / "sheet.png").write_bytes(export.gallery_files(result, None)[0].read_bytes())
        made["scores"] = [[[(s.text, s.sources) for s in row] for row in rows] for rows in result.scores]
    else:
        made |= {"texts": result.texts, "tokens": result.tokens, "ended": result.ended}
    (laid.ASSETS / kind / FIRST).write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_maps(kind: str) -> None:
    """Compute and write the maps of a kind."""
    session = first_session(kind)
    places = {
        laid.place(session.weights, each): maps.view(session, each, 1).units.umap() for each in maps.kinds(session)
    }
    save_file(places, laid.ASSETS / kind / laid.MAPS)
