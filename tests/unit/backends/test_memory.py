"""Memory that has become free is given back, but not all the time."""

from __future__ import annotations

import pytest

from backends import memory


def test_memory_is_given_back_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    collected, now = [], [100.0]
    monkeypatch.setattr(memory, "_given_back", 0.0)
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(memory.gc, "collect", lambda: collected.append(now[0]))
    for now[0] in (100, 101, 100 + memory.PAUSE, 100.5 + memory.PAUSE, 101 + memory.PAUSE):
        memory.give_back_at_times()
    assert collected == [100, 100.5 + memory.PAUSE]
