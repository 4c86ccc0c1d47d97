"""The Hugging Face Hub: what a repository holds, downloads with progress, and its errors as one clear message each.

The endpoint and the cache folder are read from the environment at every call (``HF_ENDPOINT``, ``HF_HUB_CACHE``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.builtin import home
from backends.errors import BaseError
from lego.errors import AdapterError

Progress = Callable[[str, float | None], None]
MOST_HEADER = 64 * 2**20
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PATIENCE = 15.0
"""Seconds until a hub that says nothing counts as unreachable."""
OWN_ACCOUNT = "give an access token of your account (in a terminal: `hf auth login`, or HF_TOKEN)"


@dataclass(frozen=True)
class Repo:
    """A model repository at one commit.

    Attributes:
        id: owner/name.
        commit: the commit's hash.
        sizes: bytes of every file.
        token: what opened it; never shown.
        restricted: whether it is private or gated, so that not everyone may read it.
    """

    id: str
    commit: str
    sizes: dict[str, int]
    token: str | None = field(default=None, repr=False, compare=False)
    restricted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Endpoint, token and cache folder: what a token opened lies in a folder of that token's, where nobody else finds it."""
        found = {**options(), "token": token_or_none(self.token)}
        if self.token and self.restricted:
            found["cache_dir"] = str(home() / "restricted" / hashlib.sha256(self.token.encode()).hexdigest()[:32])
        return found


def parse_id(text: str) -> tuple[str, str | None]:
    """Owner/name, and the revision where an address names one, from what a person types or pastes.

    Raises:
        AdapterError: when it is not the id of a repository.
    """
    bare = re.sub(r"^https?://[^/]+/", "", text.strip()).strip("/")
    bare, _, rest = bare.partition("/tree/")
    if not REPO.fullmatch(bare):
        raise AdapterError(f"{text.strip()[:80]!r} is not a repository's id", None, "Write it as owner/name.")
    return bare, rest.split("/")[0] or None


def options() -> dict[str, Any]:
    """Endpoint and cache folder, where the environment names them."""
    found = {"endpoint": os.environ.get("HF_ENDPOINT"), "cache_dir": os.environ.get("HF_HUB_CACHE")}
    return {name: value for name, value in found.items() if value}


def token_or_none(token: str | None) -> str | bool | None:
    """A visitor's token; without one the account of this machine, but on a Space nobody's: its owner's is not for visitors."""
    return token or (False if "SPACE_ID" in os.environ else None)


def api(token: str | None = None) -> Any:
    """The hub's client for whoever the token belongs to."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=options().get("endpoint"), token=token_or_none(token))


def look(repo_id: str, revision: str | None = None, token: str | None = None) -> Repo:
    """What a repository holds, without downloading anything.

    Args:
        repo_id: owner/name.
        revision: branch, tag or commit; the main branch unless given.
        token: of the visitor's account, for a private or gated one.

    Raises:
        AdapterError: when it does not exist, is private or gated, or the hub cannot be reached.
    """
    with hub_errors(repo_id, revision):
        info = api(token).model_info(repo_id, revision=revision, files_metadata=True, timeout=PATIENCE)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return Repo(repo_id, info.sha or "main", sizes, token, bool(info.private or info.gated))


def read_json(repo: Repo, name: str) -> dict[str, Any]:
    """A small JSON file of a repository.

    Raises:
        AdapterError: when it cannot be had or is not a JSON object.
    """
    if repo.sizes.get(name, 0) > MOST_HEADER:
        raise AdapterError(f"its {name} has {repo.sizes[name] / 1e6:.0f} MB, which no such file needs", repo.id)
    path = download(repo, [name]) / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"its {name} is not valid JSON ({error})", repo.id) from error
    if not isinstance(found, dict):
        raise AdapterError(f"its {name} is not a JSON object", repo.id)
    return found


def download(repo: Repo, names: Sequence[str], progress: Progress | None = None) -> Path:
    """Fetch files of a repository, or find them in the cache.

    Args:
        repo: from `look`.
        names: exact names.
        progress: is told the text and the fraction of bytes.

    Returns:
        The folder they lie in.

    Raises:
        AdapterError: when they cannot be had.
    """
    from huggingface_hub import snapshot_download

    patterns = [re.sub(r"([\[*?])", r"[\1]", name) for name in names]
    bar = {"tqdm_class": bar_class(repo.id, progress)} if progress else {}
    with hub_errors(repo.id, repo.commit):
        return Path(snapshot_download(repo.id, revision=repo.commit, allow_patterns=patterns, **bar, **repo.options))


def cached(repo_id: str, revision: str | None, name: str) -> Path | None:
    """The folder of a repository that was downloaded before, if it holds the named file; asks no network.

    What a visitor's token opened is not found: who wants it shows a token again.

    Args:
        repo_id: owner/name.
        revision: a commit; None takes the latest download.
        name: of the file.
    """
    from huggingface_hub import constants

    repo = Path(options().get("cache_dir", constants.HF_HUB_CACHE)) / f"models--{repo_id.replace('/', '--')}"
    found = [path.parent for path in repo.glob(f"snapshots/*/{name}") if revision in (None, path.parent.name)]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def look_or_find(repo_id: str, revision: str | None, marks: Sequence[str]) -> Repo | Path:
    """What a repository holds; where the hub cannot be reached, the folder of an earlier download instead.

    Args:
        repo_id: owner/name.
        revision: a commit, branch or tag; the newest unless given.
        marks: names of files, one of which such a folder must hold, beside weights.

    Raises:
        AdapterError: as `look`.
    """
    try:
        return look(repo_id, revision)
    except BaseError:
        for mark in marks:
            if (folder := cached(repo_id, revision, mark)) and any(folder.rglob("*.safetensors")):
                return folder
        raise


def bar_class(title: str, progress: Progress) -> type:
    """A progress bar for the terminal that tells the page as well."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **named: Any) -> None:
            # Counted here: a bar that is not shown on the terminal counts nothing.
            self.bytes = (named.get("initial") or 0) if named.get("unit") == "B" else None
            super().__init__(*args, **named)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.bytes is not None and self.total:
                self.bytes += n or 0
                part = min(self.bytes / self.total, 1.0)
                progress(f"Downloading {title}, {part * self.total / 1e6:.0f} of {self.total / 1e6:.0f} MB", part)
            return shown

    return Bar


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn whatever the hub's client raises into one message.

    Raises:
        AdapterError: that message.
    """
    from huggingface_hub import errors

    try:
        yield
    except AdapterError:
        raise
    except errors.GatedRepoError as error:
        fix = f"Accept its terms on its page on the hub, then {OWN_ACCOUNT}."
        raise AdapterError("is gated: its owner asks for an agreement first", repo_id, fix) from error
    except errors.RevisionNotFoundError as error:
        raise AdapterError(f"has no revision {revision!r}", repo_id) from error
    except errors.RepositoryNotFoundError as error:
        fix = f"Check the spelling (owner/name); for a private one {OWN_ACCOUNT}."
        raise AdapterError("does not exist on the hub, or is private", repo_id, fix) from error
    except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise unreachable(repo_id) from error
        raise AdapterError("lacks a file that it should hold", repo_id) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            what = "may not be read with this account" if code == 403 else "needs a valid access token"
            raise AdapterError(f"{what} (HTTP {code})", repo_id, f"If you may use it, {OWN_ACCOUNT}.") from error
        if code == 429:
            fix = f"Wait a few minutes, or {OWN_ACCOUNT}: known accounts may ask more often."
            raise AdapterError("the hub takes no more requests for now (HTTP 429)", repo_id, fix) from error
        raise AdapterError(f"the hub answered with an error (HTTP {code})", repo_id, "Try again later.") from error
    except errors.HFValidationError as error:
        raise AdapterError("is not a repository's id", repo_id, "Write it as owner/name.") from error
    except Exception as error:
        # The HTTP library under the client differs between versions; its errors all come from a module of that name.
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
            "httpx",
            "httpx2",
            "httpcore",
            "requests",
        ):
            raise unreachable(repo_id) from error
        raise


def unreachable(repo_id: str) -> BaseError:
    """The error for a hub that does not answer."""
    fix = "Check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), or add it from a local folder."
    return BaseError("the hub cannot be reached", repo_id, fix)
