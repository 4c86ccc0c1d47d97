"""How a command ends: the exit status, and one line for bad input."""

from __future__ import annotations

import argparse
import sys

from lego.errors import AdapterError


def run(options: argparse.Namespace) -> int:
    """Run the command that the options chose (``options.run``); the exit status."""
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
