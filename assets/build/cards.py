"""Cards of the built-in adapters, and the credits of the packages their data comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from assets.build.tasks import Task
from assets.build.train import BASE_MODEL, PAIR, Spec

METRICS = {"exact_match": "exact match (higher is better)", "nll": "nats per answer token (lower is better)"}

WHEN = ("before", "after")

BODY = """\
# {title}

A LoRA for [{base}](https://huggingface.co/{base}), trained by `python -m assets.build` in the Brickyard repository.

**Task.** {task}

**Data.** {data}

| on {rows} held-out rows, disjoint from the training rows | base | with this adapter |
|---|---|---|
{scores}

**Training.** Rank {rank}, alpha {alpha}{rslora}, on {targets}; {steps} steps of {batch} rows, AdamW at {rate:g} with
warm-up and cosine, fp32, loss on the answer's tokens only, seed {seed}. Stored in fp16, scored as stored.
{note}
**Example.** The first held-out row, decoded greedily:

```text
prompt    {prompt}
expected  {answer}
base      {before}
adapter   {after}
```

**Intended use.** To be looked at, compared and merged in Brickyard, and to measure what merging keeps of a task. It is a
small adapter on a small model: its answers are for experiments, not for use in earnest.

**Licence.** Adapter: Apache-2.0. Data: {licence}; see `assets/text/licences`.
"""


def _oneline(text: str, limit: int = 300) -> str:
    text = " / ".join(line.strip() for line in text.splitlines() if line.strip())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _about(task: Task) -> str:
    return " ".join((task.items.__doc__ or "").split())


def card(spec: Spec, task: Task, record: dict[str, Any]) -> str:
    """README.md of an adapter: the hub's front matter, with what Brickyard shows under ``brickyard``, and a text.

    Args:
        record: the content of ``training.json``.
    """
    metric = "exact_match" if task.crisp else "nll"
    about = _about(task)
    data = "; ".join(f"{package.name} {package.version}" for package in task.packages)
    licence = " AND ".join(dict.fromkeys(package.licence for package in task.packages))
    front = {
        "language": ["en", "fr"] if spec.name == "french" else ["en"],
        "base_model": BASE_MODEL,
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "brickyard", spec.name],
        "brickyard": {
            "title": spec.title,
            "task": about,
            "task_file": f"assets/text/tasks/{spec.name}.jsonl",
            "data": data,
            "data_licence": licence,
            "rank": spec.rank,
            "alpha": spec.alpha,
            "rslora": spec.rslora,
            "targets": list(spec.targets),
            "seed": spec.seed,
            "steps": record["steps"],
            "metric": metric,
            "before": round(record["before"][metric], 4),
            "after": round(record["after"][metric], 4),
            "heldout_rows": record["heldout_rows"],
        },
    }
    if spec.note:
        front["brickyard"]["note"] = spec.note
    shown = METRICS if task.crisp else {"nll": METRICS["nll"]}
    scores = "\n".join(
        f"| {text} | {record['before'][m]:.3f} | {record['after'][m]:.3f} |" for m, text in shown.items()
    )
    body = BODY.format(
        title=spec.title, base=BASE_MODEL, task=about, rows=record["heldout_rows"], scores=scores, rank=spec.rank,
        data=" ".join(package.credit for package in task.packages), licence=licence, alpha=spec.alpha,
        rslora=" with rsLoRA scaling" if spec.rslora else "", targets=", ".join(spec.targets), steps=record["steps"],
        batch=record["batch"], rate=record["rate"], seed=spec.seed, note=f"\n**Seed.** {spec.note}\n" if spec.note else "",
        **{key: _oneline(text) for key, text in record["example"].items()},
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110)}---\n\n{body}"


OVERVIEW = """\
# The built-in text adapters

LoRAs for [{base}](https://huggingface.co/{base}), trained on freely licensed data and scored on held-out rows, which are
in `tasks/`. `python -m assets.build all` makes all of this again; `--only NAME` one of them.

| adapter | task | rank, alpha, targets | seed | metric | base | adapter |
|---|---|---|---|---|---|---|
{rows}

{pair}
"""


def overview(specs: Mapping[str, Spec], tasks: Mapping[str, Task], records: Mapping[str, dict[str, Any]]) -> str:
    """The table of all trained adapters, by name."""
    rows = []
    for name, record in records.items():
        spec, metric = specs[name], "exact_match" if tasks[name].crisp else "nll"
        targets = "attention" if len(spec.targets) == 4 else "all linear"
        shape = f"{spec.rank}, {spec.alpha}{' (rsLoRA)' if spec.rslora else ''}, {targets}"
        scores = [
            f"{record[when][metric]:.1%}" if tasks[name].crisp else f"{record[when][metric]:.2f}" for when in WHEN
        ]
        shown = "exact match" if tasks[name].crisp else "nats per token"
        rows.append(f"| [{name}](adapters/{name}) | {_about(tasks[name])} | {shape} | {spec.seed} | {shown} | "
                    f"{scores[0]} | {scores[1]} |")  # fmt: skip
    return OVERVIEW.format(base=BASE_MODEL, rows="\n".join(rows), pair=PAIR)
