"""What tests of the backends share: a hub on loopback, nothing loaded yet, a tiny base with a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import alignment, bases, gates
from backends.bases import TextBase
from tests.hub import Hub, hub
from tests.tiny import tiny_base


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextBase:
    """For tests of gates, none of which were added before; its hash needs no files."""
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(gates, "_entries", {})
    monkeypatch.setattr(gates, "_loaded", type(gates._loaded)())
    made = tiny_base()
    made.fingerprint = "a" * 64
    return made


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; nothing was loaded or downloaded before."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("BRICKYARD_DEVICE", "cpu")
    for module in (alignment, bases):
        monkeypatch.setattr(module, "_loaded", type(module._loaded)())
    monkeypatch.setattr(bases, "_locks", {})


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, nothing of which was downloaded before."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        yield found
