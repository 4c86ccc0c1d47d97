"""``sweep``: a recipe with lists and ranges, one adapter and one line of the table a point."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lego.cli.outside import add_rows_options, fetch, load_base, load_rows, outside

if TYPE_CHECKING:
    from lego.points import Row, Scorer
    from lego.sweep import Point


def add_commands(commands: Any) -> None:
    """Declare the command."""
    sweep = commands.add_parser("sweep", help="merge every point of a recipe with lists and ranges")
    sweep.add_argument(
        "recipe",
        metavar="RECIPE.yaml",
        help="a recipe in which parameters, seed, method or weights hold lists, [0.5, 1], or ranges, 4..16 | 4 (from..to | step)",
    )
    sweep.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="of the points and the table; what is done stays"
    )
    sweep.add_argument("--rows", metavar="ROWS", help="score every point on the rows of this JSONL file")
    add_rows_options(sweep)
    sweep.add_argument("--device", default="cpu", help="where merges are computed (default cpu)")
    sweep.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="as tasks of Ray, on this machine or on the cluster at the address, whose machines see the same folders",
    )
    sweep.add_argument("--json", action="store_true", help="the table as JSON")
    sweep.set_defaults(run=run_sweep)


def run_sweep(options: argparse.Namespace) -> int:
    """Make the points and the table."""
    from lego.points import Settings, markdown
    from lego.points import run_sweep as run
    from lego.sweep import read_sweep

    sweep = read_sweep(Path(options.recipe))
    scorer = scorer_of(options) if options.rows else None
    print(sweep, file=sys.stderr if options.json else sys.stdout, flush=True)
    done = 0

    def each(point: Point, line: Row) -> None:
        nonlocal done
        done += 1
        print(f"{done}/{len(sweep.points)}  {point.name}  relative error {line['relative error']:.4g}", file=sys.stderr)

    settings = Settings(Path(options.out), sweep.folder, options.device, fetch, scorer)
    lines = run(sweep, settings, each, options.ray)
    print(json.dumps(lines, indent=2, ensure_ascii=False) if options.json else markdown(lines), end="\n" * options.json)
    return 0


@dataclass(frozen=True)
class RowsScore:
    """Scores a folder on rows; a value, so that it travels to other processes, each of which loads its own base once."""

    rows: str
    split: str | None
    base: str | None

    def __call__(self, folder: Path) -> dict[str, float]:
        """Share of rows answered exactly, and loss in nats per answer token."""
        score_at = outside("backends.tune:score_at", "scoring a merge")
        trial = score_at(load_base(self.base), folder, load_rows(self.rows, self.split))[0]
        return {"exact": trial.exact, "loss": trial.nll}


def scorer_of(options: argparse.Namespace) -> Scorer:
    """The scorer that the options ask for; the rows are read at once, so that a bad file ends it before the first merge."""
    from lego.points import Scorer

    rows = load_rows(options.rows, options.split)
    of = {"rows": rows.sha256, "split": rows.split, "count": len(rows.rows), "base": options.base}
    return Scorer(RowsScore(str(Path(options.rows).absolute()), options.split, options.base), of)
