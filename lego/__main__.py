"""``python -m lego methods | inspect | preflight | compare | merge | verify | sweep``: adapters from the command line.

Exit status 0 when all went well, 1 for a no (a merge that differs, an adapter that cannot be merged), 2 and one line for bad input,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lego.cli import merge, show, sweep
from lego.cli.command import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    return run(parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lego", description="Take LoRAs apart, merge them, write them.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for family in (show, merge, sweep):
        family.add_commands(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
