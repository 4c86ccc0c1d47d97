"""A merge and gates pushed to an account on the hub on loopback, and fetched from it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from gradio import oauth

from backends import gates, library, publish
from components import page
from components.library import account, push, shelf
from components.merge import making
from components.session.state import Made, Session
from lego import AdapterError
from tests.hub import Fault, Hub
from tests.hub import hub as running

MINE, YOURS = "hf_mine", "hf_yours"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with running() as found:
        found.accounts |= {MINE: "me", YOURS: "you"}
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield found


@pytest.fixture
def session() -> Session:
    """A session with a merge of two built-in adapters and the gates that ship."""
    opened = shelf.start_session("base")
    entry = making.make(opened.weights[:2], "svd", {"rank": 2}, 0, "two")
    return opened.join(Made(entry.key, "My two"))


def pushed(session: Session, shown: str, name: str = "", private: bool = True, token: str | None = MINE) -> str:
    handler = push.pusher(push.merge_files if session.merges and shown == session.merges[0].key else push.gates_files)
    return list(handler(session, shown, name, private, token))[-1]


def test_a_merge_goes_to_ones_own_account_and_is_fetched_from_there(remote: Hub, session: Session) -> None:
    key = session.merges[0].key
    told = pushed(session, key)
    assert f'href="{remote.endpoint}/me/My-two"' in told
    assert "only you" in told
    assert remote.pushed["me/My-two"] == {"private": True, "messages": ["Add My two, made with Brickyard"]}
    folder = remote.repos["me/My-two"]
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml", "report.json"}
    assert {file.name for file in folder.iterdir()} == {*names, ".gitattributes"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "merge" in card
    library.forget(library.entry(key).path)
    assert library.add_hub("me/My-two", token=MINE).key == key
    with pytest.raises(AdapterError, match="is private"):
        library.add_hub("me/My-two", token=YOURS)


def test_a_push_says_how_far_it_is_and_can_be_stopped_until_it_commits(remote: Hub, session: Session) -> None:
    key, names = session.merges[0].key, set[str]()
    *lines, last = push.pusher(push.merge_files)(session, key, "whole", True, MINE)
    for line in lines[1:-1]:
        assert "data-halt" in line
        names.add(line.split("Uploading ")[1].split('"')[0].split(",")[0])
    assert names == {file.name for file in remote.repos["me/whole"].iterdir()} - {".gitattributes"}
    assert publish.COMMITTING in lines[-1]
    assert "data-halt" not in lines[-1]
    assert "Pushed to" in last
    begun = push.pusher(push.merge_files)(session, key, "begun", True, MINE)
    assert "Uploading" not in next(begun)
    assert "Uploading" in next(begun)
    begun.close()  # type: ignore[attr-defined]  # a generator, as the page closes it at a stop
    assert remote.pushed["me/begun"]["messages"] == []
    assert "Pushed to" in pushed(session, key, "begun")


def test_gates_go_with_their_card(remote: Hub, session: Session) -> None:
    mine = session.gates[0]
    pushed(session, mine.key, "my-gates", private=False)
    assert not remote.pushed["me/my-gates"]["private"]
    there = {file.name for file in remote.repos["me/my-gates"].iterdir()} - {".gitattributes"}
    assert there == {file.name for file in gates.entry(mine.key).path.iterdir()}
    assert "README.md" in there


def test_a_push_that_failed_can_be_repeated_and_a_full_repository_is_left_alone(remote: Hub, session: Session) -> None:
    key = session.merges[0].key
    remote.faults = [Fault("/upload", status=400, times=99)]
    with pytest.raises(gr.Error, match=r"me/again: could not be uploaded.*Try again"):
        pushed(session, key, "again")
    remote.faults = []
    pushed(session, key, "again")
    with pytest.raises(gr.Error, match=r"me/again: is there already and holds README|adapter_config"):
        pushed(session, key, "again")


def test_what_cannot_be_pushed_is_told(remote: Hub, session: Session) -> None:
    key = session.merges[0].key
    with pytest.raises(gr.Error, match="not signed in"):
        pushed(session, key, token=None)
    with pytest.raises(gr.Error, match=r"needs a valid access token \(HTTP 401\)"):
        pushed(session, key, token="hf_old")
    for name in ("a/b", "..", "x" * 97, "-x"):
        with pytest.raises(gr.Error, match="no name of a repository"):
            pushed(session, key, name)
    with pytest.raises(gr.Error, match="no merge to push"):
        list(push.pusher(push.merge_files)(replace(session, merges=()), key, "", True, MINE))
    assert remote.pushed == {}
    with pytest.raises(AdapterError, match="HTTP 401"):
        publish.owner("hf_old")


def labels(blocks: gr.Blocks) -> set[str]:
    return {str(getattr(block, "value", "")) for block in blocks.blocks.values() if isinstance(block, gr.Button)}


def test_the_buttons_are_there_only_where_one_can_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"Push this merge", "Push these gates", "Sign in with Hugging Face"}
    space = {"SYSTEM": "spaces", "SPACE_ID": "x/y", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret"}
    for name in space:
        monkeypatch.delenv(name, raising=False)
    assert not labels(page.build()) & wanted
    for name, value in space.items():
        assert not account.available()
        monkeypatch.setenv(name, value)
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(oauth, name, "https://127.0.0.1")  # read from the environment when gradio is imported
    assert account.available()
    assert wanted <= labels(page.build())
    monkeypatch.setattr(account, "find_spec", lambda name: None)
    assert not account.available()


def test_who_is_signed_in_is_known_by_a_token_that_stays_in_memory() -> None:
    assert account.read(None) is None
    assert account.read(gr.OAuthToken("secret", "contribute-repos", 0)) == "secret"
    assert "secret" not in json.dumps(str(Session("base")))
