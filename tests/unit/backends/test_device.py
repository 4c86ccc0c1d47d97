"""Where models run."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backends import device


@pytest.mark.parametrize(
    ("cuda", "bf16", "mps", "wanted", "found"),
    [
        (True, True, False, "", ("cuda", torch.bfloat16)),
        (True, False, False, "", ("cuda", torch.float16)),
        (False, False, True, "", ("mps", torch.float16)),
        (False, False, False, "", ("cpu", torch.float32)),
        (True, True, True, "cpu", ("cpu", torch.float32)),
        (True, True, True, "mps", ("mps", torch.float16)),
        (False, False, False, "cuda", ("cpu", torch.float32)),
    ],
)
def test_the_best_device_is_picked(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, bf16: bool, mps: bool, wanted: str, found: tuple[str, torch.dtype]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("BRICKYARD_DEVICE", wanted)
    place, dtype = device.pick()
    assert (place.type, dtype) == found


def test_processes_that_train_together_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRICKYARD_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(str(device.pick()[0]))
    assert found == ["cuda:0", "cuda:1"]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(device.pick()[0]) == "cuda"


def test_the_gpu_decorator_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def work() -> int:
        return 1

    assert device.gpu(duration=5)(work) is work


def test_the_gpu_decorator_borrows_one_on_zerogpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def borrow(duration: int) -> Any:
        asked.append(duration)
        return lambda function: lambda: function() + 1

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=borrow))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert device.gpu(duration=5)(lambda: 1)() == 2
    assert asked == [5]
