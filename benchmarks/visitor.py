"""A visitor without a browser: fires the page's events as its script does, follows what they set off, keeps what is shown."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from gradio_client.utils import apply_diff

Stream = Callable[[dict[str, Any]], bool]


class Failed(Exception):
    """The page showed an error."""


class Visitor:
    """One open page: components' values by id, a session, and its heartbeat until `leave`."""

    def __init__(self, url: str, name: str) -> None:
        """Open the page; nothing has been fired yet."""
        self.url, self.name, self.session = url.rstrip("/"), name, uuid.uuid4().hex[:11]
        self.client = httpx.Client(timeout=httpx.Timeout(300, connect=30))
        config = self.client.get(f"{self.url}/config").json()
        self.components = {each["id"]: each for each in config["components"]}
        self.values = {each["id"]: each["props"].get("value") for each in config["components"]}
        self.events = {each["id"]: each for each in config["dependencies"]}
        self.shown: list[str] = []
        self._open, self._stream = True, self._messages()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def _beat(self) -> None:
        try:
            with self.client.stream("GET", f"{self.url}/gradio_api/heartbeat/{self.session}") as answer:
                for _ in answer.iter_lines():
                    if not self._open:
                        return
        except httpx.HTTPError:
            if self._open:  # else `leave` has cut it off
                raise

    def leave(self) -> None:
        """Close the tab."""
        self._open = False
        self.client.close()

    def find(self, kind: str, label: str) -> int:
        """The id of the component of a kind with a label, or with a text for a button.

        Raises:
            LookupError: when there is none.
        """
        for id, each in self.components.items():
            named = each["props"].get("value") if kind == "button" else each["props"].get("label")
            if each["type"] == kind and named == label:
                return id
        raise LookupError(f"the page has no {kind} {label!r}")

    def value(self, kind: str, label: str) -> Any:
        """What a component shows."""
        return self.values[self.find(kind, label)]

    def set(self, kind: str, label: str, value: Any) -> None:
        """Set a component, as a person does; what listens to it is not fired."""
        self.values[self.find(kind, label)] = value

    def triggered(self, target: int | None, event: str) -> list[int]:
        """The events that listen to a component's event, or to the page's own."""
        wanted = [target, event]
        return [id for id, each in self.events.items() if wanted in [list(t) for t in each["targets"]]]

    def press(self, label: str, until: Stream | None = None) -> None:
        """Click a button and wait until everything that it sets off is done."""
        self.fire(self.triggered(self.find("button", label), "click"), until=until)

    def load(self) -> None:
        """What the page does when it opens."""
        pages = {target for each in self.events.values() for target, event in each["targets"] if event == "load"}
        self.fire([id for page in pages for id in self.triggered(page, "load")])

    def fire(self, ids: list[int], data: Any = None, until: Stream | None = None) -> None:
        """Fire events and all that follow from them.

        Args:
            ids: of the events.
            data: of the event itself, such as what was clicked.
            until: is shown every message; True ends the waiting, and what still runs is cancelled.

        Raises:
            Failed: with what the page shows of an error.
        """
        running: dict[str, int] = {}
        for id in ids:
            self._begin(id, data, running)
        drafts: dict[str, list[Any]] = {}
        while running:
            message = self._next()
            event = message.get("event_id")
            if event not in running:
                continue
            if message["msg"] == "process_generating":
                self._generated(running[event], message, drafts, event)
            if until and until(message):
                for left, id in running.items():
                    self._cancel(left, id)
                return
            if message["msg"] == "process_completed":
                for id in self._completed(running.pop(event), message):
                    self._begin(id, None, running)

    def _begin(self, id: int, data: Any, running: dict[str, int]) -> None:
        """Begin an event: in the queue, at once, or in the page alone, and then what follows it."""
        event = self.events[id]
        if not event["backend_fn"]:
            following = self._following(id, good=True)
        elif event["queue"]:
            running[self._ask("queue/join", id, data)["event_id"]] = id
            return
        else:
            following = self._completed(id, {"success": True, "output": self._ask("run/predict", id, data)})
        for other in following:
            self._begin(other, None, running)

    def _ask(self, place: str, id: int, data: Any) -> dict[str, Any]:
        inputs = self.events[id]["inputs"]
        given = [None if self.components[each]["type"] == "state" else self.values[each] for each in inputs]
        body = {"data": given, "fn_index": id, "session_hash": self.session, "event_data": data, "trigger_id": None}
        answer = self.client.post(f"{self.url}/gradio_api/{place}", json=body)
        if answer.status_code != 200:
            raise Failed(f"{answer.status_code}: {answer.text[:300]}")
        return answer.json()

    def _following(self, id: int, good: bool) -> list[int]:
        return [
            other
            for other, each in self.events.items()
            if each.get("trigger_after") == id
            and (good if each.get("trigger_only_on_success") else True)
            and (not good if each.get("trigger_only_on_failure") else True)
        ]

    def _cancel(self, event: str, id: int) -> None:
        body = {"session_hash": self.session, "fn_index": id, "event_id": event}
        self.client.post(f"{self.url}/gradio_api/cancel", json=body)

    def _next(self) -> dict[str, Any]:
        """The next message of the page's one stream; where that has ended, of the next."""
        while (message := next(self._stream, None)) is None:
            self._stream = self._messages()
        return message

    def _messages(self) -> Iterator[dict[str, Any]]:
        place = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with self.client.stream("GET", place) as answer:
            if answer.status_code == 404:  # nothing is pending any more
                time.sleep(0.1)
                return
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    if message["msg"] == "unexpected_error":
                        raise Failed(str(message.get("message")))
                    yield message

    def _generated(self, id: int, message: dict[str, Any], drafts: dict[str, list[Any]], event: str) -> None:
        data = (message.get("output") or {}).get("data")
        if not data:
            return
        known = drafts.get(event)
        drafts[event] = data if known is None else [apply_diff(a, b) for a, b in zip(known, data, strict=True)]
        self._show(id, drafts[event])

    def _completed(self, id: int, message: dict[str, Any]) -> list[int]:
        """Show what came, and give the events that follow."""
        output, good = message.get("output") or {}, bool(message.get("success"))
        following = self._following(id, good)
        if not good:
            raise Failed(f"{self.events[id].get('api_name')}: {output.get('error')}")
        self._show(id, output.get("data") or [])
        for state in output.get("changed_state_ids") or []:
            following += self.triggered(state, "change")
        return list(dict.fromkeys(following))

    def _show(self, id: int, data: list[Any]) -> None:
        for component, value in zip(self.events[id]["outputs"], data, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.components[component]["props"].update({k: v for k, v in value.items() if k != "__type__"})
                if "value" not in value:
                    continue
                value = value["value"]
            self.values[component] = value
            if isinstance(value, str):
                self.shown.append(value)
