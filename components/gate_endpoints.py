"""The named endpoints about gates: train some, ask what they choose, and how `/compare` names them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from backends import bases
from backends import gates as store
from backends.gated import choices
from backends.training import Training
from backends.training_lent import LentTraining, begin
from components import compare, examples, export, gating, making, uploads
from components.messages import told
from components.shelf import checked_base, named, named_gates
from components.work import loading
from lego import AdapterError
from mole.pool import Weighting

MOST_ROWS, MOST_LORAS = 10_000, 16


@told
def train_gate(
    adapters: list[str],
    data: dict | None = None,
    gates: dict | None = None,
    training: dict | None = None,
    rows: list[dict] | None = None,
    name: str = "",
    base: str = "",
) -> Iterator[dict]:
    """Train gates that mix LoRAs. Streams a dict a step: step, steps, loss, balance, entropy, shares, seconds, stopped.

    shares is gates × experts. The last dict has instead key (for /gates and /compare), name, gates, parameters, stopped and
    file (a zip). Example: client.submit(["past-tense", "sentiment"], {"past-tense": 1, "sentiment": 2},
    {"granularity": "block"}, {"steps": 50}, api_name="/train_gate")

    Args:
        adapters: keys or names of the LoRAs.
        data: built-in tasks with their shares; those that the LoRAs were trained for unless given.
        gates: granularity (module, layer, block, network), reads (outputs, hidden), normalise (centred, l2), base_expert.
        training: steps, batch, lr, alpha, warmup, weight_decay, clip, calibration, seed, micro_batch.
        rows: rows of your own besides, each {"prompt": …, "answer": …}.
        name: of the gates.
        base: the built-in model unless given.
    """
    if not isinstance(adapters, list) or not adapters or len(adapters) > MOST_LORAS:
        raise AdapterError(f"adapters must be a list of 1 to {MOST_LORAS} names")
    entries = [named(given) for given in adapters]
    if data is None and not rows:
        data = {task: 1.0 for entry in entries if (task := examples.task_of(entry))}
    shares = _settings("data", data)
    found = gating.task_rows(list(shares), shares)
    if rows:
        found.append({"rows": str(_own(rows))})
    keys = [entry.key for entry in entries]
    recipe = gating.recipe_of(keys, found, _settings("gates", gates), _settings("training", training))
    run, last = begin(loading(_base(base)).base(), keys, recipe), None
    for last in run.run():
        told_step = {"step": last.step, "steps": last.steps, "loss": last.loss, "balance": last.balance}
        more = {"entropy": last.entropy, "seconds": round(last.seconds, 3), "stopped": last.stopped}
        yield {**told_step, **more, "shares": last.shares.tolist()}
    yield _trained(run, str(name), last.stopped if last else None)


def _trained(run: Training | LentTraining, name: str, stopped: str | None) -> dict[str, Any]:
    shown = name.strip()[: making.NAME_LIMIT] or "gates"
    made = run.add(making.slug(shown) or "gates")
    file = export.gates_zip(made, shown)
    download = {"path": str(file), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
    numbers = {"gates": len(run.gates.sites), "parameters": run.gates.parameter_count}
    return {"key": made.key, "name": shown, **numbers, "stopped": stopped, "file": download}


def _settings(name: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise AdapterError(f"{name} must be {{name: value}}")
    return given or {}


def _base(given: str) -> str:
    return checked_base(given) if given else bases.catalogue()[0].id


def _own(rows: Any) -> Path:
    """Rows that came with a call, kept as a file like uploaded ones."""
    if not isinstance(rows, list) or len(rows) > MOST_ROWS:
        raise AdapterError(f"rows must be a list of at most {MOST_ROWS} {{prompt: …, answer: …}}")
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return uploads.receive_rows(file)


@told
def gate_choices(gates: str, prompt: str, masked: list[str] | None = None, base: str = "", chat: bool = True) -> dict:
    """What every gate chooses for a prompt: {gates, experts, places, weights (gates × experts), entropy, largest}.

    Example: client.predict("three-tasks", "What is the past tense of 'go'?", ["sentiment"], api_name="/gates")

    Args:
        gates: the key of trained gates from /train_gate, or the name of built-in ones.
        prompt: whatever you want to ask.
        masked: names of the LoRAs that the gates may not use.
        base: the built-in model unless given.
        chat: put the prompt into the model's chat template.
    """
    if not isinstance(prompt, str):
        raise AdapterError("prompt must be a text")
    compare.check_prompts([prompt])
    weighting = gated(gates, masked)
    found = store.entry(str(weighting.gates))
    trace = choices(loading(_base(base)).base(), found, [prompt], weighting.masked, bool(chat))
    return {
        "gates": found.key,
        "experts": list(found.columns),
        "places": list(trace.sites),
        "weights": trace.shares.tolist(),
        "entropy": trace.entropy,
        "largest": trace.largest,
    }


def gated(gates: Any, masked: Any) -> Weighting:
    """The weighting of a gated variant as a caller names it.

    Raises:
        AdapterError: when there are no such gates or LoRAs, or nothing is left.
    """
    found = named_gates(gates)
    names = [] if masked is None else masked
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError("masked must be a list of names")
    for key in found.experts:
        named(key)
    return found.weighting(gating.checked_mask(found, store.masked_keys(found, names)))


def register() -> None:
    """Make the endpoints; call inside the page's Blocks."""
    gr.api(train_gate, api_name="train_gate", concurrency_limit=1, concurrency_id="training")
    gr.api(gate_choices, api_name="gates", concurrency_limit=1, concurrency_id="model")
