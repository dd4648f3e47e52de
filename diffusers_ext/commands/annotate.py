"""Rate, flag and rank a folder's images on a local page.

FOLDER holds pictures and a table of prompts: candidates.jsonl with {"id", "prompt", "images"} a line, or metadata.jsonl with
{"file_name", "prompt"}. What people judge is appended to FOLDER/annotations/NAME.jsonl, and is on the disk before the page
says so; start again to continue. docs/annotation.md has the keys and the format.

    diffusers-ext annotate candidates/
    diffusers-ext annotate candidates/ --annotator ada --port 7862
    diffusers-ext annotate candidates/ --annotators ada bob cyd --overlap 2
    diffusers-ext annotate candidates/ --export rankings.jsonl
"""

import ipaddress
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from ..errors import InputError
from ..options import COUNT, PORT, SEED, option

_SERVED = {"export": False}


@dataclass
class Options:
    folder: str = option(".", "pictures and their table", positional=True, path="read")
    annotator: str | None = option(None, "who judges; default: the page asks", requires=_SERVED)
    annotators: list[str] | None = option(
        None, "a campaign of these people: each gets a link of their own", requires=_SERVED
    )
    overlap: int | None = option(
        None,
        "people of the campaign who judge each prompt; default: all of them",
        COUNT,
        requires={"annotators": True},
    )
    port: int = option(7861, "where the page is served; 0 takes any free port", PORT, requires=_SERVED)
    host: str = option(
        "127.0.0.1",
        "address to listen on; other than loopback, everybody on the network may try the token",
        requires=_SERVED,
    )
    allowed_host: list[str] | None = option(
        None, "names, with :PORT where it is not the usual one, under which a proxy serves the page", requires=_SERVED
    )
    seed: int = option(
        0, "of the orders in which people meet prompts and images, and of who judges what", SEED, requires=_SERVED
    )
    export: str | None = option(None, "write everybody's last judgements to this rankings file, and stop", path="file")


def main(options: Options) -> None:
    from ..preferences.annotate.items import read_items
    from ..preferences.annotate.session import Session

    people = _people(options)
    folder = Path(options.folder)
    if options.export:
        check_export(folder, Path(options.export))
    items = read_items(folder)
    session = Session(folder, items, options.seed, _shares(options, people, [item.id for item in items]))
    for note in session.notes():
        print(f"note: {note}", file=sys.stderr)
    if options.export:
        export(session, options.export)
    else:
        names = [options.annotator] if options.annotator is not None else people
        serve(session, options.host, options.port, names, options.allowed_host or ())


def _people(options: Options) -> list[str]:
    """Return the names of the campaign as files have them; InputError where two are the same."""
    from ..preferences.annotate.store import annotator_name

    if options.annotator is not None and options.annotators:
        raise InputError("give --annotator for one person, or --annotators for a campaign")
    if options.overlap is not None and not options.annotators:
        raise InputError("--overlap is for --annotators, without which nothing reads it: give both, or neither")
    if options.annotator is not None:
        options.annotator = annotator_name(options.annotator)
    people = [annotator_name(name) for name in options.annotators or ()]
    twice = next((name for name in people if people.count(name) > 1), None)
    if twice:
        raise InputError(
            f"--annotators: {twice} twice (case does not tell people apart); give each a name of their own"
        )
    return people


def _shares(options: Options, people: list[str], ids: list[str]) -> dict[str, set[str]] | None:
    from ..preferences.annotate.campaign import assign

    if not people:
        return None
    overlap = len(people) if options.overlap is None else options.overlap
    return assign(ids, people, overlap, options.seed)


def check_export(folder: Path, path: Path) -> None:
    """Raise InputError if the export would replace the judgements, or the table that they are of."""
    from ..options.outputs import check_output
    from ..preferences.annotate.items import TABLES
    from ..preferences.annotate.store import FOLDER

    table = next((index for index, name in enumerate(TABLES) if (folder / name).is_file()), len(TABLES))
    check_output("--export", path, [folder / name for name in TABLES[table : table + 1]])
    if path.resolve().is_relative_to((folder / FOLDER).resolve()):
        raise InputError(f"--export {path}: lies among the judgements of {folder / FOLDER}; name a file elsewhere")
    if path.resolve().parent == folder.resolve() and path.name in TABLES[:table]:
        raise InputError(f"--export {path}: would be taken for the table of {folder} from then on; give another name")


def export(session, path: str) -> None:
    """Write the prompts that somebody judged, with everybody's last judgement."""
    from ..preferences.rankings import write

    judged = [item for item in session.judged() if item.rankings]
    if not judged:
        raise InputError(f"{session.folder}: holds no judgements of these prompts yet")
    try:
        write(path, judged)
    except OSError as error:
        raise InputError(f"--export {path}: cannot be written ({error.strerror})") from None
    print(
        f"{path}: {len(judged)} of {len(session.items)} prompts, {sum(len(item.rankings) for item in judged)} rankings"
    )


def serve(
    session, host: str, port: int, annotators: str | Sequence[str] | None = None, allowed_hosts: Sequence[str] = ()
) -> None:
    """Serve the page until interrupted; print its address, which holds the token, and one for each of several people."""
    try:
        import uvicorn

        from ..preferences.annotate.access import read_access
        from ..preferences.annotate.server import make_app
    except ImportError as error:
        raise InputError(f"{error.name} is missing; pip install 'diffusers_ext[app]'") from None
    names = [annotators] if isinstance(annotators, str) else list(annotators or ())
    listening = _listen(host, port)
    hosts = ["localhost", "127.0.0.1", "[::1]"]
    if not _is_loopback(host):
        hosts = ["*"]
        print(
            f"warning: {host} is reached from other machines: whoever has the address below can judge", file=sys.stderr
        )
    access = read_access(session.folder, names if session.shares is not None else ())
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    _print_links(session, f"http://{shown}:{listening.getsockname()[1]}/", allowed_hosts, access, names)
    config = uvicorn.Config(make_app(session, access, hosts, allowed_hosts), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host} port {port} ({error}); give another --port or --host") from None


def _print_links(session, root: str, allowed_hosts: Sequence[str], access, names: list[str]) -> None:
    """Print the address that opens the page, here and behind a proxy, and in a campaign each person's own."""
    several = session.shares is not None
    one = {"annotator": names[0]} if names and not several else {}
    query = urlencode({"token": access.token, **one})
    print(f"{len(session.items)} prompts. Open {root}?{query}")
    roots = [f"https://{host}/" for host in allowed_hosts]
    for proxied in roots:
        print(f"behind the proxy: {proxied}?{query}")
    for name in names if several else ():
        done = session.progress(name)
        own = urlencode({"token": access.link_of(name), "annotator": name})
        print(f"  {name}, {done['judged']} of {done['total']}: {[*roots, root][0]}?{own}")
    print("Ctrl-C stops; what was saved is kept. The addresses stay the same.", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
