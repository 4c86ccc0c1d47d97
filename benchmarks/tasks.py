"""What merging keeps of five tasks: method × task, at nominal strength and at the best one chosen on other rows.

    python -m benchmarks.tasks [--write] [--from-the-end] [--as-it-is]

Sources are the five built-in adapters with crisp scores, merged as they are (ranks 4 to 16, each from its own seed). A score is the
share of held-out rows that greedy decoding answers exactly. The strength is chosen on the tasks' tune rows, which are neither trained
on nor held out. What is random runs with five seeds. Every score is kept in ``results/tasks.json`` as soon as it is there, so a run
that was stopped goes on where it was; delete the file to measure anew. A second process with ``--from-the-end`` halves the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from filelock import FileLock

import lego
from backends import bases, library, text
from backends.variants import Variant
from benchmarks.report import machine, table, write_into_readme
from mole.live import Weighting

TASKS = ("sentiment", "kind", "past-tense", "language", "french")
STRENGTHS = (0.2, 0.35, 0.5, 0.7, 1.0)
SEEDS = (0, 1, 2, 3, 4)
TUNE_ROWS = 30  # of each task; 150 in all find the strength
RESULTS = Path(__file__).parent / "results" / "tasks.json"

METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "sum": ("sum", {}),
    "average (NLA)": ("average", {}),
    "linear": ("linear", {}),
    "svd, rank 2r": ("svd", {}),
    "ties": ("ties", {}),
    "dare_ties": ("dare_ties", {}),
    "LEGO, k = r": ("lego", {"k": "r"}),
    "LEGO, k = 2r": ("lego", {"k": "2r"}),
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
        self.of = {"adapters": {task: self.sources[task].key for task in TASKS}, "rows": self.rows_hash()}
        self.merges: dict[tuple[str, int], str] = {}
        RESULTS.parent.mkdir(exist_ok=True)

    def rows_hash(self) -> str:
        """Tells the rows apart from any others."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()[:12]

    def known(self) -> dict[str, Scores]:
        """What has been measured on these very adapters and rows, by this process or another."""
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        return found["scores"] if found.get("of") == self.of else {}

    def score(self, point: Point) -> Scores:
        """Exact share and loss by task, from the file or measured now."""
        if point.key in (known := self.known()):
            return known[point.key]
        tasks = (point.name,) if point.name in TASKS else TASKS
        measured = {task: self.measure(self.weighting(point), task, point.split) for task in tasks}
        with FileLock(RESULTS.with_suffix(".lock")):
            scratch = RESULTS.with_suffix(".tmp")
            scores = {**self.known(), point.key: measured}
            scratch.write_text(json.dumps({"of": self.of, "scores": scores}, indent=0, sort_keys=True) + "\n")
            os.replace(scratch, RESULTS)
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
        """The strength with the most exact answers on the tune rows; among equals the least loss."""
        if name == "average (NLA)":  # the same update as the sum, in other units
            return len(TASKS) * self.best_strength("sum")

        def quality(strength: float) -> tuple[float, float]:
            found = self.score(Point(name, "tune", strength)).values()
            return mean(s["exact"] for s in found), -mean(s["nll"] for s in found)

        return max(STRENGTHS, key=quality)

    def held_out(self, name: str, strength: float) -> list[Point]:
        """A method's points on the held-out rows, one for each seed."""
        if name == "average (NLA)" and strength != 1:
            return self.held_out("sum", strength / len(TASKS))
        seeds = SEEDS if lego.method(METHODS[name][0]).random else SEEDS[:1]
        return [Point(name, "held_out", strength, seed) for seed in seeds]

    def runs(self, name: str, strength: float) -> list[Scores]:
        """A method's held-out scores as far as they are measured, one for each seed."""
        known = self.known()
        return [known[point.key] for point in self.held_out(name, strength) if point.key in known]

    def measure_all(self, from_the_end: bool) -> None:
        """Fill the file: first what needs no strength, then the best strengths."""
        first = [Point(name, "held_out") for name in ("base", *TASKS)]
        first += [point for name in METHODS for point in self.held_out(name, 1.0)]
        first += [Point(name, "tune", s) for name in METHODS if name != "average (NLA)" for s in STRENGTHS]
        for point in first[::-1] if from_the_end else first:
            self.score(point)
        best = [point for name in METHODS for point in self.held_out(name, self.best_strength(name))]
        best.sort(key=lambda point: point.seed)  # one seed of each method first: a stopped run is a table all the same
        for point in best[::-1] if from_the_end else best:
            self.score(point)


def line(label: str, strength: str, runs: list[Scores]) -> list[str]:
    """One row: tasks, mean with its 95 % interval over rows, spread over seeds, loss."""
    by_task = {task: mean(run[task]["exact"] for run in runs) for task in TASKS}
    variance = sum(p * (1 - p) / runs[0][task]["rows"] for task, p in by_task.items()) / len(TASKS) ** 2
    means = [mean(run[task]["exact"] for task in TASKS) for run in runs]
    spread = f"{100 * stdev(means):.1f} of {len(means)}" if len(means) > 1 else ""
    loss = mean(run[task]["nll"] for run in runs for task in TASKS)
    total = f"**{100 * mean(means):.1f}** ± {196 * math.sqrt(variance):.1f}"
    return [label, strength, *(f"{100 * by_task[task]:.1f}" for task in TASKS), total, spread, f"{loss:.2f}"]


def lines(bench: Bench) -> Iterator[list[str]]:
    """The whole table."""
    yield line("base", "", [bench.score(Point("base", "held_out"))])
    alone = {task: bench.score(Point(task, "held_out"))[task] for task in TASKS}
    yield line("each LoRA on its own task", "1", [alone])
    for name in METHODS:
        best = bench.best_strength(name)
        yield line(name, "1 (best)" if best == 1 else "1", bench.runs(name, 1.0))
        if best != 1 and (runs := bench.runs(name, best)):
            yield line(name, f"{best:g} (best)", runs)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--from-the-end", action="store_true", help="help another process, from the other end")
    options = parser.parse_args()
    bench = Bench()
    if not options.as_it_is:
        bench.measure_all(options.from_the_end)
    head = ["", "strength", *TASKS, "mean ± 95 %", "sd over seeds", "loss"]
    counts = {int(s["rows"]) for s in bench.score(Point("base", "held_out")).values()}
    made = table(head, list(lines(bench)))
    note = (
        f"Exact match in % on {'/'.join(map(str, sorted(counts)))} held-out rows a task; loss in nats per answer token."
    )
    print(f"{made}\n\n{note} {machine()}.")
    if not options.from_the_end:  # the process that helps may end while the other still needs them
        bench.forget()
    if options.write:
        write_into_readme("tasks", f"{made}\n\n{note}")


if __name__ == "__main__":
    main()
