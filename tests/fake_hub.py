"""A stand-in for the Hugging Face Hub on this machine: the HTTP by which repositories are read and written."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

COMMIT = "c" * 40


class FakeHub:
    """files: by repository and name. sizes: what the Hub says of files, if not the truth. tokens: of requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, dict[str, bytes]] = {}
        self.sizes: dict[str, int] = {}
        self.tokens: list[str | None] = []
        self.paths: list[str] = []
        self.down = False

    def add(self, repo: str, folder: Path, **more: bytes) -> None:
        self.files[repo] = {path.name: path.read_bytes() for path in folder.iterdir()} | more

    def answer(self, method: str, path: str, body: bytes) -> bytes | None:
        """None where there is nothing."""
        if path.startswith("/api/repos/create"):
            sent = json.loads(body)
            repo = "/".join(filter(None, (sent.get("organization"), sent["name"])))
            self.files.setdefault(repo, {})
            return json.dumps({"url": f"{self.url}/{repo}"}).encode()
        if path == "/api/validate-yaml":  # of a card
            return json.dumps({"errors": [], "warnings": []}).encode()
        if not path.startswith("/api/models/"):
            repo, _, name = path.removeprefix("/").partition(f"/resolve/{COMMIT}/")
            return self.files.get(repo, {}).get(name)
        owner, name, *act = path.removeprefix("/api/models/").split("/")
        repo = f"{owner}/{name}"
        if repo not in self.files:
            return None
        if act[:1] == ["preupload"]:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return json.dumps({"files": modes}).encode()
        if act[:1] == ["commit"]:
            for file in [json.loads(line)["value"] for line in body.splitlines()][1:]:
                self.files[repo][file["path"]] = base64.b64decode(file["content"])
            return json.dumps({"commitOid": COMMIT, "commitUrl": f"{self.url}/{repo}/commit/{COMMIT}"}).encode()
        listed = [
            {"rfilename": name, "size": self.sizes.get(name, len(data))} for name, data in self.files[repo].items()
        ]
        return json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": listed}).encode()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Meanwhile huggingface_hub asks the stand-in in this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            hub.tokens.append(self.headers.get("Authorization"))
            path, body = self.path.partition("?")[0], self.rfile.read(length)
            hub.paths.append(path)
            found = None if hub.down else hub.answer(self.command, path, body)
            self.send_response(503 if hub.down else 404 if found is None else 200)
            if found is None and not hub.down:
                self.send_header("X-Error-Code", "GatedRepo" if "gated/" in path else "RepoNotFound")
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    changes = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": address, "HF_HUB_OFFLINE": False}
    try:
        with patch.multiple("huggingface_hub.constants", **changes):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
