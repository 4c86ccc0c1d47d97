"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lego.errors import AdapterError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target to write into, which becomes the target when the block ends well.

    Raises:
        AdapterError: when the target exists, or cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise AdapterError("exists already", target, "Choose another name or remove it first.")
    mine = f".{target.name}.{platform.node()}."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, mine)
        scratch = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}.", dir=target.parent))
    except OSError as error:
        raise AdapterError(f"cannot be written ({error.strerror})", target) from error
    try:
        yield scratch
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except OSError as error:
        raise AdapterError(
            f"cannot be written ({error.strerror})", target, "Is there space, and may you write?"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what killed processes of this machine left of the same target."""
    for path in folder.iterdir():
        pid = path.name.removeprefix(prefix).split(".")[0]
        if path.name.startswith(prefix) and pid.isdigit() and not alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is someone else's
        return True
    return True
