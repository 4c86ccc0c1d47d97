"""Tables of results: as markdown on the terminal and between markers in the README."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """What the numbers were measured on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} {platform.machine()} cores{gpu}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def parser_for(part: str, about: str) -> argparse.ArgumentParser:
    """The options that every part has; its module's docstring is the help."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{part}", description=about, formatter_class=form)
    parser.add_argument("--write", action="store_true", help="put what is measured into README.md")
    return parser


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is text, the others numbers."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def write_into_readme(part: str, text: str) -> None:
    """Replace what stands between ``<!-- part -->`` and ``<!-- /part -->`` in README.md.

    Raises:
        ValueError: when the README has no such markers.
    """
    path, start, end = ROOT / "README.md", f"<!-- {part} -->", f"<!-- /{part} -->"
    readme = path.read_text(encoding="utf-8")
    if readme.count(start) != 1 or readme.count(end) != 1:
        raise ValueError(f"README.md has no markers {start} … {end}")
    before, rest = readme.split(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def finish(part: str, text: str, missed: Sequence[str], write: bool) -> int:
    """Print a part's text, put it into the README where wanted, name the claims that do not hold; the exit status.

    What a GPU gave has a place of its own, ``PART-gpu``.
    """
    print(text)
    if write:
        write_into_readme(f"{part}-gpu" if torch.cuda.is_available() else part, text)
    for claim in missed:
        print(f"MISSED: {claim}", file=sys.stderr)
    return 1 if missed else 0
