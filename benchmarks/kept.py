"""Results that are kept as soon as they are there, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

FOLDER = Path(__file__).parent / "results"


class Kept:
    """One part's results by key, in ``results/PART.json``; several processes may fill it.

    What was measured on other adapters or rows does not count, and the first new result replaces it.
    """

    def __init__(self, part: str, adapters: dict[str, str], rows: object) -> None:
        """Name what results belong to.

        Args:
            part: of the benchmarks.
            adapters: keys of the library by name.
            rows: what is asked, as JSON holds it.
        """
        self.path = FOLDER / f"{part}.json"
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
        self.of = {"adapters": adapters, "rows": digest}
        FOLDER.mkdir(exist_ok=True)

    def known(self) -> dict[str, Any]:
        """What has been measured on these very adapters and rows, by this process or another."""
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        known: dict[str, Any] = found["scores"] if found.get("of") == self.of else {}
        return known

    def keep(self, key: str, result: Any) -> None:
        """Write one more result down."""
        with FileLock(self.path.with_suffix(".lock")):
            scratch, scores = self.path.with_suffix(".tmp"), {**self.known(), key: result}
            scratch.write_text(json.dumps({"of": self.of, "scores": scores}, indent=0, sort_keys=True) + "\n")
            os.replace(scratch, self.path)
