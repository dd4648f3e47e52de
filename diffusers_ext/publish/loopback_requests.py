"""What is asked of the Hub on this machine, how it is refused, and what its answers say of files."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

USER = "me"  # the owner of repositories created without one


@dataclass
class Refusal(Exception):
    """An answer other than success; code is what huggingface_hub tells errors apart by."""

    status: int
    message: str
    code: str = ""


@dataclass
class Request:
    """What was asked: the parts of the path, the query, and the body of what is not read."""

    parts: list[str]
    query: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""

    @property
    def repository(self) -> str:
        """Of /api/models/owner/name/..."""
        return "/".join(self.parts[2:4])

    def has(self, name: str) -> bool:
        """Whether a switch is on in the query."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def object(self) -> dict:
        """The body as a JSON object."""
        try:
            record = json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, f"the body is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise Refusal(400, "the body is no JSON object")
        return record


def repository_name(request: dict) -> str:
    """owner/name of a request about a whole repository."""
    if request.get("type", "model") != "model":
        raise Refusal(501, f"repositories of type {request['type']} are not served here")
    return f"{request.get('organization') or USER}/{request['name']}"


def tree(files: dict[str, Path], under: str, recursive: bool) -> list[dict]:
    """Files, and without recursion folders, of one folder of a repository."""
    start = f"{under}/" if under else ""
    inside = {name: path for name, path in files.items() if name.startswith(start)}
    if not inside and under:
        raise Refusal(404, f"no folder {under}", "EntryNotFound")
    entries = {}
    for name, path in inside.items():
        first, _, deeper = name[len(start) :].partition("/")
        if deeper and not recursive:
            entries[start + first] = {"type": "directory", "oid": "", "size": 0, "path": start + first}
        else:
            entries[name] = {"type": "file", "oid": digest(path), "size": path.stat().st_size, "path": name}
    return list(entries.values())


def write(path: Path, content: bytes | None) -> None:
    """Write a file, or delete it, or a folder."""
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
