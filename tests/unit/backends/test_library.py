"""The library: folders, the hub on loopback, merges."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lego
from backends import library, opener
from backends.bases import module_shapes
from lego import AdapterError, read_adapter
from tests.conftest import half_pair, write_peft
from tests.hub import COMMIT, Hub
from tests.tiny import SHAPES, tiny_adapter, tiny_base, tiny_tensors

Q = "model.layers.0.self_attn.q_proj"
CARD = "---\nbase_model: someone/tiny\nbrickyard:\n  title: A nice title\n  task: naming things\n---\n\n# Hello\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(library, "_kept", {})
    return tmp_path / "home"


@pytest.fixture
def upload(remote: Hub, tmp_path: Path) -> Callable[..., Path]:
    """Puts an adapter of the tiny model on the hub; its weights file is larger than what a look at its header takes."""

    def put(
        repo: str = "some/lora", card: str = CARD, tensors: dict[str, torch.Tensor] | None = None, **config: object
    ) -> Path:
        folder = tmp_path / "repos" / repo
        tensors = tiny_tensors(3, rank=64) if tensors is None else tensors
        write_peft(folder, tensors, **{"r": 64, "lora_alpha": 32, "base_model_name_or_path": "someone/tiny", **config})
        (folder / "README.md").write_text(card)
        remote.repos[repo] = folder
        return folder

    return put


def test_a_folder_becomes_an_entry(tmp_path: Path) -> None:
    folder = write_peft(
        tmp_path / "mine", tiny_tensors(1), r=4, lora_alpha=16, use_rslora=True, base_model_name_or_path="someone/tiny"
    )
    (folder / "README.md").write_text(CARD)
    entry = library.add_folder(folder)
    assert (entry.name, entry.title, entry.task, entry.source) == ("mine", "A nice title", "naming things", "folder")
    assert (entry.ranks, entry.alpha, entry.base_model) == ((4,), "16 (rsLoRA)", "someone/tiny")
    assert set(entry.targets) == {kind.split(".")[1] for kind in SHAPES}
    assert entry.size_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert library.entry(entry.key) == entry
    assert library.get(entry.key).path == folder.resolve()
    assert library.get(entry.key) is library.get(entry.key)


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    first = library.add_folder(write_peft(tmp_path / "a", tiny_tensors(1), r=4, lora_alpha=16))
    same = library.add_folder(write_peft(tmp_path / "b", tiny_tensors(1), r=4, lora_alpha=16))
    scaled = library.add_folder(write_peft(tmp_path / "c", tiny_tensors(1), r=4, lora_alpha=8))
    other = library.add_folder(write_peft(tmp_path / "d", tiny_tensors(2), r=4, lora_alpha=16))
    assert first.key == same.key
    assert len({first.key, scaled.key, other.key}) == 3


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", tiny_tensors(1), r=4)
    entry = library.add_folder(folder)
    save_file(tiny_tensors(2), folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="has changed or gone since it was added"):
        library.get(entry.key)
    assert library.add_folder(folder).key != entry.key


def test_unknown_keys_are_refused() -> None:
    for key in ("0123456789ab", "../../etc", "", "z" * 200):
        with pytest.raises(AdapterError, match="there is no adapter with this key"):
            library.get(key)


def test_fits_compares_modules_and_shapes(tmp_path: Path) -> None:
    shapes = module_shapes(tiny_base())
    assert library.fits(library.add_folder(write_peft(tmp_path / "a", tiny_tensors(1), r=4)), shapes) is None
    narrow = write_peft(tmp_path / "b", half_pair("model.layers.0.self_attn.q_proj", d_in=32), r=4)
    found = library.fits(library.add_folder(narrow), shapes)
    assert found == "It was made for another base: model.layers.0.self_attn.q_proj is 32 → 24 in it but 24 → 24 here."
    deep = write_peft(tmp_path / "c", half_pair("model.layers.7.self_attn.q_proj"), r=4)
    found = library.fits(library.add_folder(deep), shapes)
    assert found == "1 of its 1 modules are no linear layers of this base, such as model.layers.7.self_attn.q_proj."


def test_biases_and_other_kinds_of_module_do_not_run(tmp_path: Path) -> None:
    shapes = module_shapes(tiny_base())
    biased = {**half_pair(Q), f"base_model.model.{Q}.lora_B.bias": torch.zeros(24)}
    found = library.fits(library.add_folder(write_peft(tmp_path / "a", biased, r=4, lora_bias=True)), shapes)
    assert found == f"It trains a bias in its B ({Q}), which can be merged but not run here."
    file = tmp_path / "lora.safetensors"
    save_file(
        {"unet.mid_block.x.lora_A.weight": torch.ones(2, 3), "unet.mid_block.x.lora_B.weight": torch.ones(3, 2)}, file
    )
    entry = library.add_folder(file)
    assert (entry.name, entry.alpha) == ("lora", "2")
    assert "no linear layers of this base, such as unet.mid_block.x" in str(library.fits(entry, shapes))


def test_merging_from_files_to_files_gives_the_same_entry(home: Path) -> None:
    sources = [tiny_adapter("one", 1), tiny_adapter("two", 2)]
    in_memory = library.add_merge(lego.merge(sources, name="both", method="svd", rank=3))
    assert library.merge(sources, "both", method="svd", rank=3).key == in_memory.key


def test_a_merge_is_what_a_download_gives(home: Path) -> None:
    merged = tiny_adapter("My merge: a/b", 1, scale=3.0)
    entry = library.add_merge(merged)
    assert (entry.source, entry.title, entry.name) == ("merge", "My merge: a/b", "My-merge-a-b")
    assert entry.path.is_relative_to(home)
    running, downloaded = library.get(entry.key), read_adapter(shutil.copytree(entry.path, home / "copy"))
    for module in merged.modules:
        assert torch.equal(running[module].delta(), downloaded[module].delta())
        torch.testing.assert_close(running[module].delta(), merged[module].delta(), rtol=5e-3, atol=5e-3)
    dtypes = {tensor.dtype for tensor in load_file(entry.path / "adapter_model.safetensors").values()}
    assert dtypes == {torch.float16}


def test_a_merge_outlives_the_process_and_is_written_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = library.add_merge(tiny_adapter("m", 1))
    again = library.add_merge(tiny_adapter("m", 1))
    assert again.path == entry.path
    assert sorted(path.name for path in (home / "merges").iterdir()) == [entry.key]
    monkeypatch.setattr(library, "_kept", {})
    assert library.entry(entry.key).path == entry.path


def test_older_merges_are_let_go_and_opened_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MERGES_OPEN", 2)
    entries = [library.add_merge(tiny_adapter(f"merge {seed}", seed)) for seed in range(4)]
    held = [weakref.ref(kept.adapter) if kept.adapter else None for kept in library._kept.values()]
    assert [ref is not None for ref in held] == [False, False, True, True]
    opened = library.get(entries[0].key)
    gc.collect()
    assert held[2]() is None, "the oldest of those that were open has made room"
    assert held[3]() is library.get(entries[3].key)
    assert opened.fingerprint.startswith(entries[0].key)
    assert [library.entry(entry.key) for entry in entries] == entries
    entries[1].path.rename(home / "gone")
    with pytest.raises(AdapterError, match="changed or gone"):
        library.get(entries[1].key)


def test_the_oldest_merges_make_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = library.add_merge(tiny_adapter("m", 1)), library.add_merge(tiny_adapter("m", 2))
    os.utime(first.path.parent, (1, 1))
    monkeypatch.setattr(library, "MERGE_BYTES", int(2.5 * sum(file.stat().st_size for file in first.path.iterdir())))
    third = library.add_merge(tiny_adapter("m", 3))
    assert {path.name for path in (home / "merges").iterdir()} == {second.key, third.key}
    with pytest.raises(AdapterError, match="there is no adapter with this key"):
        library.get(first.key)


def test_a_damaged_merge_leaves_nothing(home: Path) -> None:
    adapter = tiny_adapter("big", 1, scale=1e12)  # does not fit into fp16
    with pytest.raises(AdapterError):
        library.add_merge(adapter)
    assert list((home / "merges").iterdir()) == []


def test_the_built_in_adapters_are_all_there() -> None:
    entries = library.builtin()
    assert {entry.name for entry in entries} == {
        path.parent.name for path in library.ASSETS.glob("*/adapter_config.json")
    }
    assert len({entry.key for entry in entries}) == len(entries) > 0
    shapes = module_shapes("smollm2-135m-instruct")
    for entry in entries:
        assert entry.source == "built-in"
        assert library.fits(entry, shapes) is None, entry.name
        assert entry.size_bytes < 10_000_000


def test_an_adapter_comes_from_the_hub(remote: Hub, upload: Callable[..., Path]) -> None:
    folder = upload()
    entry = library.add_hub("some/lora")
    assert (entry.name, entry.title, entry.source, entry.origin) == (
        "lora",
        "A nice title",
        "hub",
        f"some/lora@{COMMIT}",
    )
    here, there = library.get(entry.key), read_adapter(folder)
    assert here.fingerprint == there.fingerprint
    assert all(torch.equal(here[module].delta(), there[module].delta()) for module in there.modules)
    assert remote.bytes_of("adapter_model.safetensors") >= (folder / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "given",
    ["some/lora", " some/lora ", "https://huggingface.co/some/lora", "https://huggingface.co/some/lora/tree/main"],
)
def test_ids_and_addresses_are_understood(upload: Callable[..., Path], given: str) -> None:
    upload()
    assert library.add_hub(given).name == "lora"


@pytest.mark.parametrize("given", ["lora", "a b/c", "some/lora/more", "", "../x/y", "https://huggingface.co/"])
def test_what_is_no_id_is_refused(remote: Hub, given: str) -> None:
    with pytest.raises(AdapterError, match="is not a repository's id"):
        library.add_hub(given)
    assert remote.sent == {}


def not_safetensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def whole_model(folder: Path) -> None:
    (folder / "adapter_config.json").rename(folder / "config.json")


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def damaged(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)


def dora(folder: Path) -> None:
    change_config(folder, use_dora=True)


def loha(folder: Path) -> None:
    change_config(folder, peft_type="LOHA")


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def unknown_key(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.zeros(3)}, path)


def wrong_rank(folder: Path) -> None:
    change_config(folder, r=5)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (not_safetensors, "some/lora: holds its weights only as a pickle, which is never loaded"),
        (no_config, "some/lora: .*adapter_config.json"),
        (whole_model, "It is a whole model: load it as the base"),
        (no_json, "some/lora: its adapter_config.json is not valid JSON"),
        (damaged, "some/lora: its adapter_model.safetensors is not a readable safetensors file"),
        (dora, "some/lora: .*DoRA"),
        (loha, "some/lora: is of type LOHA, not LoRA"),
        (unknown_key, "some/lora: .*lm_head"),
        (wrong_rank, "some/lora: .* has rank 64 but .* says 5"),
    ],
)
def test_what_cannot_be_used_is_refused_before_its_weights_are_fetched(
    remote: Hub, upload: Callable[..., Path], spoil: Callable[[Path], None], told: str
) -> None:
    folder = upload()
    size = (folder / "adapter_model.safetensors").stat().st_size
    spoil(folder)
    with pytest.raises(AdapterError, match=told):
        library.add_hub("some/lora")
    fetched = remote.bytes_of("adapter_model.safetensors") + remote.bytes_of("adapter_model.bin")
    assert fetched <= 100_001 < size
    assert not any(
        path.name.startswith("adapter_model") for path in folder.parents[2].glob("hub-cache/**/snapshots/**/*")
    )


def test_an_adapter_of_another_base_is_refused_before_its_weights_are_fetched(
    remote: Hub, upload: Callable[..., Path]
) -> None:
    upload(tensors=half_pair("model.layers.0.self_attn.q_proj", rank=64, d_in=2000), r=64)
    with pytest.raises(AdapterError, match="some/lora: It was made for another base"):
        library.add_hub("some/lora", shapes=module_shapes(tiny_base()))
    assert remote.bytes_of("adapter_model.safetensors") <= 100_001


def test_too_large_an_adapter_is_refused(
    upload: Callable[..., Path], remote: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload()
    monkeypatch.setattr(opener, "MOST_BYTES", 1000)
    with pytest.raises(AdapterError, match="more than"):
        library.add_hub("some/lora")
    assert remote.bytes_of("adapter_model.safetensors") == 0


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((401, "RepoNotFound"), "some/lora: does not exist on the hub, or is private"),
        ((404, "RepoNotFound"), "some/lora: does not exist on the hub, or is private"),
        ((403, "GatedRepo"), "some/lora: is gated.*hf auth login"),
        ((401, "GatedRepo"), "some/lora: is gated.*hf auth login"),
        ((403, ""), r"some/lora: may not be read with this account \(HTTP 403\)"),
        ((500, ""), r"some/lora: the hub answered with an error \(HTTP 500\)"),
    ],
)
def test_refusals_of_the_hub_become_one_message(
    remote: Hub, upload: Callable[..., Path], refusal: tuple[int, str], told: str
) -> None:
    upload()
    remote.refusals["some/lora"] = refusal
    with pytest.raises(AdapterError, match=told) as caught:
        library.add_hub("some/lora")
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_told(upload: Callable[..., Path]) -> None:
    upload()
    with pytest.raises(AdapterError, match="some/lora: has no revision 'v9'"):
        library.add_hub("some/lora", revision="v9")


def test_a_hub_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(AdapterError, match=r"some/lora: the hub cannot be reached.*local folder"):
            library.add_hub("some/lora")
