"""``python -m mole train | generate | eval | show``: gates from the command line.

Exit status 0 when all went well, 2 and one line for bad input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lego.cli.command import run
from mole import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    top = argparse.ArgumentParser(prog="python -m mole", description="Train gates that mix LoRAs, and use them.")
    cli.add_commands(top.add_subparsers(required=True, metavar="COMMAND"))
    return run(top.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
