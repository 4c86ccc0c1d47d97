"""A merge killed at any moment leaves no output or the whole of it, and the next one clears away what was left."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

import lego
from tests.conftest import write_peft

KILLS = 40
PARTS = {"adapter_model.safetensors", "adapter_config.json", "README.md", "recipe.yaml", "report.json"}
# Audit events of Python.
TOUCHES = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "os.scandir",
    "os.listdir",
    "os.rmdir",
    "os.remove",
    "shutil.rmtree",
}


def source(folder: Path, seed: int) -> Path:
    """An adapter of 1 MB."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        key = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        tensors[f"{key}.lora_A.weight"] = torch.randn(8, 3000, generator=generator)
        tensors[f"{key}.lora_B.weight"] = torch.randn(5000, 8, generator=generator)
    return write_peft(folder, tensors, r=8)


def merge(sources: list[Path], target: Path) -> None:
    lego.merge_into(target, [lego.read_adapter(path) for path in sources], method="svd", name="merged")


def begin(sources: list[Path], target: Path, at: int = 0) -> int:
    """Merge in a process of its own, forked from this one so that its start costs nothing; its id.

    Args:
        sources, target: as `merge`.
        at: it kills itself before it touches a file beside the target for the so-manieth time.
    """
    if child := os.fork():
        return child
    touched, parent = 0, str(target.parent)

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        beside = event in TOUCHES and any(str(argument).startswith(parent) for argument in arguments)
        touched += beside
        if beside and touched == at:
            os.kill(os.getpid(), signal.SIGKILL)

    if at:
        sys.addaudithook(kill)
    try:
        merge(sources, target)
    except BaseException:  # noqa: BLE001 - whatever it is, this process must end here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def check_whole(folder: Path, expected: str) -> None:
    """Every file is there, all tensors load, and they are those of an undisturbed merge."""
    assert {path.name for path in folder.iterdir()} == PARTS
    assert digest(folder) == expected
    assert len(load_file(folder / "adapter_model.safetensors")) == len(lego.read_adapter(folder).modules) * 2


def check_after(sources: list[Path], target: Path, expected: str) -> None:
    """Nothing or the whole; after the next merge the whole and nothing else."""
    if not target.exists():
        merge(sources, target)
    check_whole(target, expected)
    assert not list(target.parent.glob(f".{target.name}*"))


def test_killed_before_each_touch_of_a_file(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    sources = [source(tmp_path / f"source{number}", number) for number in range(2)]
    merge(sources, tmp_path / "undisturbed")
    expected, missing = digest(tmp_path / "undisturbed"), 0
    for at in range(1, 200):
        target = tmp_path / f"out{at}" / "merged"
        status = os.waitpid(begin(sources, target, at), 0)[1]
        missing += not target.exists()
        check_after(sources, target, expected)
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
    print(f"killed at each of {at - 1} touches, {missing} times before the folder was there")
    assert at > missing > 8


def test_killed_at_any_moment(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    sources = [source(tmp_path / f"source{number}", number) for number in range(2)]
    times = []
    for number in range(3):
        start = time.perf_counter()
        os.waitpid(begin(sources, tmp_path / f"undisturbed{number}"), 0)
        times.append(time.perf_counter() - start)
    expected = digest(tmp_path / "undisturbed0")
    assert digest(tmp_path / "undisturbed1") == expected

    random, seen, reach = Random(0), {"nothing": 0, "scratch": 0, "whole": 0}, 1.2 * min(times)
    for number in range(KILLS):
        target = tmp_path / "out" / f"merge{number}"
        child = begin(sources, target)
        time.sleep(random.uniform(0, reach))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = list(target.parent.glob(f".{target.name}.*")) if target.parent.exists() else []
        assert len(left) <= 1
        seen["whole" if target.exists() else "scratch" if left else "nothing"] += 1
        reach *= 0.9 if target.exists() else 1.05  # the whole is hit again and again, however busy the machine is
        check_after(sources, target, expected)
    print(f"{KILLS} kills within {reach:.2f} s: {seen}")
    assert min(seen.values()) > 0, f"not every moment was hit: {seen}"
