"""Adapters of the hub on loopback for visitors with and without a token, and a hub that breaks off, waits and refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from backends import finding, hub, library, opener
from backends.bases import BUILTIN, IMAGE
from lego import AdapterError, read_adapter
from tests.conftest import write_peft
from tests.hub import COMMIT, Fault, Hub
from tests.tiny import tiny_tensors

WEIGHTS = "adapter_model.safetensors"
MINE, YOURS = "hf_mine", "hf_yours"


@pytest.fixture(autouse=True)
def lora(remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter on the hub, whose weights are larger than what a look at their header takes; waiting costs nothing."""
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(library, "_kept", {})
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repos" / "lora"
    write_peft(folder, tiny_tensors(3, rank=64), r=64, lora_alpha=32)
    remote.repos["some/lora"] = folder


def same(key: str, folder: Path) -> bool:
    here, there = library.get(key), read_adapter(folder)
    return all(torch.equal(here[module].delta(), there[module].delta()) for module in there.modules)


def restrict(remote: Hub, gated: bool) -> None:
    remote.readers["some/lora"] = {MINE}
    if gated:
        remote.gated.add("some/lora")


@pytest.mark.parametrize("gated", [False, True])
def test_a_token_opens_what_not_everyone_may_read(remote: Hub, gated: bool) -> None:
    restrict(remote, gated)
    told: list[tuple[str, float | None]] = []
    entry = library.add_hub("some/lora", token=MINE, progress=lambda text, part: told.append((text, part)))
    assert same(entry.key, remote.repos["some/lora"])
    assert entry.origin == f"some/lora@{COMMIT}"
    assert told[0] == ("Asking the hub for some/lora", None)
    assert told[-1][1] == 1.0


@pytest.mark.parametrize(("gated", "why"), [(False, "does not exist on the hub, or is private"), (True, "is gated")])
@pytest.mark.parametrize("token", [None, YOURS])
def test_what_a_token_opened_stays_closed_to_others(remote: Hub, gated: bool, why: str, token: str | None) -> None:
    restrict(remote, gated)
    library.add_hub("some/lora", token=MINE)
    for revision in (None, COMMIT):
        with pytest.raises(AdapterError, match=f"some/lora: {why}.*access token"):
            library.add_hub("some/lora", revision, token=token)
    assert hub.cached("some/lora", None, WEIGHTS) is None


def test_what_everyone_may_read_is_downloaded_once_for_all(remote: Hub, tmp_path: Path) -> None:
    library.add_hub("some/lora", token=MINE)
    fetched = remote.bytes_of(WEIGHTS)
    library.add_hub("some/lora", token=YOURS)
    assert remote.bytes_of(WEIGHTS) - fetched <= 100_001  # the header, looked at again
    library.add_hub("some/lora", COMMIT)
    assert hub.cached("some/lora", COMMIT, WEIGHTS).is_relative_to(tmp_path / "hub-cache")


def test_a_token_is_written_nowhere(remote: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    restrict(remote, gated=True)
    with caplog.at_level(logging.DEBUG):
        entry = library.add_hub("some/lora", token=MINE)
        with pytest.raises(AdapterError) as caught:
            library.add_hub("some/lora", token=YOURS)
    assert MINE not in f"{entry} {hub.look('some/lora', token=MINE)} {caplog.text}"
    assert YOURS not in str(caught.value)
    places = [*(tmp_path / "home").rglob("*"), *(tmp_path / "hub-cache").rglob("*")]
    assert places
    assert not any(MINE in str(path) or (path.is_file() and MINE.encode() in path.read_bytes()) for path in places)


def test_visitors_of_a_space_do_not_use_its_owners_account(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", MINE)
    restrict(remote, gated=False)
    assert library.add_hub("some/lora").source == "hub"  # on one's own machine
    monkeypatch.setattr(library, "_kept", {})
    monkeypatch.setenv("SPACE_ID", "owner/space")
    remote.asked.clear()
    with pytest.raises(AdapterError, match="is private"):
        library.add_hub("some/lora")
    assert {authorization for *_, authorization in remote.asked} == {""}


def test_a_download_that_breaks_off_goes_on_where_it_was(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    size = (remote.repos["some/lora"] / WEIGHTS).stat().st_size
    opener.preflight("some/lora")
    header, looks = remote.bytes_of(WEIGHTS), len(remote.ranges_of(WEIGHTS))
    remote.faults = [Fault(WEIGHTS, times=looks), Fault(WEIGHTS, cut=60_500), Fault(WEIGHTS, cut=45_500)]
    entry = library.add_hub("some/lora")
    assert same(entry.key, remote.repos["some/lora"])
    assert remote.ranges_of(WEIGHTS)[2 * looks :] == ["", "bytes=60000-", "bytes=100000-"]
    assert remote.bytes_of(WEIGHTS) == 2 * header + 60_500 + 45_500 + size - 100_000


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again_for_the_weights(remote: Hub, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    opener.preflight("some/lora")
    looks = len(remote.ranges_of(WEIGHTS))
    remote.faults = [Fault(WEIGHTS, times=looks), Fault(WEIGHTS, status=status)]
    if status == 429:  # the client asks again itself
        assert library.add_hub("some/lora").source == "hub"
        assert len(remote.ranges_of(WEIGHTS)) == 2 * looks + 2
        return
    with pytest.raises(AdapterError, match=f"HTTP {status}.*Try again"):
        library.add_hub("some/lora")
    assert library.add_hub("some/lora").source == "hub"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (401, r"needs a valid access token \(HTTP 401\)"),
        (403, r"may not be read with this account \(HTTP 403\)"),
        (404, r"the hub answered with an error \(HTTP 404\)"),
        (429, r"the hub takes no more requests for now \(HTTP 429\)\. Wait"),
        (500, r"the hub answered with an error \(HTTP 500\)\. Try again later"),
    ],
)
def test_errors_of_the_hub_are_one_message_each(remote: Hub, status: int, why: str) -> None:
    remote.faults = [Fault("/api/models/some/lora", status=status, times=99)]
    with pytest.raises(AdapterError, match=f"some/lora: {why}") as caught:
        library.add_hub("some/lora", token=MINE)
    assert "\n" not in str(caught.value)


def test_a_slow_hub_is_waited_for_and_a_silent_one_is_not(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.faults = [Fault("/api/models/some/lora", wait=0.3)]
    assert library.add_hub("some/lora").source == "hub"
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    remote.faults = [Fault("/api/models/some/lora", wait=0.6, times=99)]
    with pytest.raises(AdapterError, match="the hub cannot be reached"):
        library.add_hub("some/lora")


def adapters(*ids: str) -> list[dict]:
    facts = {"likes": 3, "lastModified": "2026-05-04T03:02:01.000Z", "gated": False, "private": False}
    return [{"id": id, "downloads": 10 * (len(ids) - i), **facts} for i, id in enumerate(ids)]


def test_adapters_are_searched_by_their_base(remote: Hub) -> None:
    base = finding.hub_id(BUILTIN)
    remote.listed[f"base_model:adapter:{base}"] = adapters("some/pirate", "some/poet")
    assert [found.id for found in finding.search(base)] == ["some/pirate", "some/poet"]
    assert finding.search(base, " poet ") == [finding.Found("some/poet", 10, 3, "2026-05-04", False, False)]
    assert finding.search("other/base") == []
    method, path, _, _ = remote.asked[0]
    assert method == "GET"
    assert "sort=downloads" in path
    assert f"limit={finding.MOST}" in path


def test_bases_that_the_hub_does_not_know_are_searched_by_words(remote: Hub, tmp_path: Path) -> None:
    remote.listed["lora"] = adapters("some/emoji")
    assert [finding.hub_id(base) for base in (IMAGE, str(tmp_path), "some/model@v2")] == [None, None, "some/model"]
    assert [found.id for found in finding.search(None, "emoji")] == ["some/emoji"]
    for words in ("", "  ", "x" * 1000):
        with pytest.raises(AdapterError, match="Search for a word"):
            finding.search(None, words)


def test_a_search_that_fails_says_why(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    remote.faults = [Fault("/api/models", status=429, times=99)]
    with pytest.raises(AdapterError, match="no more requests"):
        finding.search("some/model")
