"""The streamed safetensors file, read back by the safetensors library."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lego.tensorwriter import TensorWriter


def write(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], order: list[str] | None = None
) -> Path:
    with TensorWriter(path) as file:
        for key, tensor in tensors.items():
            file.add(key, tensor)
        file.finish(metadata, order or list(tensors))
    return path


@pytest.mark.parametrize("seed", range(5))
def test_the_library_reads_it(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    tensors = {
        f"ключ.{i}": torch.randn(chance.randint(1, 5), chance.randint(1, 9)).to(chance.choice(dtypes))
        for i in range(chance.randint(1, 12))
    }
    path = write(tmp_path / "x.safetensors", tensors, {"b": "é\n", "a": "x" * chance.randint(0, 50)})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata()["b"] == "é\n"
        assert file.metadata()["format"] == "pt"


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "1", {"a": torch.ones(2, 3), "b": torch.zeros(5)}, {"x": "1", "y": "2"}, ["b", "a"])
    other = write(tmp_path / "2", {"b": torch.zeros(5), "a": torch.ones(2, 3)}, {"y": "2", "x": "1"}, ["b", "a"])
    assert one.read_bytes() == other.read_bytes()
    assert torch.equal(load_file(one)["a"], torch.ones(2, 3))


def test_unfinished_there_is_no_file(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "x") as file:
        file.add("a", torch.ones(200, 300))
    assert list(tmp_path.iterdir()) == []


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    assert torch.equal(load_file(write(tmp_path / "x", {"a": tensor}, {}))["a"], tensor)
