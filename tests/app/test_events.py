"""How events are listened to, read from the page as the browser gets it."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from functools import cache
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.context import LocalContext

from components import events, page
from components.followed import Followed


@cache
def config() -> dict[str, Any]:
    return page.build().get_config_file()


def test_what_waits_behind_a_run_stands_alone_on_its_event() -> None:
    kind = {component["id"]: component["type"] for component in config()["components"]}
    listeners = defaultdict(list)
    for dependency in config()["dependencies"]:
        for component, event in dependency["targets"]:
            # A state's listeners are begun one by one; what runs in the browser alone never waits.
            if component is not None and kind.get(component) != "state" and dependency["backend_fn"]:
                listeners[component, event].append(dependency["trigger_mode"])
    assert len(listeners) > 50
    beside = {at: modes for at, modes in listeners.items() if "always_last" in modes and len(modes) > 1}
    assert beside == {}


def test_what_shows_no_progress_keeps_its_state_in_the_first_component() -> None:
    first = config()["layout"]["children"][0]["id"]
    hidden = [each for each in config()["dependencies"] if each["show_progress"] == "hidden"]
    assert len(hidden) > 200
    assert {tuple(each["show_progress_on"]) for each in hidden} == {(first,)}


def test_choices_are_never_dropped_while_an_earlier_one_is_answered() -> None:
    kinds = {component["id"]: component["type"] for component in config()["components"]}
    dropping = [
        (kinds.get(component), event, dependency["id"])
        for dependency in config()["dependencies"]
        for component, event in dependency["targets"]
        if event in ("input", "change") and dependency["backend_fn"] and dependency["trigger_mode"] == "once"
    ]
    assert dropping == []


def test_progress_is_shown_where_it_can_be_seen() -> None:
    kinds = {component["id"]: component["type"] for component in config()["components"]}
    shown = [each for each in config()["dependencies"] if each["show_progress"] != "hidden" and each["backend_fn"]]
    assert len(shown) > 5
    assert not any(kinds[place] == "state" for each in shown for place in each["show_progress_on"] or each["outputs"])


def test_the_browser_seeks_no_state_and_nothing_of_the_endpoints() -> None:
    states = {component["id"] for component in config()["components"] if component["type"] == "state"}
    taken = {each for one in config()["dependencies"] if one["api_visibility"] == "private" for each in one["inputs"]}
    assert len(states) > 20
    assert not states & taken
    kinds = {component["id"]: component["type"] for component in config()["components"]}
    order = [kinds.get(child["id"]) == "api" for child in config()["layout"]["children"]]
    assert order == sorted(order)
    assert any(order)


@pytest.mark.parametrize(("opens", "then"), [(True, "process_completed"), (False, "close_stream")])
def test_the_stream_of_messages_stays_open_with_the_page(opens: bool, then: str) -> None:
    """Without what the page does for that Gradio closes it: once it does not, ``stay_open`` can go."""

    def first(request: gr.Request) -> None:
        if opens:
            events.stay_open(request)

    with gr.Blocks() as blocks:
        blocks.load(first, None, None)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)

    def ask() -> None:
        httpx.post(f"{url}gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "me"})

    def until(*ends: str) -> str:
        said = (json.loads(line[5:])["msg"] for line in lines if line.startswith("data:"))
        return next(message for message in said if message in ends)

    try:
        ask()
        with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=me", timeout=30) as stream:
            lines = stream.iter_lines()
            assert until("process_completed")
            time.sleep(0.2)
            ask()
            assert until("process_completed", "close_stream") == then
    finally:
        blocks.close()


def called(blocks: gr.Blocks, held: dict[int, Any], *values: Any) -> Any:
    """What the only listener of a page gives, in a session that holds these states."""
    (listener,) = blocks.fns.values()
    blocks.state_holder = {"me": held}  # type: ignore[assignment]
    token = LocalContext.blocks.set(blocks)
    try:
        assert listener.fn is not None
        return listener.fn(gr.Request(session_hash="me"), *values)
    finally:
        LocalContext.blocks.reset(token)


def test_a_followed_state_fills_everything_in_one_request() -> None:
    with gr.Blocks() as blocks:
        state, other = Followed(3), gr.State("x")
        boxes = [gr.Textbox() for _ in range(3)]

        def fails(value: int) -> str:
            raise gr.Error("not that")

        state.follow(lambda value, text: (f"{text}{value}", value + 1), [state, other], boxes[:2])
        state.follow(fails, [state], boxes[2:])
        state.wire()
    (listener,) = blocks.fns.values()
    assert listener.inputs == [state, other]
    assert listener.outputs == boxes
    with pytest.warns(UserWarning, match="not that"):
        assert called(blocks, {state._id: 3}, 3, "x") == ["x3", 4, gr.skip()]


def test_what_followed_an_earlier_session_is_not_shown() -> None:
    with gr.Blocks() as blocks:
        state, box = Followed(1), gr.Textbox()
        held = {state._id: 1}

        def slow(value: int) -> str:
            held[state._id] = value + 1  # the next change comes meanwhile
            return "late"

        state.follow(slow, [state], [box])
        state.wire()
    assert called(blocks, held, 1) == [gr.skip()]


def test_an_equal_session_in_its_place_is_no_change() -> None:
    with gr.Blocks() as blocks:
        state, box = Followed((1, 2)), gr.Textbox()
        held = {state._id: (1, 2)}

        def follow(value: tuple[int, ...]) -> str:
            held[state._id] = value[:1] + value[1:]  # Gradio tells of no change, so nothing would follow this
            return "shown"

        state.follow(follow, [state], [box])
        state.wire()
    assert called(blocks, held, (1, 2)) == ["shown"]


def test_what_follows_the_session_fills_no_component_twice() -> None:
    followers = [
        each["outputs"]
        for each in config()["dependencies"]
        if any(target[1] == "change" for target in each["targets"]) and len(each["outputs"]) > 20
    ]
    assert followers
    assert all(len(shown) == len(set(shown)) for shown in followers)
