"""Starts the app as a person would, on a free port, with a cache folder of its own that shares only the base models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 120
"""Seconds until the page must answer; a loaded machine is slow, this is no benchmark."""


def shared_home() -> Path:
    """The cache folder of this machine's user, where the built-in base lies converted."""
    return Path(os.environ.get("BRICKYARD_HOME") or Path.home() / ".cache" / "brickyard").expanduser()


def fresh_home(folder: Path) -> Path:
    """An empty cache folder that finds the converted bases of the shared one."""
    (shared_home() / "bases").mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bases").symlink_to(shared_home() / "bases")
    return folder


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def served(home: Path, log: Path, **more: str) -> Iterator[str]:
    """The address of a running app; what it prints goes to ``log``; ``more`` joins its environment."""
    port = more.get("GRADIO_SERVER_PORT") or free_port()
    environment = {**os.environ, "BRICKYARD_HOME": str(home), "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # on two cores the other one is the browser's
    environment.pop("SPACE_ID", None)
    environment |= more
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield wait_for(f"http://127.0.0.1:{port}/", process, log)
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> str:
    """The address, once it answers.

    Raises:
        RuntimeError: with the log's end, when the app ends or does not answer in time.
    """
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the app did not come up:\n{log.read_text(errors='replace')[-3000:]}")
