"""Does interference, seen before a merge, predict what the merge loses? All pairs of six built-in adapters, summed.

    python -m benchmarks.interference [--write] [--as-it-is]

The sum of two adapters at weights 1 and 1 runs exactly as the page runs it, on the first held-out rows of both tasks. What a task
loses is the rise of its loss (nats per answer token) and the fall of its exact share against its own adapter alone: 30 cases of a
task and a partner, of one model of 135M parameters. Each measure of `lego.interference` is held against them with Spearman's rank
correlation, over all cases and, since tasks differ in how fragile they are, among the five partners of each task. Every score is kept
in ``results/interference.json`` as soon as it is there; delete the file to measure anew.

What came out: the score has ρ = 0.45 over all cases and 0.62 among the partners of a task; nothing else known before the merge
reaches 0.3 over all cases, but for the rank of the task's own adapter (0.37), which the score holds in part: more rows catch more. Its
definition was chosen among several on these very cases, and cases that share an adapter are not independent, so the true figure
is likely lower. Good for saying which partner to look at first, not for forecasting a loss.
"""

from __future__ import annotations

import sys
from functools import cached_property
from itertools import combinations, permutations
from statistics import mean

import numpy as np
from scipy.stats import spearmanr

from backends import bases, library, text
from backends.bases import TextBase
from backends.variants import Variant
from benchmarks.kept import Kept
from benchmarks.report import parser_for, table, write_into_readme
from lego.interference import interference
from mole.live import Weighting

TASKS = ("sentiment", "kind", "past-tense", "language", "french", "plural")
ROWS = 60  # held-out rows of each task

Scores = dict[str, dict[str, float]]


class Bench:
    """The scores so far, and how to get more."""

    def __init__(self) -> None:
        self.keys = {entry.name: entry.key for entry in library.builtin() if entry.name in TASKS}
        held_out = {task: [row for row in rows if row["split"] == "held_out"] for task, rows in text.tasks().items()}
        self.rows = {task: held_out[task][:ROWS] for task in TASKS}
        self.kept = Kept("interference", {task: self.keys[task] for task in TASKS}, self.rows)

    @cached_property
    def base(self) -> TextBase:
        """The model, loaded when there is something to measure."""
        return bases.load_base("smollm2-135m-instruct")

    def score(self, names: tuple[str, ...]) -> Scores:
        """Exact share and loss of the sum of the named adapters on their own tasks, from the file or measured now."""
        key = " + ".join(names)
        if key in (known := self.kept.known()):
            return known[key]
        variant = Variant("sum", Weighting(tuple((self.keys[name], 1.0) for name in names)))
        measured = {}
        for task in names:
            for scores in text.score(self.base, [variant], self.rows[task]):
                last = scores
            measured[task] = {"exact": last.exact[0], "nll": last.nll[0]}
        self.kept.keep(key, measured)
        print(f"{key}: {measured}", file=sys.stderr, flush=True)
        return measured

    def measure_all(self) -> None:
        """Fill the file."""
        for names in [*((task,) for task in TASKS), *combinations(TASKS, 2)]:
            self.score(names)

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Rise of loss and fall of the exact share of each case, in the order of `CASES`."""
        rises, falls = [], []
        for i, j in CASES:
            task = TASKS[i]
            alone, together = self.score((task,))[task], self.score((TASKS[min(i, j)], TASKS[max(i, j)]))[task]
            rises.append(together["nll"] - alone["nll"])
            falls.append(alone["exact"] - together["exact"])
        return np.array(rises), np.array(falls)

    def predictors(self) -> dict[str, np.ndarray]:
        """What is known of each case before any merge."""
        adapters = [library.get(self.keys[task]) for task in TASKS]
        every = interference(adapters).total()
        norms, ranks = every.norms[0], np.array([max(adapter.ranks) for adapter in adapters])
        pairs = {
            "**score**: share of the partner's update on the task's inputs": every.hit[0],
            "change of outputs on the task's inputs": every.change[0],
            "cosine of the updates": every.cosine[0],
            "units, largest cosine": every.unit_max[0],
            "units, mean cosine": every.unit_mean[0],
            "overlap of inputs": every.overlap_in[0],
            "overlap of outputs": every.overlap_out[0],
            "sign conflicts": every.sign_conflict[0],
            "norm of the partner / own norm": norms[None] / norms[:, None],
            "norm of the partner": np.broadcast_to(norms, (len(TASKS), len(TASKS))),
            "own rank": np.broadcast_to(ranks[:, None], (len(TASKS), len(TASKS))),
        }
        return {name: np.array([values[case] for case in CASES]) for name, values in pairs.items()}


CASES = list(permutations(range(len(TASKS)), 2))
"""(the task, the partner that joins it)."""


def correlations(values: np.ndarray, rises: np.ndarray, falls: np.ndarray) -> list[str]:
    """Spearman's ρ with the rise of loss, with the fall of exact answers, and among the partners of one task."""
    task = np.array([i for i, _ in CASES])
    rows = [task == i for i in range(len(TASKS))]
    within = [spearmanr(values[row], rises[row]).statistic for row in rows if np.ptp(values[row]) > 0]
    whole = [spearmanr(values, losses).statistic for losses in (rises, falls)]
    return [*(f"{value:+.2f}" for value in whole), f"{mean(within):+.2f}" if within else ""]


def main() -> None:
    """Measure what is missing and print the table."""
    parser = parser_for("interference", __doc__)
    parser.add_argument("--as-it-is", action="store_true", help="fail rather than measure")
    options = parser.parse_args()
    bench = Bench()
    if options.as_it_is and len(bench.kept.known()) < len(TASKS) + len(CASES) // 2:
        parser.error(f"{bench.kept.path} is not complete")
    bench.measure_all()
    rises, falls = bench.losses()
    head = ["known before the merge", "ρ, rise of loss", "ρ, fall of exact match", "ρ, loss, among a task's partners"]
    made = table(head, [[name, *correlations(v, rises, falls)] for name, v in bench.predictors().items()])
    note = (
        f"Spearman's ρ over {len(CASES)} cases, a task and a partner summed at weights 1, 1 ({ROWS} rows a task); |ρ| under 0.36 "
        f"is within chance. Loss rises by {rises.min():.2f} to {rises.max():.2f} nats a token, median {np.median(rises):.2f}; "
        f"exact match falls by {100 * falls.min():.0f} to {100 * falls.max():.0f} points."
    )
    print(f"{made}\n\n{note}")
    if options.write:
        write_into_readme("interference", f"{made}\n\n{note}")


if __name__ == "__main__":
    main()
