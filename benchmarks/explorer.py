"""``python -m benchmarks.explorer``: how soon the explorer answers on the server, with 5,000 and 20,000 units on the map.

Claims, each beside a peer in the same run:

- a lasso around half of 5,000 units is answered within half a second: the selection, what the map greys out, table and strip;
- another number of clusters within 300 ms, at 5,000 units: clusters, the view beside the map, the table;
- after a brick is muted, the built-in model's first changed token comes within 2 seconds.

Peers: the same selection as a tuple of ids, copied and hashed as the page's state is; scikit-learn's k-means on the same units;
merging, reading and running the sum without the brick.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gradio.utils import deep_hash
from sklearn.cluster import KMeans

from backends import bases, library
from backends.text import Sampling, Variant, generate
from benchmarks.maps import adapters, best
from benchmarks.report import finish, machine, table
from components.compare import examples
from components.library import shelf
from components.map import bricks, maps, selection, unit_figures, views
from components.session.state import Edited, Pick, Selection, Session
from lego import write_adapter
from lego.unitset import UnitSet
from mole.pool import Weighting

SOURCES, RANK, WIDTH = 8, 8, 256
LAYERS = (79, 312)
"""64 units in each of so many modules: 5,056 and 19,968."""
LASSO, SLIDER, MUTED = 0.5, 0.3, 2.0
"""Seconds at most; the first two at the smaller map."""

Row = list[str]


def opened(folder: Path, layers: int) -> Session:
    """Eight adapters picked."""
    keys = []
    for adapter in adapters(SOURCES, RANK, layers, WIDTH, own=0.7):
        keys.append(library.add_folder(write_adapter(adapter, folder / f"{layers}-{adapter.name}")).key)
    return Session(bases.BUILTIN, tuple(Pick(key, 1.0, slot) for slot, key in enumerate(keys)), added=tuple(keys))


def lasso(session: Session, count: int, rounds: int) -> tuple[Row, float]:
    """Half the units caught, and everything that follows."""
    seen = maps.view(session, "q_proj", 16)
    ids = list(range(0, len(seen.units), 2))

    def follow() -> None:
        chosen = selection.caught(session, seen, Selection(), "Clusters", (), "map", ids)
        deep_hash(chosen)
        json.dumps(selection.marks(seen, chosen).data(seen.mapped.pca))
        assert selection.table(seen, chosen)
        assert selection.strip(seen, chosen)

    def as_ids() -> None:
        units = tuple(maps.unit_id(seen, i) for i in ids)
        deep_hash(copy.deepcopy(units))
        wanted = set(units)
        assert [i for i in range(len(seen.units)) if maps.unit_id(seen, i) in wanted]

    ours, theirs = best(follow, rounds), best(as_ids, 1)
    label = f"a lasso around {len(ids):,} of {count:,} units vs. their ids in a tuple"
    return [label, f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{theirs / ours:.1f} × faster"], ours


def slider(session: Session, count: int, rounds: int) -> tuple[Row, float]:
    """Another k: clusters, the view beside the map, the table; the map itself where it is coloured by cluster."""
    ks = iter(range(17, 17 + 4 * rounds))

    def move() -> None:
        seen = maps.view(session, "q_proj", next(ks))
        points = maps.projected(seen, "PCA")
        assert unit_figures.unit_map(points, seen.groups, "cluster").to_json()
        assert views.composition(session, seen).figure.to_json()
        assert selection.table(seen, Selection())

    seen = maps.view(session, "q_proj", 16)
    units = seen.units.vectors().numpy()
    modules = seen.units.module
    ours = best(move, rounds)
    theirs = best(lambda: [KMeans(16, n_init=8, random_state=0).fit(units[modules == m]) for m in range(4)], 1)
    theirs *= len(seen.units.modules) / 4
    label = f"another k, map coloured by cluster, {count:,} units vs. scikit-learn's k-means alone"
    return [label, f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{theirs / ours:.1f} × faster"], ours


def drawing(session: Session, count: int, rounds: int) -> Row:
    """The map as the browser gets it, against one dictionary a point."""
    seen = maps.view(session, "q_proj", 16)
    points = maps.projected(seen, "PCA")
    assert points is not None
    drawn: list[str] = []
    ours = best(lambda: drawn.append(unit_figures.unit_map(points, seen.groups, "adapter").to_json()), rounds)

    def plainly() -> str:
        rows = zip(*(a.tolist() for a in (points.xy, points.owner, points.rank_index, points.norm)), strict=True)
        return json.dumps(
            [
                {"x": xy[0], "y": xy[1], "owner": owner, "index": index, "norm": norm, "module": points.modules[m]}
                for (xy, owner, index, norm), m in zip(rows, points.module, strict=True)
            ]
        )

    theirs, size = best(plainly, 1), len(plainly())
    label = f"the map of {count:,} units, {len(drawn[0]) / 1e6:.2f} MB vs. a record a point, {size / 1e6:.2f} MB"
    return [label, f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{size / len(drawn[0]):.1f} × smaller"]


def muting() -> tuple[Row, float]:
    """The built-in sum of three LoRAs and the sum without a cluster: until a token differs."""
    session = shelf.start_session(bases.BUILTIN)
    base, prompt = bases.load_base(bases.BUILTIN), examples.first(session).split("\n")[0].replace("\\n", "\n")
    key = session.picks[0].key
    adapter = library.get(key)
    units = UnitSet.every({key: adapter})
    whole, sampling = Variant("sum", Weighting(session.weights)), Sampling(max_new_tokens=24)
    for _ in generate(base, [whole], [prompt], sampling):  # the comparison that was there before
        pass

    def until_changed(variants: list[Variant]) -> None:
        for grid in generate(base, variants, [prompt], sampling):
            if grid.texts[0] != grid.texts[1]:
                return
        raise AssertionError("muting it changes nothing")

    muted = Edited("muted", session.weights, units)
    start = time.perf_counter()
    until_changed([whole, Variant("muted", muted.weighting)])
    ours = time.perf_counter() - start
    start = time.perf_counter()
    written = bricks.written(muted)
    until_changed([whole, Variant("merged", Weighting(((written.key, 1.0),)))])
    theirs = time.perf_counter() - start
    label = f"{len(units):,} bricks muted, until a token changes vs. merged without them"
    return [label, f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{theirs / ours:.1f} × faster"], ours


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many counts")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        home = bases.home()
        for layers in LAYERS:
            session = opened(Path(scratch), layers)
            count = SOURCES * RANK * layers
            seen = maps.view(session, "q_proj", 16)
            assert len(seen.units) == count
            np.asarray(seen.mapped.pca)
            row, seconds["lasso", layers] = lasso(session, len(seen.units), chosen.rounds)
            moved, seconds["slider", layers] = slider(session, len(seen.units), chosen.rounds)
            rows += [row, moved, drawing(session, len(seen.units), chosen.rounds)]
        os.environ["BRICKYARD_HOME"] = str(Path(scratch) / "home")
        (Path(scratch) / "home").mkdir()
        (Path(scratch) / "home" / "bases").symlink_to(home / "bases")
        row, muted = muting()
    rows.append(row)
    claims = {
        f"a lasso takes {seconds['lasso', LAYERS[0]]:.2f} s": seconds["lasso", LAYERS[0]] <= LASSO,
        f"another k takes {seconds['slider', LAYERS[0]]:.2f} s": seconds["slider", LAYERS[0]] <= SLIDER,
        f"the first changed token takes {muted:.1f} s": muted <= MUTED,
    }
    text = table(["measured in one run, fastest of several", "Brickyard", "peer", "ratio"], rows) + f"\n\n{machine()}"
    return finish("explorer", text, [claim for claim, holds in claims.items() if not holds], chosen.write)


if __name__ == "__main__":
    sys.exit(main())
