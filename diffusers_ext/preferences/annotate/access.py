"""Who may open the page: the token of a folder, kept beside its judgements, and a link for each annotator.

    DIR/annotations/.access.json      {"project": ..., "token": ...}, readable by its owner only

The token stays when the server is started again, so that bookmarks and open pages keep working; remove the file for a
new one. `project` tells the drafts in a browser apart from those of another folder served on the same port.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError

FILE = ".access.json"


@dataclass(frozen=True)
class Access:
    """token: opens the page for any name. people: those who have a link of their own, by its token."""

    token: str
    project: str
    people: dict[str, str] = field(default_factory=dict)

    def holder(self, given: str) -> str | None:
        """Return whose token this is: a name, "" for the one that opens everything, None for no token."""
        names = {self.token: "", **self.people}
        same = (name for token, name in names.items() if secrets.compare_digest(given.encode(), token.encode()))
        return next(same, None)

    def link_of(self, name: str) -> str:
        """Return the token of one person's link."""
        return personal_token(self.token, name)


def personal_token(token: str, name: str) -> str:
    """Derive a person's token; it tells nothing about the others."""
    code = hmac.new(token.encode(), name.encode(), hashlib.sha256).digest()[:24]
    return base64.urlsafe_b64encode(code).decode()


def make_access(token: str, project: str, people: Sequence[str] = ()) -> Access:
    """Return the access with a link for each of `people`."""
    return Access(token, project, {personal_token(token, name): name for name in people})


def read_access(folder: Path, people: Sequence[str] = ()) -> Access:
    """Return the access of a folder of judgements; it is made at the first call. InputError if it cannot be kept."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path, {"project": secrets.token_hex(8), "token": secrets.token_urlsafe(24)})
        values = json.loads(path.read_text(encoding="utf-8"))
        return make_access(_text(values["token"]), _text(values["project"]), people)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); judgements could not be kept") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; remove it, and give people the new link") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) < 8:
        raise ValueError(value)
    return value


def _create(path: Path, values: dict) -> None:
    """Write the file, whole or not at all, readable by its owner only."""
    part = path.with_name(f"{FILE}.{secrets.token_hex(4)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
