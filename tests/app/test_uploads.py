"""Uploads: what is taken, what is refused, whose they are, and that they go with who brought them."""

from __future__ import annotations

import json
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from safetensors.torch import save_file

from backends import library, variants
from components import events
from components.library import shelf, unpacking, uploads
from components.session import leaving
from lego import AdapterError
from tests.conftest import half_pair, write_peft

M = "model.layers.0.self_attn.q_proj"
Visit = Callable[[str], None]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(library, "_kept", {})
    monkeypatch.setattr(leaving, "_holders", {})
    return tmp_path / "home"


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Lets what follows happen in a session."""
    before = LocalContext.request.set(None)
    yield lambda who: LocalContext.request.set(SimpleNamespace(session_hash=who)) and None
    LocalContext.request.reset(before)


def single(folder: Path, name: str, seed: int) -> Path:
    """A single file of diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    down, up = half_pair("m", seed=seed).values()
    save_file({"unet.conv_in.lora_A.weight": down, "unet.conv_in.lora_B.weight": up}, folder / name)
    return folder / name


def pair(folder: Path, seed: int) -> list[str]:
    write_peft(folder, half_pair(M, seed=seed))
    (folder / "README.md").write_text("# Mine")
    return [str(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")]


def zipped(file: Path, members: dict[str, Path | bytes]) -> str:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return str(file)


def test_one_file_a_pair_and_several_files_are_taken(tmp_path: Path) -> None:
    one = str(single(tmp_path / "a", "style.safetensors", 1))
    assert [entry.name for entry in uploads.receive([one])] == ["style"]
    assert [entry.name for entry in uploads.receive(pair(tmp_path / "b", 2))] == ["adapter_model"]
    both = [*pair(tmp_path / "c", 3), str(single(tmp_path / "d", "ink.safetensors", 4))]
    found = uploads.receive(both)
    assert [entry.name for entry in found] == ["adapter_model", "ink"]
    assert len({entry.key for entry in found}) == 2
    assert (found[0].path / "README.md").is_file()


def test_a_zip_holds_several_adapters_each_in_its_folder(tmp_path: Path) -> None:
    pair(tmp_path / "pirate", 1), pair(tmp_path / "poet", 2)
    names = ("adapter_config.json", "adapter_model.safetensors", "README.md")
    members: dict[str, Path | bytes] = {
        f"all/{who}/{name}": tmp_path / who / name for who in ("pirate", "poet") for name in names
    }
    members["all/ink.safetensors"] = single(tmp_path, "ink.safetensors", 3)
    members |= {"all/run.py": b"import os", "__MACOSX/all/._ink.safetensors": b"junk", "all/optimizer.pt": b"x"}
    found = uploads.receive([zipped(tmp_path / "mine.zip", members)])
    assert sorted(entry.name for entry in found) == ["ink", "pirate", "poet"]
    kept = {path.name for entry in found for path in entry.path.iterdir()}
    assert kept == {*names, "weights.safetensors"}


def link(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return made


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../adapter_model.safetensors", "names a place outside of it"),
        ("/etc/adapter_model.safetensors", "names a place outside of it"),
        ("a/../../x.safetensors", "names a place outside of it"),
        ("..\\x.safetensors", "names a place outside of it"),
    ],
)
def test_zips_that_reach_out_are_refused(tmp_path: Path, home: Path, name: str, why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        uploads.receive([zipped(tmp_path / "x.zip", {name: single(tmp_path, "x.safetensors", 1)})])
    assert [path for path in tmp_path.rglob("*.safetensors") if path.is_relative_to(home)] == []


def test_zips_with_links_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link("adapter_model.safetensors"), "/etc/passwd")
    with pytest.raises(AdapterError, match="holds a link"):
        uploads.receive([str(tmp_path / "x.zip")])


def test_bombs_are_refused_before_they_fill_the_disk(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MOST_BYTES", 3 * unpacking.CHUNK)
    bomb = zipped(tmp_path / "bomb.zip", {f"{i}/x.safetensors": bytes(2 * unpacking.CHUNK) for i in range(3)})
    assert Path(bomb).stat().st_size < 100_000
    with pytest.raises(AdapterError, match="holds more than 3 MB of files"):
        uploads.receive([bomb])
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 2)
    with pytest.raises(AdapterError, match="holds 3 entries, more than 2"):
        uploads.receive([bomb])
    assert list((home / "uploads").iterdir()) == []


def test_a_size_that_lies_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of a zip may say anything: what is unpacked is what counts."""
    monkeypatch.setattr(unpacking, "MOST_BYTES", unpacking.CHUNK)
    bomb = Path(zipped(tmp_path / "bomb.zip", {"x.safetensors": bytes(4 * unpacking.CHUNK)}))
    data = bomb.read_bytes().replace((4 * unpacking.CHUNK).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    bomb.write_bytes(data)
    with pytest.raises(AdapterError):
        uploads.receive([str(bomb)])


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_damaged_zips_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(AdapterError, match="is not a readable zip"):
        uploads.receive([str(tmp_path / "x.zip")])


def test_what_is_unclear_or_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError, match="no weights file"):
        uploads.receive([])
    with pytest.raises(AdapterError, match="came alone"):
        uploads.receive(pair(tmp_path / "a", 1)[:1])
    with pytest.raises(AdapterError, match=r"README.md was uploaded more than once.*zip of the folders"):
        uploads.receive([*pair(tmp_path / "a", 1), *pair(tmp_path / "b", 2)])
    monkeypatch.setattr(uploads, "MOST_ADAPTERS", 1)
    files = [str(single(tmp_path / "c", f"{i}.safetensors", i)) for i in range(2)]
    with pytest.raises(AdapterError, match="2 adapters are too many"):
        uploads.receive(files)
    assert "1 adapters" not in uploads.LIMITS
    assert f"{uploads.FILE_BYTES // 10**6} MB" in uploads.LIMITS


def test_a_visitor_holds_so_many_uploads(tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_HELD", 1)
    files = [str(single(tmp_path, f"{i}.safetensors", i)) for i in range(2)]
    visit("me")
    uploads.receive(files[:1])
    with pytest.raises(AdapterError, match="you hold 1 uploads"):
        uploads.receive(files[1:])
    visit("you")
    uploads.receive(files[1:])


def test_an_upload_is_its_visitors_alone(tmp_path: Path, visit: Visit) -> None:
    visit("me")
    entry = uploads.receive([str(single(tmp_path, "x.safetensors", 1))])[0]
    assert shelf.named(entry.key) == entry
    for who in ("you", ""):
        visit(who)
        with pytest.raises(AdapterError, match="there is no adapter with this key"):
            shelf.named(entry.key)


def test_the_last_who_brought_it_takes_it_along(tmp_path: Path, home: Path, visit: Visit) -> None:
    file, key = single(tmp_path, "x.safetensors", 1), ""
    for who in ("me", "you"):
        visit(who)
        entry = uploads.receive([str(file)])[0]
        key = entry.key
    variants.in_memory(key)
    leaving.release("me")
    assert library.get(key).path == entry.path
    leaving.release("you")
    assert list((home / "uploads").iterdir()) == []
    assert key not in variants._factors
    with pytest.raises(AdapterError, match="no adapter with this key"):
        library.entry(key)


def test_what_another_brought_otherwise_stays(tmp_path: Path, home: Path, visit: Visit) -> None:
    """One uploads what another opened with a token, and the other way round: whoever leaves, the other keeps it."""
    file = single(tmp_path, "x.safetensors", 1)
    opened = home / "restricted" / "token" / "models--some--x" / "snapshots" / "1"
    single(opened, "x.safetensors", 1)
    for first, second in (("upload", "token"), ("token", "upload")):
        for who in (first, second):
            visit(who)
            if who == "upload":
                key = uploads.receive([str(file)])[0].key
            else:
                entry = library.add_folder(opened)
                leaving.keep(entry.path)
                key = entry.key
        leaving.release(first)
        visit(second)
        assert shelf.named(key).path.exists()
        library.get(key)
        leaving.release(second)
        single(opened, "x.safetensors", 1)


def test_rows_go_too(tmp_path: Path, home: Path, visit: Visit) -> None:
    visit("me")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    place = uploads.receive_rows(tmp_path / "rows.jsonl")
    assert uploads.receive_rows(tmp_path / "rows.jsonl") == place
    leaving.release("me")
    assert list((home / "rows").iterdir()) == []


class States:
    """What gradio keeps of sessions."""

    def __init__(self, used: float) -> None:
        self.session_data, self.deleted = {"me": object()}, []
        self.time_last_used = {"me": SimpleNamespace(timestamp=lambda: used)}

    def delete_state(self, who: str) -> None:
        self.deleted.append(who)


def test_a_closed_tab_frees_what_it_held_unless_it_came_back(tmp_path: Path, home: Path, visit: Visit) -> None:
    visit("me")
    uploads.receive([str(single(tmp_path, "x.safetensors", 1))])
    closed = time.time()
    back = SimpleNamespace(state_holder=States(used=closed + 1))
    leaving.free(back, "me", closed)
    assert back.state_holder.deleted == []
    assert list((home / "uploads").iterdir())
    running = SimpleNamespace(pending_event_ids_session={"me": {events.OPEN}})
    gone = SimpleNamespace(state_holder=States(used=closed - 1), _queue=running)
    leaving.free(gone, "me", closed)
    assert (gone.state_holder.deleted, gone.state_holder.session_data) == (["me"], {})
    assert running.pending_event_ids_session == {}
    assert list((home / "uploads").iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.receive([str(single(tmp_path, "x.safetensors", 1))])
    leaving.sweep()
    assert list((home / "uploads").iterdir())
    monkeypatch.setattr(leaving, "DAY", -1)
    leaving.sweep()
    assert list((home / "uploads").iterdir()) == []
