"""Rate, flag and rank a folder's images on a local page.

FOLDER holds pictures and a table of prompts: candidates.jsonl with {"id", "prompt", "images"} a line, or metadata.jsonl with
{"file_name", "prompt"}. What people judge is appended to FOLDER/annotations/NAME.jsonl, and is on the disk before the page
says so; start again to go on. docs/annotation.md has the keys and the format.

    diffusers-ext annotate candidates/
    diffusers-ext annotate candidates/ --annotator ada --port 7862
    diffusers-ext annotate candidates/ --export rankings.jsonl
"""

import ipaddress
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from ..errors import InputError
from ..options import PORT, SEED, option

_SERVED = {"export": False}


@dataclass
class Options:
    folder: str = option(".", "pictures and their table", positional=True, path="read")
    annotator: str | None = option(None, "who judges; default: the page asks", requires=_SERVED)
    port: int = option(7861, "where the page is served; 0 takes any free port", PORT, requires=_SERVED)
    host: str = option(
        "127.0.0.1",
        "address to listen on; other than loopback, everybody on the network may try the token",
        requires=_SERVED,
    )
    seed: int = option(0, "of the orders in which people meet prompts and images", SEED, requires=_SERVED)
    export: str | None = option(None, "write everybody's last judgements to this rankings file, and stop", path="file")


def main(options: Options) -> None:
    from ..annotate.items import read_items
    from ..annotate.session import Session
    from ..annotate.store import annotator_name

    name = annotator_name(options.annotator) if options.annotator is not None else None
    folder = Path(options.folder)
    session = Session(folder, read_items(folder), options.seed)
    if options.export:
        export(session, options.export)
    else:
        serve(session, options.host, options.port, name)


def export(session, path: str) -> None:
    """Write the prompts that somebody judged, with everybody's last judgement."""
    from ..data.rankings import write

    judged = [item for item in session.judged() if item.rankings]
    if not judged:
        raise InputError(f"{session.folder}: holds no judgements of these prompts yet")
    write(path, judged)
    print(
        f"{path}: {len(judged)} of {len(session.items)} prompts, {sum(len(item.rankings) for item in judged)} rankings"
    )


def serve(session, host: str, port: int, annotator: str | None) -> None:
    """Serve the page until interrupted; print its address, which holds the token."""
    try:
        import uvicorn

        from ..annotate.server import make_app
    except ImportError as error:
        raise InputError(f"{error.name} is missing; pip install 'diffusers_ext[app]'") from None
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host} port {port} ({error}); give another --port or --host") from None
    hosts = ["localhost", "127.0.0.1", "[::1]"]
    if not _is_loopback(host):
        hosts = ["*"]
        print(
            f"warning: {host} is reached from other machines: whoever has the address below can judge", file=sys.stderr
        )
    token, query = secrets.token_urlsafe(24), {"annotator": annotator} if annotator else {}
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/?{urlencode({'token': token, **query})}"
    print(f"{len(session.items)} prompts. Open {address}\nCtrl-C stops; what was saved is kept.", flush=True)
    config = uvicorn.Config(make_app(session, token, hosts), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
