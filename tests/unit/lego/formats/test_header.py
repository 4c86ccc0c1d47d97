"""Safetensors files that lie, are damaged or lead elsewhere: a clear error at once, without memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lego
from lego import AdapterError
from lego.formats.header import TensorFile, read_header
from tests.conftest import half_pair, write_peft

Q = "base_model.model.m.lora_A.weight"


def entry(dtype: object = "F32", shape: object = (1, 2), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def raw(header: str | bytes | dict[str, Any], data: int = 8, length: int | None = None) -> bytes:
    """The bytes of a file with any header."""
    text = (
        json.dumps(header).encode()
        if isinstance(header, dict)
        else header.encode()
        if isinstance(header, str)
        else header
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


ONE = json.dumps(entry())
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends before its header"),
    "seven bytes": (bytes(7), "ends before its header"),
    "header beyond the file": (raw({"a": entry()}, length=10_000), "ends before its header"),
    "a length of 2**63": (raw({"a": entry()}, length=2**63), "ends before its header"),
    "no JSON": (raw("{" * 40), "not valid JSON"),
    "not an object": (raw("[1, 2]"), "not JSON"),
    "bytes": (raw(b"{\xff\xfe}"), "not valid JSON"),
    "deep": (raw('{"a":' + "[" * 200_000), "not valid JSON"),
    "twice": (raw(f'{{"a": {ONE}, "a": {ONE}}}'), "names 'a' twice"),
    "twice inside": (raw('{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}'), "names 'dtype' twice"),
    "NaN": (raw('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}'), "no sound shape"),
    "text for a number": (raw({"a": entry(shape=["NaN"])}), "no sound shape"),
    "half a row": (raw({"a": entry(shape=[0.5, 4])}), "no sound shape"),
    "true": (raw({"a": entry(shape=[True, 2])}), "no sound shape"),
    "negative": (raw({"a": entry(shape=[-1, -2])}), "no sound shape"),
    "wide": (raw({"a": entry(shape=[1] * 8 + [2])}), "no sound shape"),
    "three offsets": (raw({"a": entry(offsets=[0, 8, 8])}), "no sound shape"),
    "huge": (raw({"a": entry(shape=[2**62, 2**62])}), "another size"),
    "huge and honest": (raw({"a": entry(shape=[2**40], offsets=[0, 2**42])}), "4398046511104 bytes of tensors and holds 8"),
    "unknown type": (raw({"a": entry("F12")}), "unknown type F12"),
    "type of a list": (raw({"a": entry([])}), "unknown type"),
    "no entry": (raw({"a": None}), "not described"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=[4, 12])}, 12), "begins at byte 4, not at 8"),
    "gap": (raw({"a": entry(), "b": entry(offsets=[16, 24])}, 24), "begins at byte 16, not at 8"),
    "more data than declared": (raw({"a": entry()}, 9), "8 bytes of tensors and holds 9"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, "a": entry()}), "metadata are not strings"),
    "metadata of text": (raw({"__metadata__": "a", "b": entry()}), "metadata are not strings"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_not_sound(tmp_path: Path, case: str) -> None:
    data, told = BAD[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for look in (lego.read_adapter, lego.preflight):
        with pytest.raises(AdapterError, match=f"not a readable safetensors file.*{told}|{told}"):
            look(path)


def test_a_header_of_more_than_100_MB_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(AdapterError, match="its header has 100 MB"):
        lego.preflight(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_headers_are_read_as_safetensors_does(tmp_path: Path) -> None:
    """Every float type, an empty tensor, a scalar; whole tensors and ranges of rows."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randn(5, 3, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    tensors |= {"empty": torch.zeros(0, 3), "alpha": torch.tensor(7), "half": torch.tensor([2.5], dtype=torch.float16)}
    save_file(tensors, tmp_path / "a.safetensors", {"a": "b"})
    file = TensorFile(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"))
    assert file.header.metadata == {"a": "b"}
    expected = load_file(tmp_path / "a.safetensors")
    for key in set(tensors) - {"alpha", "half"}:
        assert torch.equal(file.read(key), expected[key].float())
    for key in set(tensors) - {"alpha", "half", "empty"}:
        assert torch.equal(file.read(key, ((3, 5), (0, 1))), expected[key].float()[[3, 4, 0]])
    assert (file.scalar("alpha"), file.scalar("half")) == (7.0, 2.5)


def test_a_file_cut_short_while_open(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", half_pair("m"))
    adapter = lego.read_adapter(folder)
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(AdapterError, match="has become shorter since it was opened"):
        adapter["m"]


def link_weights(folder: Path, elsewhere: Path) -> None:
    (elsewhere / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")


def link_config(folder: Path, elsewhere: Path) -> None:
    (folder / "adapter_config.json").rename(elsewhere / "adapter_config.json")
    (folder / "adapter_config.json").symlink_to(elsewhere / "adapter_config.json")


def link_card(folder: Path, elsewhere: Path) -> None:
    (elsewhere / "secret").write_text("---\na: b\n---\n")
    (folder / "README.md").symlink_to(elsewhere / "secret")


@pytest.mark.parametrize("link", [link_weights, link_config, link_card])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = write_peft(tmp_path / "a", half_pair("m"))
    link(folder, tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="is a link that leads out of its folder"):
        lego.read_adapter(folder)


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """``snapshots/COMMIT/file`` → ``blobs/HASH``; and a link to the whole folder is the reader's own choice."""
    folder = write_peft(tmp_path / "models--a--b" / "snapshots" / "c0ffee", half_pair("m"))
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).rename(tmp_path / "models--a--b" / "blobs" / name[-9:])
        (folder / name).symlink_to(Path("../../blobs") / name[-9:])
    (tmp_path / "link").symlink_to(folder)
    assert lego.read_adapter(folder).ranks == lego.read_adapter(tmp_path / "link").ranks == (4,)
