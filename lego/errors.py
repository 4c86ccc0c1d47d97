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
        self.what, self.where, self.fix = what, None if where is None else str(where), fix
        line = f"{self.where}: {what}" if self.where else what
        # One line whatever came in: file names and keys are untrusted and may hold line breaks.
        super().__init__(" ".join((f"{line}. {fix}" if fix else line).split()))
