"""``python -m benchmarks``: every part, one after another; ``--write`` puts their tables into the README."""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    "live",
    "live_image",
    "images",
    "merging",
    "maps",
    "explorer",
    "interference",
    "tasks",
    "gating",
    "gates",
    "routers",
    "alignment",
    "load",
    "answers",
)

if __name__ == "__main__":
    # Each part in its own process, so that none inherits another's threads, caches or memory.
    for part in PARTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *sys.argv[1:]], check=True)
