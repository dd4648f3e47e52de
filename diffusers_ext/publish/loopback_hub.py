"""A Hub on this machine, for the real `huggingface_hub` client: what is pushed to it can be loaded from it.

    with LoopbackHub(folder) as hub:          # folder/owner/name/ are the model repositories
        os.environ["HF_ENDPOINT"] = hub.url   # in a process that has not imported huggingface_hub yet

Served are: creating and deleting a model repository, public or private (any token opens those); uploading (small files in the
commit, large ones by the LFS protocol), deleting files; pull requests, read as refs/pr/N; information, file list,
existence and download. There is one branch without history: main, or its commit. Everything else is answered 404 or 501 with
a message. Set HF_HUB_DISABLE_XET=1: that protocol is not spoken.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from .loopback_requests import USER, Refusal, Request, digest, repository_name, tree, write

PULLS = ".pull-requests"  # beside the owners
PRIVATE = ".private"  # marks a repository's folder, and is not a file of it


class LoopbackHub:
    """`url` is the endpoint; `requests` lists "METHOD path" of everything that was asked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, LoopbackHub(Path(folder)) as hub:
    ...     hub.url.startswith('http://127.0.0.1:')
    True
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.writing = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository: str, revision: str = "main") -> dict[str, Path]:
        """The files of a repository by name; none where it has no such revision."""
        folder = self.folder(repository, revision)
        if folder is None:
            return {}
        names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {name: path for name, path in names.items() if name != PRIVATE}

    def commit(self, repository: str, revision: str = "main") -> str:
        """The commit id: a digest of names and contents, so that equal content has an equal id."""
        contents = [f"{name}:{digest(path)}" for name, path in self.files(repository, revision).items()]
        return hashlib.sha1("\n".join(contents).encode()).hexdigest()

    def folder(self, repository: str, revision: str = "main") -> Path | None:
        """Where a revision lies: main, a pull request, or the commit of one of these; None where there is no such revision."""
        main = self.root / repository
        if not main.is_dir():
            return None
        if revision == "main":
            return main
        pulls = self.root / PULLS / repository
        if number := re.fullmatch(r"refs/pr/(\d+)", revision):
            return pulls / number[1] if (pulls / number[1]).is_dir() else None
        names = ["main", *(f"refs/pr/{path.name}" for path in pulls.glob("*"))]
        known = next((name for name in names if self.commit(repository, name) == revision), None)
        return self.folder(repository, known) if known else None

    def is_private(self, repository: str) -> bool:
        return (self.root / repository / PRIVATE).is_file()

    def open_pull_request(self, repository: str) -> str:
        """Copy main to a new pull request; return its revision."""
        number = 1 + len(list((self.root / PULLS / repository).glob("*")))
        shutil.copytree(self.root / repository, self.root / PULLS / repository / str(number))
        return f"refs/pr/{number}"


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    extra: dict[str, str]  # headers of a refusal

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    do_HEAD = do_GET

    def _get(self, request: Request) -> None:
        parts = request.parts
        if parts == ["api", "whoami-v2"]:
            self._who()
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._about(request)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._download("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._unknown()

    def _post(self, request: Request) -> None:
        parts = request.parts
        if parts == ["api", "repos", "create"]:
            self._create(request.object())
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = [{**item, "actions": self._put_action(item["oid"])} for item in request.object()["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            self._folder(request.repository, request.parts[5])
            files = [self._upload_mode(item["path"]) for item in request.object()["files"]]
            self._json({"files": files})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            with self.hub.writing:
                self._commit(request)
        else:
            self._unknown()

    def _put(self, request: Request) -> None:
        if request.parts[:1] != ["large"]:
            self._unknown()
        oid = request.parts[-1]
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, f"the content does not have the digest {oid}")
        self.hub.large[oid] = request.body
        self._json({})

    def _delete(self, request: Request) -> None:
        if request.parts != ["api", "repos", "delete"]:
            self._unknown()
        repository = repository_name(request.object())
        shutil.rmtree(self._folder(repository))
        shutil.rmtree(self.hub.root / PULLS / repository, ignore_errors=True)
        self._json({})

    # ------------------------------------------------------------------ answers

    def _who(self) -> None:
        if not self._has_token():
            raise Refusal(401, "no token")
        self._json({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def _create(self, request: dict) -> None:
        repository = repository_name(request)
        known = (self.hub.root / repository).is_dir()
        if not known:
            (self.hub.root / repository).mkdir(parents=True)
            if request.get("visibility") == "private" or request.get("private"):
                (self.hub.root / repository / PRIVATE).touch()
        self._json({"url": f"{self.hub.url}/{repository}"}, 409 if known else 200)

    def _about(self, request: Request) -> None:
        repository, rest = request.repository, request.parts[4:]
        if rest[:1] == ["auth-check"]:
            self._folder(repository, "main")
            if not self._has_token():
                raise Refusal(401, "no token")
            return self._json({})
        revision = rest[1] if len(rest) > 1 else "main"
        if rest[:1] not in ([], ["revision"], ["tree"]) or (rest[:1] == ["revision"] and len(rest) != 2):
            self._unknown()
        self._folder(repository, revision)
        files = self.hub.files(repository, revision)
        if rest[:1] == ["tree"]:
            return self._json(tree(files, "/".join(rest[2:]), request.has("recursive")))
        siblings = [{"rfilename": name} for name in files]
        known = {"_id": repository, "id": repository, "modelId": repository, "tags": [], "downloads": 0, "likes": 0}
        known["private"] = self.hub.is_private(repository)
        self._json({**known, "sha": self.hub.commit(repository, revision), "siblings": siblings})

    def _download(self, repository: str, revision: str, name: str) -> None:
        self._folder(repository, revision)
        headers = {"X-Repo-Commit": self.hub.commit(repository, revision), "Accept-Ranges": "bytes"}
        path = self.hub.files(repository, revision).get(name)
        if path is None:
            self.extra = headers
            raise Refusal(404, f"no file {name}", "EntryNotFound")
        content, status = path.read_bytes(), 200
        headers["ETag"] = f'"{digest(path)}"'
        if start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            content, status = content[int(start[1]) :], 206
        self._send(status, content, headers, "application/octet-stream")

    def _upload_mode(self, name: str) -> dict:
        large = name.endswith((".safetensors", ".png"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _put_action(self, oid: str) -> dict:
        return {"upload": {"href": f"{self.hub.url}/large/{oid}"}}

    def _commit(self, request: Request) -> None:
        repository, revision = request.repository, request.parts[5]
        folder = self._folder(repository, revision)
        operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        contents = [self._content(operation) for operation in operations if operation["key"] != "header"]
        parent = next((item["value"].get("parentCommit") for item in operations if item["key"] == "header"), None)
        if parent and parent != self.hub.commit(repository, revision):
            raise Refusal(412, f"the parent commit is not {parent}")
        gone = [name for name, content in contents if content is None and not (folder / name).exists()]
        if gone:
            raise Refusal(404, f"no file {gone[0]} to delete", "EntryNotFound")
        answer = {}
        if request.has("create_pr"):
            revision = self.hub.open_pull_request(repository)
            answer["pullRequestUrl"] = f"{self.hub.url}/{repository}/discussions/{revision.rpartition('/')[2]}"
        folder = self._folder(repository, revision)
        for name, content in contents:
            write(folder / name, content)
        commit = self.hub.commit(repository, revision)
        self._json({**answer, "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}", "commitOid": commit})

    def _content(self, operation: dict) -> tuple[str, bytes | None]:
        """(name, content) of one operation; None deletes."""
        key, value = operation["key"], operation["value"]
        name = PurePosixPath(value["path"])
        if name.is_absolute() or ".." in name.parts or not name.parts or name.parts[0] == PRIVATE:
            raise Refusal(400, f"{value['path']}: no name of a file in a repository")
        if key == "file":
            return str(name), base64.b64decode(value["content"])
        if key == "lfsFile":
            if value["oid"] not in self.hub.large:
                raise Refusal(400, f"{name}: its content {value['oid']} was not uploaded")
            return str(name), self.hub.large[value["oid"]]
        if key in ("deletedFile", "deletedFolder"):
            return str(name), None
        raise Refusal(501, f"the operation {key} is not served here")

    def _folder(self, repository: str, revision: str = "main") -> Path:
        """Where a revision lies; a private repository is not there for those without a token."""
        folder = self.hub.folder(repository)
        if folder is None or (self.hub.is_private(repository) and not self._has_token()):
            raise Refusal(404, f"no repository {repository}", "RepoNotFound")
        folder = self.hub.folder(repository, revision)
        if folder is None:
            raise Refusal(404, f"{repository} has no revision {revision}", "RevisionNotFound")
        return folder

    def _has_token(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def _unknown(self) -> None:
        raise Refusal(501, f"{self.command} {urlsplit(self.path).path} is not served here")

    # ------------------------------------------------------------------ HTTP

    def _answer(self, method: Callable[[Request], None]) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.extra = {}
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        body = b"" if self.command in ("GET", "HEAD") else self._body()
        try:
            method(Request(parts, parse_qs(address.query), body))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            self._send(400, json.dumps({"error": f"not understood: {error!r}"}).encode())
        except Refusal as refusal:
            message = refusal.message.encode("ascii", "replace").decode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": message, **self.extra}
            content = json.dumps({"error": refusal.message}).encode()
            self._send(refusal.status, content, {name: value for name, value in headers.items() if value})

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
