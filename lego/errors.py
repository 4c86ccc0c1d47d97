"""The one error of this package: what is wrong, where, and what to do."""

from __future__ import annotations


class AdapterError(ValueError):
    """Bad input: an adapter, a parameter or a combination of them that cannot be used.

    Args:
        what: what is wrong, without a full stop.
        where: the file, adapter or module concerned.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = clean(what), None if where is None else clean(str(where)), fix and clean(fix)
        line = f"{self.where}: {self.what}" if self.where else self.what
        super().__init__(f"{line}. {self.fix}" if self.fix else line)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross from one process to another whole."""
        return type(self), (self.what, self.where, self.fix)


def clean(text: str, most: int = 2000) -> str:
    """One line that a terminal can show, whatever came in: file names and keys are untrusted."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[:most]} …"
    return line if line.isprintable() else "".join(map(shown, line))


def shown(letter: str) -> str:
    """A character, or its escape where it is none that can be printed."""
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
