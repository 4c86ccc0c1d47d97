"""How the small hub takes uploads: repositories created, files offered, large ones put aside, all of it committed at once."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Pushes:
    """The endpoints that create and fill repositories; for accounts only, in their own name."""

    hub: Any
    headers: Any
    rfile: Any
    path: str
    token: str

    def body(self) -> bytes:
        """What the client sent."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        if self.disturbed(path):  # type: ignore[attr-defined]
            return
        parts = path.strip("/").split("/")
        account = self.hub.accounts.get(self.token)
        if path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})  # type: ignore[attr-defined]
        elif account is None or self.owner(parts, body) != account:
            self.refuse(401 if account is None else 403, "")  # type: ignore[attr-defined]
        elif path == "/api/repos/create":
            self.create(json.loads(body), account)
        elif "lfs" in parts:
            self.offer(json.loads(body)["objects"])
        elif parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": self.mode(f["path"]), "shouldIgnore": False} for f in files]
            self.send_json({"files": modes})  # type: ignore[attr-defined]
        else:
            self.commit("/".join(parts[2:4]), body)

    @staticmethod
    def owner(parts: list[str], body: bytes) -> str:
        """Whose repository a request is about."""
        if parts[:2] == ["api", "repos"]:
            return json.loads(body)["organization"]
        return parts[0] if "lfs" in parts else parts[2]

    def offer(self, objects: list[dict]) -> None:
        """Where large files go."""
        hrefs = [f"{self.hub.endpoint}/upload/{each['oid']}" for each in objects]
        found = [{**each, "actions": {"upload": {"href": href}}} for each, href in zip(objects, hrefs, strict=True)]
        self.send_json({"transfer": "basic", "objects": found})  # type: ignore[attr-defined]

    def do_PUT(self) -> None:
        body, oid = self.body(), self.path.rsplit("/", 1)[1]
        if self.disturbed("/upload"):  # type: ignore[attr-defined]
            return
        if hashlib.sha256(body).hexdigest() != oid:
            self.refuse(400, "")  # type: ignore[attr-defined]
            return
        (self.hub.home / oid).write_bytes(body)
        self.send(200, b"", {})  # type: ignore[attr-defined]

    @staticmethod
    def mode(name: str) -> str:
        return "lfs" if name.endswith(".safetensors") else "regular"

    def create(self, asked: dict, account: str) -> None:
        repo = f"{account}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repos:
            self.send(409, json.dumps(url).encode(), {"Content-Type": "application/json"})  # type: ignore[attr-defined]
            return
        folder = self.hub.home / repo
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        self.hub.repos[repo] = folder
        private = asked.get("visibility") == "private" or asked.get("private") is True
        if private:
            self.hub.readers[repo] = {self.token}
        self.hub.pushed[repo] = {"private": private, "messages": []}
        self.send_json(url)  # type: ignore[attr-defined]

    def commit(self, repo: str, body: bytes) -> None:
        folder = self.hub.repos[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.pushed[repo]["messages"].append(value["summary"])
            elif line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.hub.home / value["oid"]).rename(folder / value["path"])
        url = f"{self.hub.endpoint}/{repo}/commit/{COMMIT}"
        self.send_json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})  # type: ignore[attr-defined]
