"""A sweep on a real local Ray of two workers, one of which is killed midway: nothing is lost, nothing is done twice."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

import lego
from lego import AdapterError
from lego.__main__ import main
from lego.points import Row, Settings, run_sweep
from lego.sweep import Point, read_sweep
from lego.sweep_ray import import_ray
from tests.conftest import half_pair, write_peft

# requirements-dev.txt installs it, so this runs in CI. It has no wheels yet for the newest Pythons, where the rest still is tested.
pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dev.txt")

ROOT = Path(__file__).parents[2]
POINTS = 10


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    ray = import_ray()
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


def write_sweep(tmp_path: Path, size: int, **fields: object) -> Path:
    """Two adapters and a sweep over seeds; the size decides how long a point takes."""
    for seed, name in enumerate(("one", "two")):
        modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(8)]
        tensors = {k: v for m in modules for k, v in half_pair(m, 32, size, size, seed=seed).items()}
        write_peft(tmp_path / name, tensors, r=32)
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"sources": ["one", "two"], "parameters": {"k": 16}, "seed": f"1..{POINTS}", **fields})
    )
    return path


def workers(task: str) -> list[psutil.Process]:
    """The processes that run a task of this name: Ray puts it into their title."""
    titles = {process: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return [process for process, title in titles.items() if title.startswith("ray::") and task in title]


@pytest.mark.usefixtures("two_workers")
def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    sweep, out = read_sweep(write_sweep(tmp_path, 1024)), tmp_path / f"out-{os.getpid()}"
    told: list[str] = []
    killed: list[int] = []
    kept: dict[str, int] = {}

    def each(point: Point, line: Row) -> None:
        told.append(point.name)
        if len(told) != 3:
            return
        kept.update({name: (out / name / "adapter_model.safetensors").stat().st_ino for name in told})
        until = time.monotonic() + 20
        while not killed and time.monotonic() < until:
            for process in workers(out.name)[:1]:
                process.kill()
                killed.append(process.pid)

    lines = run_sweep(sweep, Settings(out, sweep.folder), each, ray="local")
    assert killed, "no worker was found midway"
    names = [f"seed={seed}" for seed in range(1, POINTS + 1)]
    assert sorted(told) == sorted(names)
    assert [line["folder"] for line in lines] == names
    assert [row["folder"] for row in csv.DictReader((out / "table.csv").open())] == names
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(names)
    for name, inode in kept.items():
        assert (out / name / "adapter_model.safetensors").stat().st_ino == inode, f"{name} was made twice"
    alone = lego.merge([lego.read_adapter(tmp_path / name) for name in ("one", "two")], k=16, seed=4)
    assert alone.report is not None
    assert lines[3]["relative error"] == pytest.approx(alone.report.relative_error, rel=1e-5)


@pytest.mark.usefixtures("two_workers")
def test_an_error_in_a_worker_is_the_same_error_here(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, 16))
    (tmp_path / "out" / "seed=3").mkdir(parents=True)
    with pytest.raises(AdapterError, match="seed=3: is in the way: it is no point of a sweep"):
        run_sweep(sweep, Settings(tmp_path / "out", sweep.folder), ray="local")


def test_the_command_starts_its_own_ray(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 16, seed=[1, 2])
    command = [sys.executable, "-m", "lego", "sweep", str(path), "-o", str(tmp_path / "out"), "--ray"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader((tmp_path / "out" / "table.csv").open()))) == 2
    assert done.stdout.startswith("seed (1, 2): 2 points\n")


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 16, seed=[1, 2])
    command = [sys.executable, "-m", "lego", "sweep", str(path), "-o", str(tmp_path / "out"), "--ray", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 127.0.0.1:1: no Ray answers there (Connection refused)")
    assert done.stderr.count("\n") == 1


def test_without_ray_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, 16)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", str(path), "-o", str(tmp_path / "out"), "--ray"]) == 2
    assert "pip install 'brickyard[ray]'" in capsys.readouterr().err
