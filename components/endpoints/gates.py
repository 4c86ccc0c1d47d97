"""The named endpoints about gates: train some, ask what they choose, and how `/compare` names them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from backends import captions
from backends import gates as store
from backends.bases import TextBase
from backends.gated import choices
from backends.image import Variant, draw
from backends.library import Entry
from backends.training import Training
from backends.training_lent import LentTraining, begin
from components import kinds
from components.compare import drawing, examples, export
from components.compare import tab as compare
from components.gate import gating, training_data, uploaded_pictures
from components.library import uploads
from components.library.shelf import builtin_base, checked_base, named, named_gates
from components.merge import making
from components.messages import told
from components.work import loading
from lego import AdapterError
from mole.pool import Weighting
from mole.trace import Trace

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
    guidance: dict | None = None,
) -> Iterator[dict]:
    """Train gates that mix LoRAs. Streams a dict a step: step, steps, loss, balance, entropy, shares, seconds, stopped.

    shares is gates × experts. The last dict has instead key (for /gates, /compare and /draw), name, gates, parameters, stopped and
    file (a zip). Example: client.submit(["past-tense", "sentiment"], {"past-tense": 1, "sentiment": 2},
    {"granularity": "block"}, {"steps": 50}, api_name="/train_gate"); for pictures: client.submit(["ink-style", "animals"],
    {"ink-style": 1, "animals": 1}, api_name="/train_gate")

    Args:
        adapters: keys or names of the LoRAs, all for texts or all for pictures.
        data: built-in tasks, or for pictures built-in sets, with their shares; those that belong to the LoRAs unless given.
        gates: granularity (module, layer, block, network), reads (outputs, hidden), normalise (centred, l2), base_expert; for
            pictures also pooling (mean, flatten).
        training: steps, batch, lr, alpha, warmup, weight_decay, clip, calibration, seed, micro_batch.
        rows: rows of your own besides, each {"prompt": …, "answer": …}; for pictures {"text": caption, "picture": a PNG, JPEG or
            WebP file in base64}, under guidance {"text": caption} alone.
        name: of the gates.
        base: the built-in model that the LoRAs are for unless given.
        guidance: for pictures, learn from captions alone, drawn and judged by a contrastive model: model (a CLIP's hub id; the
            built-in one unless given), steps, local, source. {} takes the defaults.
    """
    if not isinstance(adapters, list) or not adapters or len(adapters) > MOST_LORAS:
        raise AdapterError(f"adapters must be a list of 1 to {MOST_LORAS} names")
    entries = [named(given) for given in adapters]
    base_id = checked_base(base) if base else builtin_base(kinds.of_adapter(entries[0].key))
    loaded, keys = loading(base_id).base(), [entry.key for entry in entries]
    if isinstance(loaded, TextBase):
        found, guided = _texts(entries, data, rows), guidance
    else:
        found, guided = _pictures(entries, data, rows, guidance)
    recipe = gating.recipe_of(keys, found, _settings("gates", gates), _settings("training", training), guided)
    run, last = begin(loaded, keys, recipe), None
    for last in run.run():
        told_step = {"step": last.step, "steps": last.steps, "loss": last.loss, "balance": last.balance}
        more = {"entropy": last.entropy, "seconds": round(last.seconds, 3), "stopped": last.stopped}
        yield {**told_step, **more, "shares": last.shares.tolist()}
    yield _trained(run, str(name), last.stopped if last else None)


def _texts(entries: list[Entry], data: Any, rows: Any) -> list[dict[str, Any]]:
    """What gates over texts learn from."""
    if data is None and not rows:
        data = {task: 1.0 for entry in entries if (task := examples.task_of(entry))}
    shares = _settings("data", data)
    found = gating.task_rows(list(shares), shares)
    return found + ([{"rows": str(_own(rows))}] if rows else [])


def _pictures(
    entries: list[Entry], data: Any, rows: Any, guidance: Any
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What gates over pictures learn from, and under which guidance."""
    if data is None and not rows:
        data = {entry.name: 1.0 for entry in entries if entry.name in captions.sets()}
    shares = _settings("data", data)
    found = gating.set_rows(list(shares), shares)
    if rows:
        found.append({"rows": str(_own_pictures(rows, pictures=guidance is None))})
    if guidance is None:
        return found, None
    given = dict(_settings("guidance", guidance))
    return found, training_data.guidance_of(given, given.pop("model", None))


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


def _own(rows: Any) -> Path:
    """Rows that came with a call, kept as a file like uploaded ones."""
    if not isinstance(rows, list) or len(rows) > MOST_ROWS:
        raise AdapterError(f"rows must be a list of at most {MOST_ROWS} {{prompt: …, answer: …}}")
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return uploads.receive_rows(file)


def _own_pictures(rows: Any, pictures: bool) -> Path:
    """Captions that came with a call, and their pictures."""
    shape = "{text: …, picture: base64}" if pictures else "{text: …}"
    if not isinstance(rows, list) or len(rows) > MOST_ROWS or not all(isinstance(row, dict) for row in rows):
        raise AdapterError(f"rows must be a list of at most {MOST_ROWS} {shape}")
    keys = ("text", "picture") if pictures else ("text",)
    for number, row in enumerate(rows):
        if not all(isinstance(row.get(key), str) for key in keys):
            raise AdapterError(f"is not a row: it takes {shape}", f"rows[{number}]")
    try:
        files = [base64.b64decode(row["picture"], validate=True) for row in rows] if pictures else []
    except ValueError as error:
        raise AdapterError(f"a row's picture is not base64 ({error})") from error
    return uploaded_pictures.receive_captions([row["text"] for row in rows], files)


@told
def gate_choices(
    gates: str,
    prompt: str,
    masked: list[str] | None = None,
    base: str = "",
    chat: bool = True,
    steps: int = 20,
    seed: int = 0,
) -> dict:
    """What every gate chooses for a prompt: {gates, experts, places, weights (gates × experts), entropy, largest}.

    On a base that draws the prompt is drawn: weights are means over the denoising steps, by_step holds them step by step (steps ×
    gates × experts), and picture is a file. Example: client.predict("three-tasks", "What is the past tense of 'go'?", ["sentiment"],
    api_name="/gates")

    Args:
        gates: the key of trained gates from /train_gate, or the name of built-in ones.
        prompt: whatever you want to ask or draw.
        masked: names of the LoRAs that the gates may not use.
        base: the one that the gates were trained on unless given.
        chat: for texts: put the prompt into the model's chat template.
        steps: for pictures: of denoising.
        seed: for pictures: of the noise.
    """
    if not isinstance(prompt, str):
        raise AdapterError("prompt must be a text")
    compare.check_prompts([prompt])
    weighting = gated(gates, masked)
    found = store.entry(str(weighting.gates))
    loaded = loading(checked_base(base or found.saved.base.id)).base()
    facts: dict[str, Any] = {"gates": found.key, "experts": list(found.columns)}
    if isinstance(loaded, TextBase):
        trace = choices(loaded, found, [prompt], weighting.masked, bool(chat))
        return {**facts, **_traced(trace, trace.shares.tolist())}
    wanted = drawing.read(steps, None, str(seed), "", "", "")
    *_, sheet = draw(loaded, [Variant(found.name, weighting)], [prompt], wanted)
    course, picture = sheet.courses[0][0][0], sheet.pictures[0][0][0]
    assert course is not None
    assert picture is not None
    every = Trace(course.sites, course.experts, course.choices.flatten(0, 1))
    file = export.picture_file(picture)
    told = {"path": str(file), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
    more = {"by_step": course.shares.tolist(), "picture": told}
    return {**facts, **_traced(every, course.by_gate.tolist()), **more}


def _traced(found: Trace, weights: list[list[float]]) -> dict[str, Any]:
    return {"places": list(found.sites), "weights": weights, "entropy": found.entropy, "largest": found.largest}


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
