"""``python -m lego methods | inspect | preflight | compare | merge | verify | sweep``: adapters from the command line.

Exit status 0 when all went well, 1 for a no (a merge that differs, an adapter that cannot be merged), 2 and one line for bad input,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lego.cli import merge, show, sweep
from lego.errors import AdapterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except AdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head) left; Python would complain again when it flushes stdout at exit.
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lego", description="Take LoRAs apart, merge them, write them.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for family in (show, merge, sweep):
        family.add_commands(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
