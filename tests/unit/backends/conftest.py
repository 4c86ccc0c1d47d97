"""A base for tests of gates: tiny, with a home of its own and a hash that needs no files."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.bases import TextBase
from tests.tiny import tiny_base


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextBase:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    made = tiny_base()
    made.fingerprint = "a" * 64
    return made
