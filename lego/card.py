"""The model card of a written adapter, as the hub expects it."""

from __future__ import annotations

import re

import yaml

from lego.adapter import Adapter
from lego.report import MergeReport

CARD = "README.md"
# What the hub accepts as a base model: the id of a repository.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LIBRARY = {"peft": "peft", "diffusers": "diffusers", "kohya": "diffusers"}


def card_of(adapter: Adapter, report: MergeReport | None, name: str, format: str) -> str:
    """What was merged from which sources under which licences, how, and how close it is to the exact sum."""
    lines = [
        "---",
        yaml.safe_dump(front_matter(adapter, report, format), sort_keys=False, allow_unicode=True).strip(),
        "---",
    ]
    lines += ["", f"# {name}", ""]
    if adapter.base_model:
        lines += [f"A LoRA for {adapter.base_model}.", ""]
    if report is not None:
        given = ", ".join(f"{key}={value}" for key, value in report.parameters.items())
        lines += [f"Merged with `{report.method}` ({given}, seed {report.seed}) by Brickyard.", ""]
        lines += ["| source | weight | rank | licence | sha256 |", "|---|---|---|---|---|"]
        lines += [
            f"| {cell(source.origin or source.name)} | {cell(str(source.weight))} | {', '.join(map(str, source.ranks))} "
            f"| {cell(source.license or 'not stated')} | `{source.sha256}` |"
            for source in report.sources
        ]
        lines += [
            "",
            f"Against the exact weighted sum of the sources: {report.fidelity}. `recipe.yaml` makes it again.",
            "",
        ]
        lines += [f"- {warning}" for warning in report.warnings] + ([""] if report.warnings else [])
    return "\n".join(lines)


def front_matter(adapter: Adapter, report: MergeReport | None, format: str) -> dict[str, object]:
    """The card's metadata: library, base, licence where the sources agree in one, tags."""
    facts: dict[str, object] = {}
    if adapter.base_model and REPOSITORY.fullmatch(adapter.base_model):
        facts |= {"base_model": adapter.base_model, "base_model_relation": "adapter"}
    facts["library_name"] = LIBRARY[format]
    licences = {source.license for source in report.sources} if report else set()
    if len(licences) == 1 and None not in licences:
        facts["license"] = licences.pop()
    elif licences - {None}:
        facts |= {"license": "other", "license_name": "licences-of-the-sources"}
    facts["tags"] = ["lora", *(["merge"] if report else []), "brickyard"]
    return facts


def cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
