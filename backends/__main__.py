"""``python -m backends``: fetch and convert the built-in base model, if that has not been done."""

from __future__ import annotations

import sys

from backends import bases, builtin


def main() -> int:
    """Returns 0 when the model is there."""
    try:
        folder = builtin.ensure(bases.Teller(builtin.ID, None))
    except bases.BaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
