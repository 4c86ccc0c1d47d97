"""Files to a repository of the visitor's own account on the hub, private unless they say otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from backends import hub
from lego.errors import AdapterError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMITTING = "Committing"
EMPTY = {".gitattributes", "README.md"}
"""What a repository holds that nothing was put into yet."""


def owner(token: str) -> str:
    """The name of the account that a token belongs to.

    Raises:
        AdapterError: when it belongs to none, or no longer.
    """
    with hub.hub_errors("Your account"):
        return str(hub.api(token).whoami()["name"])


def push(
    files: Sequence[Path],
    name: str,
    token: str,
    private: bool = True,
    message: str = "Add files",
    progress: Callable[[str, float | None], None] = lambda text, part: None,
) -> str:
    """Create a repository and put files into it in one commit.

    Args:
        files: each lands at the top, under its own name.
        name: of the repository, without the owner.
        token: of the account, which may create repositories.
        private: whether nobody else may see it.
        message: of the commit.
        progress: is told what is being done and how far that is. What it raises before the last, ``COMMITTING``, leaves an empty
            repository behind.

    Returns:
        The address of the repository's page.

    Raises:
        AdapterError: when the name is none, is taken by something else, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd

    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        why = f"{name[:60]!r} is no name of a repository"
        raise AdapterError(why, None, "Use letters, digits, dots, dashes and underscores.")
    repo, api = f"{owner(token)}/{name}", hub.api(token)
    with hub.hub_errors(repo):
        url = api.create_repo(repo, private=private, exist_ok=True)
        if taken := set(api.list_repo_files(repo)) - EMPTY:
            held = ", ".join(sorted(taken)[:3])
            raise AdapterError(f"is there already and holds {held}", repo, "Choose another name.")
        if private != bool(api.model_info(repo).private):
            raise AdapterError("is there already, with another visibility", repo, "Choose another name.")
        operations = [CommitOperationAdd(file.name, str(file)) for file in files]
        sizes = [file.stat().st_size for file in files]
        try:
            for i, operation in enumerate(operations):
                progress(f"Uploading {operation.path_in_repo}", sum(sizes[:i]) / max(1, sum(sizes)))
                api.preupload_lfs_files(repo, [operation])
            progress(COMMITTING, None)
            api.create_commit(repo, operations, commit_message=message)
        except (RuntimeError, ValueError) as error:  # what the client makes of an upload that failed, or of a card
            why = str(error).strip().splitlines()[0]
            fix = "Try again: nothing of it was committed."
            raise AdapterError(f"could not be uploaded ({why})", repo, fix) from error
    return str(url)
