"""Does interference, seen before a merge, predict what the merge loses? All pairs of six built-in adapters, summed.

    python -m benchmarks.interference [--write] [--as-it-is]

The sum of two adapters at weights 1 and 1 runs exactly as the page runs it, on the first held-out rows of both tasks. What a task loses is
the rise of its loss (nats per answer token) and the fall of its exact share against its own adapter alone. Every score is kept in
``results/interference.json`` as soon as it is there; delete the file to measure anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from itertools import combinations
from pathlib import Path

from backends import bases, library, text
from backends.variants import Variant
from mole.live import Weighting

TASKS = ("sentiment", "kind", "past-tense", "language", "french", "plural")
ROWS = 60  # held-out rows of each task
RESULTS = Path(__file__).parent / "results" / "interference.json"

Scores = dict[str, dict[str, float]]


class Bench:
    """The scores so far, and how to get more."""

    def __init__(self) -> None:
        self.base = bases.load_base("smollm2-135m-instruct")
        self.keys = {entry.name: entry.key for entry in library.builtin() if entry.name in TASKS}
        held_out = {task: [row for row in rows if row["split"] == "held_out"] for task, rows in text.tasks().items()}
        self.rows = {task: held_out[task][:ROWS] for task in TASKS}
        rows_hash = hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()[:12]
        self.of = {"adapters": {task: self.keys[task] for task in TASKS}, "rows": rows_hash}
        RESULTS.parent.mkdir(exist_ok=True)

    def known(self) -> dict[str, Scores]:
        """What has been measured on these very adapters and rows."""
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        return found["scores"] if found.get("of") == self.of else {}

    def score(self, names: tuple[str, ...]) -> Scores:
        """Exact share and loss of the sum of the named adapters on their own tasks, from the file or measured now."""
        key = " + ".join(names)
        if key in (known := self.known()):
            return known[key]
        variant = Variant("sum", Weighting(tuple((self.keys[name], 1.0) for name in names)))
        measured = {}
        for task in names:
            for scores in text.score(self.base, [variant], self.rows[task]):
                last = scores
            measured[task] = {"exact": last.exact[0], "nll": last.nll[0]}
        scratch = RESULTS.with_suffix(".tmp")
        scratch.write_text(
            json.dumps({"of": self.of, "scores": {**self.known(), key: measured}}, indent=0, sort_keys=True) + "\n"
        )
        os.replace(scratch, RESULTS)
        print(f"{key}: {measured}", file=sys.stderr, flush=True)
        return measured

    def measure_all(self) -> None:
        """Fill the file."""
        for names in [*((task,) for task in TASKS), *combinations(TASKS, 2)]:
            self.score(names)
