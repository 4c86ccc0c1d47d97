"""What gates reach that no merge does: gates of every kind beside the base, each LoRA, and merges at their best strength.

    python -m benchmarks.gates [--write] [--as-it-is] [--only TEXT]

Gates are trained on rows that neither the LoRAs' training nor the scores use. A score is the share of held-out rows answered exactly
by greedy decoding. A merge's strength is chosen on the tasks' tune rows, as in `benchmarks.tasks`. Every training's scores are kept
in ``results/gates.json`` as soon as they are there: a run that was stopped goes on where it was; delete the file to measure anew.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lego
from backends import bases, library, text
from backends.gated import choices
from backends.gates import GateEntry
from backends.training import Training
from backends.variants import Variant
from benchmarks.kept import Kept
from benchmarks.report import machine, parser_for, table, write_into_readme
from benchmarks.tasks import METHODS, STRENGTHS, summary
from mole.pool import Weighting
from mole.recipe import GateRecipe

SETS = {
    "three": ("past-tense", "sentiment", "language"),
    "five": ("sentiment", "kind", "past-tense", "language", "french"),
}
SEEDS = (0, 1, 2)  # of every granularity and gate input; what is beside them runs with the first
STEPS, BATCH = 30, 6
MERGES = ("LEGO, k = 2r", "core, ties", "knots_ties", "tsv")
ROWS, TUNE_ROWS = 50, 20  # of each task: held out; to choose a merge's strength
PROMPTS = 10  # of each task, whose gates are looked at
ANSWER = 96  # tokens of an answer to other questions, at most
OUTSIDE = Path(__file__).parent / "outside.jsonl"

Cell = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of training."""

    label: str
    gates: Mapping[str, object]
    training: Mapping[str, object]
    outside: bool = False
    seeds: tuple[int, ...] = SEEDS[:1]

    def recipe(self, tasks: Sequence[str], seed: int, outside: Path) -> GateRecipe:
        """As a user would write it."""
        data = [*tasks, *([str(outside)] if self.outside else [])]
        training = {"steps": STEPS, "batch": BATCH, **self.training, "seed": seed}
        return GateRecipe.check(
            {"sources": [*tasks], "data": data, "gates": dict(self.gates), "training": training}, self.label
        )


def kinds() -> list[Kind]:
    """Every granularity and gate input, with and without the balance loss; what is asked first comes first."""
    found = []
    for alpha in (0.5, 0.0):
        without = "" if alpha else ", no balance loss"
        for granularity in ("block", "layer", "network", "module"):
            for reads in ("outputs", "hidden"):
                label = f"MoLE {granularity}, {reads}{without}"
                found.append(Kind(label, {"granularity": granularity, "reads": reads}, {"alpha": alpha}, seeds=SEEDS))
        found.append(Kind(f"MoLE block, outputs, l2{without}", {"normalise": "l2"}, {"alpha": alpha}))
    found.append(Kind("MoLE block, outputs, base expert, outside rows", {"base_expert": True}, {}, outside=True))
    found.append(Kind("MoLE block, outputs, outside rows", {}, {}, outside=True))
    return found


class Bench:
    """The cells so far, and how to get more."""

    def __init__(self) -> None:
        self.base = bases.load_base(bases.BUILTIN)
        self.sources = {entry.name: entry for entry in library.builtin()}
        self.rows, self.tune = (
            {task: [row for row in rows if row["split"] == split][:count] for task, rows in text.tasks().items()}
            for split, count in (("held_out", ROWS), ("tune", TUNE_ROWS))
        )
        names = sorted({task for tasks in SETS.values() for task in tasks})
        adapters, rows = {name: self.sources[name].key for name in names}, [self.rows[name] for name in names]
        self.kept = Kept("gates", adapters, rows)
        self.scratch = Path(tempfile.mkdtemp(prefix="brickyard-"))

    def keep(self, key: str, cell: Cell) -> Cell:
        """Write one cell down."""
        self.kept.keep(key, cell)
        print(f"{key}: {100 * mean(cell['exact'].values()):.1f}", file=sys.stderr, flush=True)
        return cell

    def exact(self, weighting: Weighting, tasks: Sequence[str], tune: bool = False) -> dict[str, float]:
        """Share of rows answered exactly, by task."""
        found, rows = {}, self.tune if tune else self.rows
        for task in tasks:
            *_, last = text.score(self.base, [Variant("it", weighting)], rows[task])
            found[task] = last.exact[0]
        return found

    def fixed(self, name: str) -> Iterator[tuple[str, Weighting]]:
        """What needs neither training nor a choice."""
        tasks = SETS[name]
        keys = [self.sources[task].key for task in tasks]
        yield "base", Weighting()
        yield from ((f"LoRA {task}", Weighting(((self.sources[task].key, 1.0),))) for task in tasks)
        yield "average (NLA)", Weighting(tuple((key, 1 / len(keys)) for key in keys))
        yield "sum", Weighting(tuple((key, 1.0) for key in keys))

    def merged(self, name: str) -> Iterator[tuple[str, Weighting]]:
        """Merges at the strength with the most exact answers on the tune rows."""
        adapters = [library.get(self.sources[task].key) for task in SETS[name]]
        for label in MERGES:
            method, parameters = METHODS[label]
            key = library.add_merge(lego.merge(adapters, method=method, name=label, **parameters)).key
            tried = {strength: Weighting(((key, strength),)) for strength in STRENGTHS}
            for strength, weighting in tried.items():
                if (tune := f"{name}, tune | {label} | {strength:g}") not in self.kept.known():
                    self.keep(tune, {"exact": self.exact(weighting, SETS[name], tune=True)})
            known = self.kept.known()
            best = max(tried, key=lambda λ: mean(known[f"{name}, tune | {label} | {λ:g}"]["exact"].values()))
            yield f"{label}, λ = {best:g}", tried[best]

    def measure_fixed(self, name: str) -> None:
        """All that needs no training."""
        for label, weighting in chain(self.fixed(name), self.merged(name)):
            key = f"{name} | {label} | 0"
            if "outside" not in self.kept.known().get(key, {}):
                self.keep(key, {"exact": self.exact(weighting, SETS[name]), "outside": self.outside(weighting)})

    def measure(self, name: str, kind: Kind, seed: int) -> None:
        """Train gates and look at them."""
        key, tasks = f"{name} | {kind.label} | {seed}", SETS[name]
        if key in self.kept.known():
            return
        rows = self.scratch / "outside.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in self.outside_rows() if row["split"] == "train"))
        training = Training(self.base, [self.sources[task].key for task in tasks], kind.recipe(tasks, seed, rows))
        start = time.process_time()  # so that neighbours on the machine count little
        list(training.run())
        seconds = time.process_time() - start
        entry = training.add(f"benchmark {seed}")
        cell = {
            "exact": self.exact(entry.weighting(), tasks),
            "seconds": seconds,
            "outside": self.outside(entry.weighting()),
        }
        cell |= {"parameters": training.gates.parameter_count, **self.look(entry, tasks)}
        if kind.label == "MoLE block, outputs" and seed == 0:
            for task in tasks:
                masked = entry.weighting((self.sources[task].key,))
                self.keep(f"{name} | {kind.label}, without {task} | 0", {"exact": self.exact(masked, tasks)})
        self.keep(key, cell)
        shutil.rmtree(entry.path.parent)

    def look(self, entry: GateEntry, tasks: Sequence[str]) -> Cell:
        """Entropy of a choice, the largest mean share of one LoRA, the mean share of the right LoRA."""
        traces = [choices(self.base, entry, [row["prompt"] for row in self.rows[task][:PROMPTS]]) for task in tasks]
        shares = [found.shares.mean(dim=0).tolist() for found in traces]
        overall = [mean(share[column] for share in shares) for column in range(len(shares[0]))]
        return {
            "entropy": mean(found.entropy for found in traces),
            "largest": max(overall),
            "right": mean(share[number] for number, share in enumerate(shares)),
        }

    def outside_rows(self) -> list[dict[str, str]]:
        """Questions of none of the tasks, with the base's own greedy answers where these end: what is cut has no end to be scored."""
        questions = [json.loads(line) for line in OUTSIDE.read_text(encoding="utf-8").splitlines()]
        kept = Kept("outside", {}, [questions, ANSWER])
        if not kept.known():
            sampling = text.Sampling(max_new_tokens=ANSWER)
            *_, grid = text.generate(self.base, [Variant("base")], [q["prompt"] for q in questions], sampling)
            told = zip(questions, grid.texts[0], grid.ended[0], strict=True)
            kept.keep("rows", [{**question, "answer": answer} for question, answer, ended in told if ended])
        found: list[dict[str, str]] = kept.known()["rows"]
        return found

    def outside(self, weighting: Weighting) -> float:
        """How unlikely a variant finds the base's own answers to questions of none of the tasks, nats a token."""
        rows = [row for row in self.outside_rows() if row["split"] == "held_out"]
        *_, last = text.score(self.base, [Variant("it", weighting)], rows)
        return last.nll[0]

    def measure_all(self, only: str) -> None:
        """Fill the file, what is asked first first."""
        for name in SETS:
            self.measure_fixed(name)
        for seed in SEEDS:
            for kind in kinds():
                for name in SETS:
                    if seed in kind.seeds and only in f"{name} | {kind.label} | {seed}":
                        self.measure(name, kind, seed)


def lines(bench: Bench, name: str) -> Iterator[list[str]]:
    """The table of one set of LoRAs: what is measured, the seeds of a kind in one line."""
    cells: dict[str, list[Cell]] = {}
    for key, cell in bench.kept.known().items():
        of, label, _ = key.split(" | ")
        if of == name:
            cells.setdefault(label, []).append(cell)

    def number(found: list[Cell], key: str, format: str) -> str:
        known = [cell[key] for cell in found if key in cell]
        return format.format(mean(known)) if known else ""

    def own(label: str) -> tuple[bool, float]:
        return label.startswith("MoLE"), mean(mean(cell["exact"].values()) for cell in cells[label])

    alone = {task: cells[f"LoRA {task}"][0]["exact"][task] for task in SETS[name] if f"LoRA {task}" in cells}
    if len(alone) == len(SETS[name]):
        scores = [f"{100 * alone[task]:.1f}" for task in SETS[name]]
        yield ["each LoRA on its own task", *scores, bold([alone]), *[""] * 7]
    for label in sorted(cells, key=own):
        found = cells[label]
        means = [100 * mean(cell["exact"].values()) for cell in found]
        yield [
            label,
            *(f"{100 * mean(cell['exact'][task] for cell in found):.1f}" for task in SETS[name]),
            bold([cell["exact"] for cell in found]),
            f"{stdev(means):.1f} of {len(means)}" if len(means) > 1 else "",
            number(found, "entropy", "{:.2f}"),
            number(found, "largest", "{:.2f}"),
            number(found, "right", "{:.2f}"),
            number(found, "outside", "{:.2f}"),
            number(found, "parameters", "{:,.0f}"),
            number(found, "seconds", "{:.0f}"),
        ]


def bold(exact: list[dict[str, float]]) -> str:
    """The mean over tasks and seeds in %, with its 95 % interval over rows."""
    return f"**{summary([{task: {'exact': share, 'rows': ROWS} for task, share in one.items()} for one in exact])}**"


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = parser_for("gates", __doc__)
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--only", default="", metavar="TEXT", help="train only what has this in `SET | KIND | SEED`")
    options = parser.parse_args()
    bench = Bench()
    try:
        if not options.as_it_is:
            bench.measure_all(options.only)
        parts = []
        for name, tasks in SETS.items():
            head = [
                "",
                *tasks,
                "mean",
                "sd over seeds",
                "entropy",
                "largest",
                "right",
                "outside",
                "parameters",
                "seconds",
            ]
            if rows := list(lines(bench, name)):
                parts.append(table(head, rows))
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
    note = (
        f"Exact match in % on {ROWS} held-out rows a task, the mean ± 95 % over rows; λ: the strength that was best on other "
        f"rows. Of {PROMPTS} prompts a task: mean entropy of a gate (nats), the largest "
        "mean share of one LoRA, the mean share of the task's own. Outside: nats a token of the base's answers to other questions. "
        "Seconds: of the processor, for the training."
    )
    text_ = "\n\n".join([*parts, note])
    print(f"{text_} {machine()}.")
    if options.write:
        write_into_readme("gates", text_)


if __name__ == "__main__":
    main()
