"""A Hub on this machine, for the real `huggingface_hub` client: what is pushed to it can be loaded from it.

    with LoopbackHub(folder) as hub:          # folder/owner/name/ are the model repositories
        os.environ["HF_ENDPOINT"] = hub.url   # in a process that has not imported huggingface_hub yet

Served are: creating a repository, uploading (small files in the commit, large ones by the LFS protocol), information, file
list, existence and download. One branch, no history, no tokens. Set HF_HUB_DISABLE_XET=1: that protocol is not spoken.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

USER = "me"  # the owner of repositories created without one


class LoopbackHub:
    """`url` is the endpoint; `requests` lists "METHOD path" of everything that was asked."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository: str) -> dict[str, Path]:
        folder = self.root / repository
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, repository: str) -> str:
        """The commit id: a digest of names and contents, so that equal content has an equal id."""
        contents = [f"{name}:{_digest(path)}" for name, path in self.files(repository).items()]
        return hashlib.sha1("\n".join(contents).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._about("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._download("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._send(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        parts, body = self._parts(), self._body()
        if parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = [{**each, "actions": self._put_action(each["oid"])} for each in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["preupload"]:
            files = [self._upload_mode(each["path"]) for each in json.loads(body)["files"]]
            self._json({"files": files})
        elif parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._send(404)

    def do_PUT(self) -> None:
        self.hub.large[self._parts()[-1]] = self._body()
        self._json({})

    # ------------------------------------------------------------------ answers

    def _create(self, request: dict) -> None:
        repository = f"{request.get('organization') or USER}/{request['name']}"
        known = (self.hub.root / repository).is_dir()
        (self.hub.root / repository).mkdir(parents=True, exist_ok=True)
        self._json({"url": f"{self.hub.url}/{repository}"}, 409 if known else 200)

    def _about(self, repository: str, rest: list[str]) -> None:
        if not (self.hub.root / repository).is_dir():
            return self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        files = self.hub.files(repository)
        if rest[:1] == ["tree"]:
            return self._json(
                [
                    {"type": "file", "oid": _digest(path), "size": path.stat().st_size, "path": name}
                    for name, path in files.items()
                ]
            )
        siblings = [{"rfilename": name} for name in files]
        known = {"_id": repository, "id": repository, "modelId": repository, "private": False, "tags": []}
        self._json({**known, "sha": self.hub.commit(repository), "downloads": 0, "likes": 0, "siblings": siblings})

    def _download(self, repository: str, name: str) -> None:
        if not (self.hub.root / repository).is_dir():
            return self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        headers = {"X-Repo-Commit": self.hub.commit(repository)}
        path = self.hub.files(repository).get(name)
        if path is None:
            return self._send(404, headers={"X-Error-Code": "EntryNotFound", **headers})
        self._send(200, path.read_bytes(), {"ETag": f'"{_digest(path)}"', **headers}, "application/octet-stream")

    def _upload_mode(self, name: str) -> dict:
        large = name.endswith((".safetensors", ".png"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _put_action(self, oid: str) -> dict:
        return {"upload": {"href": f"{self.hub.url}/large/{oid}"}}

    def _commit(self, repository: str, body: bytes) -> None:
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] in ("file", "lfsFile"):
                path = self.hub.root / repository / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                inline = operation["key"] == "file"
                path.write_bytes(base64.b64decode(value["content"]) if inline else self.hub.large[value["oid"]])
        commit = self.hub.commit(repository)
        self._json({"commitUrl": f"{self.hub.url}/{repository}/commit/{commit}", "commitOid": commit})

    # ------------------------------------------------------------------ HTTP

    def _parts(self) -> list[str]:
        self.hub.requests.append(f"{self.command} {self.path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, answer: dict | list, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode())

    def _send(
        self, status: int, body: bytes = b"", headers: dict | None = None, kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing; `LoopbackHub.requests` is the log."""


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
