"""The endpoints as a page for people and agents, made from the running page's own functions:
``python -m components.endpoints.documented``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

FILE = Path(__file__).parents[2] / "ENDPOINTS.md"
HEAD = """# Endpoints

A running page answers programs at the endpoints below: JSON in, JSON out, files as downloads. What is wrong with a call is said in its
error. This page is made from the functions themselves (`python -m components.endpoints.documented`); the tests run every example.

```python
from gradio_client import Client

client = Client("http://127.0.0.1:7860")  # or owner/name of a Space
client.predict(api_name="/adapters")
```

Where the package `mcp` is installed (`pip install "gradio[mcp]"`; Spaces have it), the same endpoints are tools of an MCP server at
`/gradio_api/mcp/`: each tool's parameters are those named here. An adapter is named by the `name` of a built-in one or by a `key`, the
hash of what it holds. Uploads of the page's visitors cannot be named here.
"""
EXAMPLES = {
    "adapters": 'client.predict(api_name="/adapters")',
    "inspect": 'client.predict("sentiment", api_name="/inspect")',
    "unit_map": 'client.predict(["past-tense", "sentiment"], "q_proj", k="2r", api_name="/unit_map")',
    "merge": 'client.predict(["past-tense", "sentiment"], "lego", [1, 0.8], {"k": "2r"}, api_name="/merge")',
    "train_gate": """client.predict(
    ["past-tense", "sentiment"],
    {"past-tense": 1, "sentiment": 1},
    {"granularity": "network"},
    {"steps": 1, "batch": 2},
    api_name="/train_gate",
)""",
    "gates": 'client.predict("three-tasks", "What is the past tense of \'go\'?", ["sentiment"], api_name="/gates")',
    "compare": """client.predict(
    [{"name": "base"}, {"name": "past", "adapters": {"past-tense": 1}}],
    ["What is the past tense of 'go'?"],
    length=8,
    api_name="/compare",
)""",
    "draw": 'client.predict([{"name": "base"}], ["a red fox"], steps=2, seeds=[0], api_name="/draw")',
}


def text(page: gr.Blocks) -> str:
    """The whole document."""
    return "\n".join([HEAD, *(section(name, function) for name, function in public(page))])


def public(page: gr.Blocks) -> Iterator[tuple[str, Any]]:
    """The names of the public endpoints and their functions."""
    for each in page.fns.values():
        if each.api_visibility == "public" and isinstance(each.api_name, str):
            yield each.api_name, each.fn


def section(name: str, function: Any) -> str:
    """One endpoint: what it does, what it takes with types and defaults, an example."""
    about, meanings = read(inspect.getdoc(function) or "")
    given = inspect.signature(function)
    tool = "" if function.__name__ == name else f" As an agent's tool it is called `{function.__name__}`."
    lines = [f"## /{name}", "", about + tool, ""]
    if given.parameters:
        lines += ["| parameter | type | default | |", "|---|---|---|---|"]
        lines += [row(each, meanings.get(each.name, "")) for each in given.parameters.values()]
        lines.append("")
    kind = "streams" if "Iterator" in str(given.return_annotation) else "gives"
    returned = re.sub(r"^Iterator\[(.*)\]$", r"\1", str(given.return_annotation))
    return "\n".join([*lines, f"It {kind} `{returned}`.", "", "```python", EXAMPLES[name], "```", ""])


def row(parameter: inspect.Parameter, meaning: str) -> str:
    """A parameter as a row of the table."""
    needed = parameter.default is inspect.Parameter.empty
    default = "needed" if needed else f"`{parameter.default!r}`"
    return f"| `{parameter.name}` | `{cell(str(parameter.annotation))}` | {default} | {cell(meaning)} |"


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|")


def read(documentation: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, without its example, and of each argument."""
    about, _, arguments = documentation.partition("\nArgs:\n")
    about = re.sub(r" *Example: .*", "", " ".join(about.split()))
    found, name = {}, ""
    for line in arguments.splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return about.strip(), found


if __name__ == "__main__":
    from components import page

    FILE.write_text(text(page.build()), encoding="utf-8")
    print(FILE)
