"""Tables of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

# Lines of a table at most; a line below it says how many were left out.
LINES = 12


def short(name: str, width: int) -> str:
    """A name cut in the middle, where names of modules and of adapters differ least."""
    keep = width - 1
    return name if len(name) <= width else f"{name[: keep // 2]}…{name[-(keep - keep // 2) :]}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """A table as lines; the columns of text stand to the left, numbers to the right.

    Args:
        head: of the columns.
        rows: cells.
        left: which columns are text.
    """
    table = [head, *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def left_out(count: int, what: str) -> list[str]:
    """A line that says how many more there are than a table shows."""
    return [f"… and {count - LINES} more {what}"] if count > LINES else []
