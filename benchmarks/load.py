"""``python -m benchmarks.load``: many visitors at once on a running app, then the same work many times over.

Claims: no visitor meets an error or sees another's merge, prompt or text; who waits is told their place; afterwards the app's memory
is back to its level within 10 %; merges and comparisons in a row do not make it grow by more than 5 %. Kept in ``results/load.json``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from gradio_client import Client

from benchmarks.report import ROOT, finish, machine, parser_for, table
from benchmarks.visitor import Visitor
from tests.serving import free_port, fresh_home, wait_for

RESULTS = Path(__file__).with_name("results") / "load.json"
GRACE = 2
"""Seconds until a closed tab counts as gone, in this run."""
BACK, GROWTH = 1.10, 1.05
STEPS = ("open", "pick", "merge", "compare", "cancel")


@dataclass
class Run:
    """What came of one round of visitors."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    failures: list[str] = field(default_factory=list)
    waited: int = 0


@contextmanager
def app(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The running app, with a cache of its own; its address and process."""
    port, log = free_port(), folder / "log"
    environment = {**os.environ, "BRICKYARD_HOME": str(fresh_home(folder / "home")), "BRICKYARD_GRACE": str(GRACE)}
    environment |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment.pop("SPACE_ID", None)
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            yield wait_for(f"http://127.0.0.1:{port}/", process, log), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def megabytes(process: psutil.Process) -> float:
    """Memory of the app with its helpers, once it is idle."""
    time.sleep(3 * GRACE + 3)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


def visit(url: str, name: str, run: Run) -> None:
    """One visitor: open, pick, map, merge, compare, begin another comparison and stop it, leave."""
    visitor = None
    try:
        visitor = Visitor(url, name)
        timed(run, "open", visitor.load)
        timed(run, "pick", lambda: pick(visitor))
        timed(run, "merge", lambda: merge(visitor))
        timed(run, "compare", lambda: compare(visitor))
        timed(run, "cancel", lambda: cancel(visitor))
        run.waited += any("before you" in text or "You are next" in text for text in visitor.shown)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what the benchmark looks for)
        run.failures.append(f"{name}: {type(error).__name__}: {error}")
    finally:
        if visitor:
            visitor.leave()


def timed(run: Run, step: str, work: object) -> None:
    """Do a step and note how long it took."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    run.seconds[step].append(time.perf_counter() - start)


def pick(visitor: Visitor) -> None:
    """Pick another adapter, drop one, and see the map of them."""
    cards = visitor.find("html", "Adapters")
    keys = re.findall(r'data-key="(\w+)"', visitor.values[cards])
    picked = re.findall(r'by-card picked" data-key="(\w+)"', visitor.values[cards])
    chosen = [picked[0], next(key for key in keys if key not in picked)]
    for key in chosen:
        visitor.fire(visitor.triggered(cards, "pick"), {"key": key})
    now = set(re.findall(r'by-card picked" data-key="(\w+)"', visitor.values[cards]))
    own(visitor, now == set(picked) ^ set(chosen), "what was picked is not what is shown")


def merge(visitor: Visitor) -> None:
    """Merge under the visitor's own name."""
    visitor.set("dropdown", "Method", "average")
    visitor.set("textbox", "Name", visitor.name)
    visitor.press("Merge")
    strip = visitor.value("html", "What is picked")
    own(visitor, visitor.name in strip, "the merge did not join")
    alone(visitor, strip)


def compare(visitor: Visitor) -> None:
    """Compare the base and the merge."""
    variants = visitor.components[visitor.find("checkboxgroup", "Variants")]["props"]["choices"]
    mine = [id for name, id in variants if name in ("Base", visitor.name)]
    visitor.set("checkboxgroup", "Variants", mine)
    visitor.set("textbox", "Prompts", f"I am {visitor.name}. What is the past tense of 'go'?")
    visitor.set("slider", "Length", 4)
    visitor.press("Compare")
    grid = visitor.value("html", "Comparison")
    own(visitor, f"I am {visitor.name}." in grid and grid.count('class="by-column"') == 2, "not what was asked for")
    alone(visitor, grid)


def cancel(visitor: Visitor) -> None:
    """Begin a long comparison and stop it once its first text comes."""
    visitor.set("slider", "Length", 256)
    visitor.press("Compare", until=lambda message: "token " in json.dumps(message.get("output") or {}))


def own(visitor: Visitor, right: bool, what: str) -> None:
    """Whether a visitor sees their own."""
    if not right:
        raise AssertionError(f"{what}: {visitor.shown[-1][:200] if visitor.shown else ''}")


def alone(visitor: Visitor, text: str) -> None:
    """Whether a visitor sees nobody else's."""
    if others := set(re.findall(r"visitor-\d+", text)) - {visitor.name}:
        raise AssertionError(f"sees {others}")


def together(url: str, count: int) -> Run:
    """All visitors at once."""
    run = Run()
    threads = [threading.Thread(target=visit, args=(url, f"visitor-{100 + i}", run)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return run


def again(url: str, process: psutil.Process, count: int) -> list[float]:
    """Merge and compare many times; the memory after each tenth, in MB."""
    client, memory = Client(url, verbose=False, download_files=False), []
    for i in range(count):
        weights = [1, 0.5 + i / 1000]
        made = client.predict(["past-tense", "sentiment"], "average", weights, None, 0, f"m{i}", api_name="/merge")
        variants = [{"name": "base"}, {"name": "merge", "adapters": {made["key"]: 1}}]
        client.predict(variants, ["Hello"], length=2, api_name="/compare")
        if (i + 1) % max(1, count // 10) == 0:
            memory.append(process.memory_info().rss / 1e6)
    return memory


def measure(visitors: int, repeats: int) -> dict[str, object]:
    """Everything, on one running app."""
    with tempfile.TemporaryDirectory() as scratch, app(Path(scratch)) as (url, process):
        first = together(url, 2)
        before = megabytes(process)
        run = together(url, visitors)
        after = megabytes(process)
        memory = again(url, process, repeats)
    return {
        "machine": machine(),
        "visitors": visitors,
        "failures": first.failures + run.failures,
        "told_their_place": run.waited,
        "median_seconds": {step: round(median(took), 2) for step, took in run.seconds.items() if took},
        "slowest_seconds": {step: round(max(took), 2) for step, took in run.seconds.items() if took},
        "megabytes_before": round(before),
        "megabytes_after": round(after),
        "repeats": repeats,
        "megabytes_by_tenth": [round(each) for each in memory],
    }


def text(found: dict) -> str:
    """The result as a table."""
    took, slow = found["median_seconds"], found["slowest_seconds"]
    rows = [[step, f"{took[step]:.1f} s", f"{slow[step]:.1f} s"] for step in STEPS if step in took]
    ratio = found["megabytes_after"] / found["megabytes_before"]
    memory = found["megabytes_by_tenth"]
    told = (
        f"{found['visitors']} visitors at once, {len(found['failures'])} errors, {found['told_their_place']} of them were told "
        f"their place in the queue; memory afterwards {ratio:.2f} of what it was before. {found['repeats']} merges and "
        f"comparisons in a row: memory {memory[-1] / memory[1]:.2f} of that after a fifth of them. {found['machine']}"
    )
    return f"{table(['each visitor', 'median', 'slowest'], rows)}\n\n{told}"


def missed(found: dict) -> list[str]:
    """The claims that do not hold."""
    memory = found["megabytes_by_tenth"]
    claims = [
        (not found["failures"], f"errors: {found['failures'][:5]}"),
        (found["told_their_place"] > 0, "nobody who waited was told their place"),
        (found["megabytes_after"] <= BACK * found["megabytes_before"], "memory is not back to its level"),
        (memory[-1] <= GROWTH * memory[1], "merges and comparisons make it grow"),
    ]
    return [claim for holds, claim in claims if not holds]


def main(arguments: list[str] | None = None) -> int:
    """Run, keep and print."""
    parser = parser_for("load", __doc__ or "")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=500)
    given = parser.parse_args(arguments)
    found = measure(given.visitors, given.repeats)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return finish("load", text(found), missed(found), given.write)


if __name__ == "__main__":
    sys.exit(main())
