"""A small Hugging Face Hub on loopback: repositories as folders, the few endpoints that the client asks for, and a log."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The hub as a test sees it.

    Attributes:
        repos: folder of every repository.
        refusals: status and error code of the repositories that may not be read.
        sent: bytes of body sent, by path.
        endpoint: its address.
    """

    repos: dict[str, Path] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""

    def bytes_of(self, name: str) -> int:
        """Bytes sent of files with this name."""
        return sum(count for path, count in self.sent.items() if path.endswith(f"/{name}"))


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


class Handler(BaseHTTPRequestHandler):
    """Answers the client's requests from the folders."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self.answer_api("/".join(parts[2:4]), parts[4:], query)
        elif parts[2:3] == ["resolve"]:
            self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def allowed(self, repo: str, revision: str) -> Path | None:
        """The repository's folder, or None after an error was sent."""
        if repo in self.hub.refusals:
            self.refuse(*self.hub.refusals[repo])
        elif repo not in self.hub.repos:
            self.refuse(401, "RepoNotFound")  # the real one tells strangers no more
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            return self.hub.repos[repo]
        return None

    def answer_api(self, repo: str, rest: list[str], query: dict[str, list[str]]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        folder = self.allowed(repo, revision)
        if folder is None:
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size, self.etag(path)) for path in files]
        if rest[:1] == ["tree"]:
            found: object = [{"type": "file", "path": name, "size": size, "oid": etag} for name, size, etag in names]
        else:
            siblings = [{"rfilename": name, "size": size, "blobId": etag} for name, size, etag in names]
            found = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

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
        self.send(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent[self.path] = self.hub.sent.get(self.path, 0) + len(body)
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""
