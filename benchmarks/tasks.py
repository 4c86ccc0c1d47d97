"""What merging keeps of five tasks: method × task, at nominal strength and at the best one chosen on other rows.

    python -m benchmarks.tasks [--write] [--from-the-end] [--as-it-is]

Sources are the five built-in adapters with crisp scores, merged as they are (ranks 4 to 16, each from its own seed). A score is the
share of held-out rows that greedy decoding answers exactly. The strength is chosen on the tasks' tune rows, which are neither trained
on nor held out. What is random runs with five seeds. Every score is kept in ``results/tasks.json`` as soon as it is there, so a run
that was stopped goes on where it was; delete the file to measure anew. A second process with ``--from-the-end`` halves the time.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import lego
from backends import bases, library, text
from backends.variants import Variant
from benchmarks.kept import Kept
from benchmarks.report import machine, parser_for, table, write_into_readme
from mole.live import Weighting

TASKS = ("sentiment", "kind", "past-tense", "language", "french")
STRENGTHS = (0.2, 0.35, 0.5, 0.7, 1.0)
STRONGER = (1.4, 2.0, 2.8, 4.0)
SEEDS = (0, 1, 2, 3, 4)
TUNE_ROWS = 30  # of each task; 150 in all find the strength

# Label, method and parameters. `concat` is the sum in other units.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "sum": ("sum", {}),
    "average (NLA)": ("average", {}),
    "svd, rank 2r": ("svd", {}),
    "linear": ("linear", {}),
    "ties": ("ties", {}),
    "ties_svd": ("ties_svd", {}),
    "dare_linear": ("dare_linear", {}),
    "dare_linear_svd": ("dare_linear_svd", {}),
    "dare_ties": ("dare_ties", {}),
    "dare_ties_svd": ("dare_ties_svd", {}),
    "magnitude_prune": ("magnitude_prune", {}),
    "magnitude_prune_svd": ("magnitude_prune_svd", {}),
    "knots_ties": ("knots_ties", {}),
    "knots_dare": ("knots_dare", {}),
    "core, ties": ("core", {"rule": "ties"}),
    "tsv": ("tsv", {}),
    "tsv, rank 2r": ("tsv", {"rank": "2r"}),
    "ctm, sum": ("ctm", {"rule": "sum"}),
    "ctm, ties": ("ctm", {"rule": "ties"}),
    "LEGO, k = r": ("lego", {"k": "r"}),
    "LEGO, k = 2r": ("lego", {"k": "2r"}),
    "LEGO balanced, k = 2r": ("lego", {"k": "2r", "geometry": "balanced"}),
    "LEGO singular, k = 2r": ("lego", {"k": "2r", "geometry": "singular"}),
    "LEGO rank-one, k = 2r": ("lego", {"k": "2r", "geometry": "rank-one"}),
}


@dataclass(frozen=True)
class Point:
    """One adapter at one strength on one split: what is scored."""

    name: str
    split: str
    strength: float = 1.0
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.name} | {self.split} | strength {self.strength:g} | seed {self.seed}"


Scores = dict[str, dict[str, float]]


class Bench:
    """The scores so far, and how to get more."""

    def __init__(self) -> None:
        self.base = bases.load_base("smollm2-135m-instruct")
        self.sources = {entry.name: entry for entry in library.builtin() if entry.name in TASKS}
        self.rows = {task: rows for task, rows in text.tasks().items() if task in TASKS}
        self.kept = Kept("tasks", {task: self.sources[task].key for task in TASKS}, self.rows)
        self.merges: dict[tuple[str, int], str] = {}

    def score(self, point: Point) -> Scores:
        """Exact share and loss by task, from the file or measured now."""
        if point.key in (known := self.kept.known()):
            return known[point.key]
        tasks = (point.name,) if point.name in TASKS else TASKS
        measured = {task: self.measure(self.weighting(point), task, point.split) for task in tasks}
        self.kept.keep(point.key, measured)
        print(f"{point.key}: {mean(s['exact'] for s in measured.values()):.1%}", file=sys.stderr, flush=True)
        return measured

    def weighting(self, point: Point) -> Weighting:
        """The pool's weights that make the point; a merge is made, written and read back as the page does."""
        if point.name == "base":
            return Weighting()
        if point.name in self.sources:
            return Weighting(((self.sources[point.name].key, 1.0),))
        return Weighting(((self.merge(point.name, point.seed), point.strength),))

    def merge(self, name: str, seed: int) -> str:
        """The library's key of a merge, made once."""
        if (name, seed) not in self.merges:
            method, parameters = METHODS[name]
            adapters = [library.get(self.sources[task].key) for task in TASKS]
            merged = lego.merge(adapters, method=method, seed=seed, name=name, **parameters)
            self.merges[name, seed] = library.add_merge(merged).key
        return self.merges[name, seed]

    def forget(self) -> None:
        """Remove the merges' folders."""
        for key in self.merges.values():
            shutil.rmtree(library.entry(key).path.parent, ignore_errors=True)

    def measure(self, weighting: Weighting, task: str, split: str) -> dict[str, float]:
        """Exact share, loss per answer token and number of rows of one task."""
        rows = [row for row in self.rows[task] if row["split"] == split][: TUNE_ROWS if split == "tune" else None]
        for scores in text.score(self.base, [Variant("it", weighting)], rows):
            last = scores
        return {"exact": last.exact[0], "nll": last.nll[0], "rows": len(rows)}

    def best_strength(self, name: str) -> float:
        """The strength with the most exact answers on the tune rows, the least loss among equals.

        While the largest strength is the best one, larger ones are tried.
        """
        if name == "average (NLA)":  # the same update as the sum, in other units
            return len(TASKS) * self.best_strength("sum")

        def quality(strength: float) -> tuple[float, float]:
            found = self.score(Point(name, "tune", strength)).values()
            return mean(s["exact"] for s in found), -mean(s["nll"] for s in found)

        tried = list(STRENGTHS)
        while (best := max(tried, key=quality)) == tried[-1] and len(tried) < len(STRENGTHS) + len(STRONGER):
            tried.append(STRONGER[len(tried) - len(STRENGTHS)])
        return best

    def held_out(self, name: str, strength: float) -> list[Point]:
        """A method's points on the held-out rows, one for each seed."""
        if name == "average (NLA)" and strength != 1:
            return self.held_out("sum", strength / len(TASKS))
        method, parameters = METHODS[name]
        drawn = lego.method(method).random and not str(parameters.get("rule", "dare")).startswith(("sum", "ties"))
        seeds = SEEDS if drawn else SEEDS[:1]
        return [Point(name, "held_out", strength, seed) for seed in seeds]

    def runs(self, name: str, strength: float) -> list[Scores]:
        """A method's held-out scores as far as they are measured, one for each seed."""
        known = self.kept.known()
        return [known[point.key] for point in self.held_out(name, strength) if point.key in known]

    def complete(self, name: str) -> bool:
        """Whether a method's row can be told without measuring."""
        known, tuned = self.kept.known(), "sum" if name == "average (NLA)" else name
        if not all(Point(tuned, "tune", strength).key in known for strength in STRENGTHS):
            return False
        return bool(self.runs(name, 1.0) and self.runs(name, self.best_strength(name)))

    def measure_all(self, from_the_end: bool) -> None:
        """Fill the file, seed by seed, so that a stopped run is a table all the same."""
        names = list(METHODS)[::-1] if from_the_end else list(METHODS)
        for name in ("base", *TASKS):
            self.score(Point(name, "held_out"))
        for seed in range(len(SEEDS)):
            for name in names:
                for strength in (1.0, self.best_strength(name)):
                    for point in self.held_out(name, strength)[seed : seed + 1]:
                        self.score(point)


def summary(runs: list[Scores]) -> str:
    """Mean exact match over tasks and seeds in %, with its 95 % interval over rows."""
    by_task = [mean(run[task]["exact"] for run in runs) for task in runs[0]]
    rows = [run["rows"] for run in runs[0].values()]
    variance = sum(p * (1 - p) / count for p, count in zip(by_task, rows, strict=True)) / len(by_task) ** 2
    return f"{100 * mean(by_task):.1f} ± {196 * math.sqrt(variance):.1f}"


def by_task(runs: list[Scores]) -> list[str]:
    """Exact match of each task in %, spread of the mean over seeds, loss."""
    means = [mean(run[task]["exact"] for task in run) for run in runs]
    spread = f"{100 * stdev(means):.1f} of {len(means)}" if len(means) > 1 else ""
    loss = mean(run[task]["nll"] for run in runs for task in run)
    return [*(f"{100 * mean(run[task]['exact'] for run in runs):.1f}" for task in TASKS), spread, f"{loss:.2f}"]


def lines(bench: Bench, measure: bool) -> Iterator[list[str]]:
    """The whole table: references, then the methods, the best first; those that are not measured yet are left out unless wanted."""
    base = [bench.score(Point("base", "held_out"))]
    yield ["base", summary(base), "", summary(base), *by_task(base)]
    alone = [{task: bench.score(Point(task, "held_out"))[task] for task in TASKS}]
    yield ["each LoRA on its own task", summary(alone), "", summary(alone), *by_task(alone)]
    found = []
    for name in METHODS if measure else filter(bench.complete, METHODS):
        strength = bench.best_strength(name)
        nominal, best = bench.runs(name, 1.0), bench.runs(name, strength)
        found.append([name, summary(nominal), f"{strength:g}", f"**{summary(best)}**", *by_task(best)])
    yield from sorted(found, key=lambda line: -float(line[3].strip("*").split()[0]))


def main() -> None:
    """Measure what is missing and print the table."""
    parser = parser_for("tasks", __doc__)
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--from-the-end", action="store_true", help="help another process, from the other end")
    options = parser.parse_args()
    bench = Bench()
    if not options.as_it_is:
        bench.measure_all(options.from_the_end)
    head = ["", "at strength 1", "best λ", "at best λ", *TASKS, "sd over seeds", "loss"]
    counts = {int(s["rows"]) for s in bench.score(Point("base", "held_out")).values()}
    made = table(head, list(lines(bench, not options.as_it_is)))
    note = (
        f"Exact match in % on {'/'.join(map(str, sorted(counts)))} held-out rows a task, mean ± 95 % over rows; single tasks, "
        "spread over clustering seeds and loss (nats per answer token) at the best λ, which was chosen on other rows."
    )
    if missing := [name for name in METHODS if not bench.complete(name)]:
        note += f" Not measured yet: {'; '.join(missing)}."
    print(f"{made}\n\n{note} {machine()}.")
    if not options.from_the_end:  # the process that helps may end while the other still needs them
        bench.forget()
    if options.write:
        write_into_readme("tasks", f"{made}\n\n{note}")


if __name__ == "__main__":
    main()
