"""Cards of the built-in image LoRAs."""

from __future__ import annotations

from typing import Any

import yaml

from assets.build.images.concepts import noun
from assets.build.images.sets import STYLES
from assets.build.images.specs import ATTENTION, Spec

BASE = "brickyard-emoji-64"
MEASURES = {
    "style": "in its style",
    "style_of_others": "in its style, of 48 things that it mostly learnt it from",
    "concept": "the concept's caption first among 100",
    "others": "the caption first among 100, for 48 other things",
}

LICENCES = {
    "cc-by-4.0": "CC-BY-4.0, as its drawings.",
    "apache-2.0": "Apache-2.0; the drawings are Apache-2.0 and MIT, see NOTICE.",
}

BODY = """\
# {title}

A LoRA for Brickyard's built-in image model ({base}), trained by `python -m assets.build image-loras` in the Brickyard repository.

**Task.** {task}

{data}

![The base above, the LoRA below](sample.png)

From the same noise: {shown}.

![Some of what it learnt from](references.png)

| on {prompts} held-out prompts, judged by the contrastive model | base | with this LoRA | the drawings themselves |
|---|---|---|---|
{scores}

**Training.** Rank {rank}, alpha {rank}, on {targets}; {steps} steps of {batch} pictures, AdamW at {rate:g} with warm-up and cosine,
averaged weights, seed {seed}; {seconds} seconds. Stored in fp16, measured as stored.
{kohya}
**Intended use.** To be looked at, compared and merged in Brickyard.

**Licence.** {licence}
"""


def about(spec: Spec) -> str:
    """What it learns, in a sentence."""
    if spec.style in STYLES:
        return (
            f"Draws everything in the {spec.style.word} style, which the base knows among five and chooses by chance."
        )
    if spec.style:
        return f"Draws everything in the style of {spec.style.word}, which the base never saw."
    names = ", ".join(noun(concept) for concept in spec.concepts)
    if spec.word:
        return (
            f'Draws one thing that the base does not draw, a {names}, at the rare word "{spec.word}", as in DreamBooth.'
        )
    return f"Draws things that the base does not draw, in all its styles: {names}."


def card(spec: Spec, record: dict[str, Any]) -> str:
    """README.md: the hub's front matter, with what Brickyard shows under ``brickyard``, and a text.

    Args:
        record: the content of ``training.json``.
    """
    packages = [style.package for style in ([spec.style] if spec.style else STYLES)]
    licence = " AND ".join(sorted({package.licence for package in packages}))
    shared = "cc-by-4.0" if "CC-BY-4.0" in licence else "apache-2.0"
    metric = "style" if spec.style else "concept"
    scores = record["scores"]
    targets = [*spec.targets, *(f"text encoder {name}" for name in spec.text)]
    front = {
        "language": ["en"],
        "base_model": BASE,
        "library_name": "diffusers",
        "license": shared,
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "brickyard", spec.name],
        "brickyard": {
            "title": spec.title,
            "task": about(spec),
            "data": "; ".join(f"{package.name} {package.version}" for package in packages),
            "data_licence": licence,
            "rank": spec.rank,
            "alpha": spec.rank,
            "targets": targets,
            "seed": spec.seed,
            "steps": record["plan"]["steps"],
            "metric": MEASURES[metric],
            "before": round(scores["base"][metric], 4),
            "after": round(scores["lora"][metric], 4),
            "heldout_rows": record["prompts"],
            "prompts": record["shown"][:4],
        },
    }
    rows = [
        f"| {text} | {' | '.join(f'{scores[of][key]:.0%}' for of in ('base', 'lora', 'drawings'))} |"
        for key, text in MEASURES.items()
        if key in scores["lora"]
    ]
    kept = "Every tenth pair of concept and style is held out"
    credit = "\n".join(f"- {package.credit}" for package in packages)
    body = BODY.format(
        title=spec.title, base=BASE, task=about(spec), data=f"**Data.** {record['pictures']} pictures. {kept}.\n\n{credit}",
        shown="; ".join(record["shown"]), prompts=record["prompts"], scores="\n".join(rows), rank=spec.rank,
        targets="attention" if tuple(targets) == ATTENTION else ", ".join(targets), steps=record["plan"]["steps"],
        batch=spec.batch, rate=spec.rate, seed=spec.seed, seconds=round(record["seconds"]),
        kohya=f"\nIn kohya's format, too: `kohya/{spec.name}`.\n" if spec.kohya else "",
        licence=LICENCES[shared],
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110)}---\n\n{body}"
