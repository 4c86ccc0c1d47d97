"""A small Hugging Face Hub on loopback: repositories as folders, the few endpoints that the client asks for, and a log.

It also misbehaves when told to (`Hub.faults`), keeps repositories for some accounts only (`Hub.readers`), lists adapters of a base,
and takes uploads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_push import Pushes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


PIECE = 64 * 1024
"""Bytes written at a time."""


@dataclass
class Fault:
    """What goes wrong with the next requests, other than HEAD, whose path ends so; nothing, as long as nothing is said.

    Attributes:
        path: the end of the path.
        status: that is answered instead; 0 answers as usual.
        cut: bytes of body after which the connection breaks.
        wait: seconds before the answer.
        drip: seconds between two pieces of the body, of 64 kB each.
        times: how many requests it hits.
    """

    path: str
    status: int = 0
    cut: int | None = None
    wait: float = 0
    drip: float = 0
    times: int = 1


@dataclass
class Hub:
    """The hub as a test sees it.

    Attributes:
        repos: folder of every repository.
        refusals: status and error code of the repositories that may not be read.
        readers: tokens that may read a repository; everyone where it is not named.
        gated: those of `readers` whose owner asks for an agreement, so that strangers see that they exist.
        accounts: names by token.
        listed: adapters of a base as the list endpoint gives them.
        faults: what goes wrong, in order.
        sent: bytes of body sent, by path.
        asked: method, path with query, range and authorization of every request.
        pushed: of every repository that was created here: its visibility and the messages of its commits.
        home: where their files lie.
        endpoint: its address.
    """

    repos: dict[str, Path] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    accounts: dict[str, str] = field(default_factory=dict)
    listed: dict[str, list[dict]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    pushed: dict[str, dict] = field(default_factory=dict)
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hub-")))
    endpoint: str = ""

    def bytes_of(self, name: str) -> int:
        """Bytes sent of files with this name."""
        return sum(count for path, count in self.sent.items() if path.endswith(f"/{name}"))

    def ranges_of(self, name: str) -> list[str]:
        """The ranges that were asked for of files with this name, in order; empty for all of it."""
        return [wanted for method, path, wanted, _ in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def fault(self, path: str) -> Fault | None:
        """What goes wrong with this request, if anything."""
        for found in self.faults:
            if found.times and path.endswith(found.path):
                found.times -= 1
                return found
        return None


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": found}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(found.home)


class Handler(Pushes, BaseHTTPRequestHandler):
    """Answers the client's requests from the folders."""

    hub: Hub
    cut: int | None = None
    drip: float = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if self.disturbed(path):
            return
        if parts == ["api", "models"]:
            self.answer_list(query)
        elif parts == ["api", "whoami-v2"]:
            self.answer_account()
        elif parts[:2] == ["api", "models"]:
            self.answer_api("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    @property
    def token(self) -> str:
        """What the client shows, or nothing."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def disturbed(self, path: str) -> bool:
        """Note the request; whether what goes wrong with it was answered already."""
        authorization = self.headers.get("Authorization") or ""
        self.hub.asked.append((self.command, self.path, self.headers.get("Range") or "", authorization))
        found = None if self.command == "HEAD" else self.hub.fault(path)
        if found is None:
            return False
        threading.Event().wait(found.wait)  # tests take the client's sleeping away
        self.cut, self.drip = found.cut, found.drip
        if found.status:
            self.refuse(found.status, "")
        return bool(found.status)

    def allowed(self, repo: str, revision: str) -> Path | None:
        """The repository's folder, or None after an error was sent."""
        readers = self.hub.readers.get(repo)
        if repo in self.hub.refusals:
            self.refuse(*self.hub.refusals[repo])
        elif readers is not None and self.token not in readers and repo in self.hub.gated:
            self.refuse(403 if self.token else 401, "GatedRepo")
        elif repo not in self.hub.repos or (readers is not None and self.token not in readers):
            self.refuse(401, "RepoNotFound")  # the real one tells strangers no more
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            return self.hub.repos[repo]
        return None

    def answer_list(self, query: dict[str, list[str]]) -> None:
        found = self.hub.listed.get(query.get("filter", [""])[0], [])
        words = query.get("search", [""])[0]
        self.send_json([each for each in found if words in each["id"]])

    def answer_account(self) -> None:
        if name := self.hub.accounts.get(self.token):
            self.send_json({"type": "user", "name": name, "auth": {"accessToken": {"role": "write"}}})
        else:
            self.refuse(401, "")

    def answer_api(self, repo: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        folder = self.allowed(repo, revision)
        if folder is None:
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size, self.etag(path)) for path in files]
        if rest[:1] == ["tree"]:
            self.send_json([{"type": "file", "path": name, "size": size, "oid": etag} for name, size, etag in names])
            return
        siblings = [{"rfilename": name, "size": size, "blobId": etag} for name, size, etag in names]
        gated = repo in self.hub.gated
        private = repo in self.hub.readers and not gated
        facts = {"id": repo, "modelId": repo, "sha": COMMIT, "private": private, "gated": "auto" if gated else False}
        self.send_json({**facts, "tags": [], "siblings": siblings})

    def answer_file(self, repo: str, revision: str, name: str) -> None:
        folder = self.allowed(repo, revision)
        if folder is None:
            return
        path = folder / name
        if not path.is_file():
            self.refuse(404, "EntryNotFound")
            return
        content, headers = (
            path.read_bytes(),
            {"ETag": f'"{self.etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
        )
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self.send(206, content[int(start) : last + 1], headers)
        else:
            self.send(200, content, headers)

    @staticmethod
    def etag(path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def refuse(self, status: int, code: str) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self.send(status, b'{"error": "no"}', named)

    def send_json(self, found: object) -> None:
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None and self.cut < len(body):
            body, self.close_connection = body[: self.cut], True
        drip, self.cut, self.drip = self.drip, None, 0
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            self.hub.sent[self.path] = self.hub.sent.get(self.path, 0) + len(piece)
            self.wfile.write(piece)
            threading.Event().wait(drip)

    def log_message(self, *args: object) -> None:
        """Quiet."""
