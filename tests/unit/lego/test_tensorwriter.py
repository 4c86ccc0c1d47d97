"""The streamed safetensors file, read back by the safetensors library."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lego.tensorwriter import TensorWriter


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], finish: bool = True) -> Path:
    shapes = [(key, (10**6, 10**6)) for key in tensors]
    with TensorWriter(path, shapes, metadata) as file:
        for key, tensor in tensors.items():
            file.add(key, tensor)
        if finish:
            file.finish(metadata)
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
    tensors = {"a": torch.ones(2, 3)}
    one = write(tmp_path / "1", tensors, {"x": "1", "y": "2"})
    other = write(tmp_path / "2", tensors, {"y": "2", "x": "1"})
    assert one.read_bytes() == other.read_bytes()


def test_unfinished_it_is_no_safetensors_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": torch.ones(200, 300)}, {}, finish=False)
    with pytest.raises(SafetensorError):
        load_file(path)


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    assert torch.equal(load_file(write(tmp_path / "x", {"a": tensor}, {}))["a"], tensor)
