"""One's place in the queue."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.context import LocalContext

from components import queueing


def waiting(*who: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(session_hash=each) for each in who]


def test_a_place_counts_who_waits_and_who_runs() -> None:
    line = waiting("a", "b", "c", "b")
    assert [queueing.ahead(line, 1, who) for who in "abcd"] == [1, 2, 3, None]
    assert queueing.ahead([], 1, "a") is None


def test_the_place_is_said_until_it_is_ones_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing, "EVERY", 0)
    line = SimpleNamespace(queue=waiting("x", "y"), current_concurrency=1)
    page = SimpleNamespace(_queue=SimpleNamespace(event_queue_per_concurrency_id={"model": line}))
    told: list[Any] = []

    async def follow() -> None:
        LocalContext.blocks.set(page)
        async for text in queueing.place_in("model")(SimpleNamespace(session_hash="me")):
            told.append(text)
            if told[1:] and line.queue:
                line.queue.pop(0)

    async def come_then_move() -> None:
        await asyncio.sleep(0)
        line.queue.append(*waiting("me"))

    async def both() -> None:
        await asyncio.gather(follow(), come_then_move())

    asyncio.run(both())
    assert ["3 are before you" in told[1], "2 are before you" in told[2], "You are next" in told[3]] == [True] * 3
    assert told[4:] == [gr.skip()], "its end says the last value again, which must not be a place"


def test_who_need_not_wait_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing, "EVERY", 0)
    line = SimpleNamespace(queue=waiting("x"), current_concurrency=1)
    page = SimpleNamespace(_queue=SimpleNamespace(event_queue_per_concurrency_id={"model": line}))

    async def follow() -> list[Any]:
        LocalContext.blocks.set(page)
        return [text async for text in queueing.place_in("model")(SimpleNamespace(session_hash="me"))]

    assert asyncio.run(follow()) == [gr.skip()], "a generator without any value empties what it is wired to"


def test_a_queue_in_which_nobody_has_been_yet_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is the first of all to wait may look before their event has come."""
    monkeypatch.setattr(queueing, "EVERY", 0)
    page = SimpleNamespace(_queue=SimpleNamespace(event_queue_per_concurrency_id={}))

    async def follow() -> list[str]:
        LocalContext.blocks.set(page)
        return [text async for text in queueing.place_in("training")(SimpleNamespace(session_hash="me"))]

    assert asyncio.run(follow()) == [gr.skip()]
