"""The judgements over HTTP, for browsers on this machine.

Whoever has the folder's token may use it, or one annotator's, under that name alone: the address that is printed carries
it once, a cookie from then on. A page of another site can neither read (no cookie is sent for it, and the Host must be
ours, so no name can be rebound to this address) nor write (the Origin must be ours, too). Texts and names from the data
reach the page as JSON and are set as text; the policy lets no script run but ours. Images go by number, never by path, and
no answer holds a path of this machine.

    GET  /                        the page               GET  /image/PLACE/NUMBER   an image
    GET  /api/progress            how far one is         GET  /api/item             one prompt, with its last judgement
    POST /api/judgement, /api/skip                       answer once it is on the disk
    GET  /api/report              everybody's progress and agreement
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import InputError
from .access import Access, make_access
from .items import media_type
from .session import Session
from .store import Conflict, Damaged, annotator_name

PAGE = Path(__file__).parent / "page"
LARGEST = 256 * 1024  # bytes of a judgement
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
log = logging.getLogger(__name__)


def make_app(
    session: Session, token: str | Access, hosts: Sequence[str], allowed_hosts: Sequence[str] = ()
) -> Starlette:
    """Return the ASGI app.

    token: what opens the page, or that with the links of annotators. hosts: the names under which it may be asked for,
    ["*"] for any. allowed_hosts: names, with a port where it is not the usual one, of pages that a proxy serves from here.
    """
    access = token if isinstance(token, Access) else make_access(token, "")

    def progress(request: Request) -> Response:
        return JSONResponse(_progress(session, _annotator(request)))

    def item(request: Request) -> Response:
        name = _annotator(request)
        return JSONResponse({**session.item(name, _position(request)), "project": access.project})

    def report(request: Request) -> Response:
        return JSONResponse(session.report())

    def image(request: Request) -> Response:
        place, number = request.path_params["place"], request.path_params["number"]
        if place >= len(session.items) or number >= len(session.items[place].images):
            return _error(404, "no such image")
        return _picture(session.items[place].images[number])

    def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/progress", progress),
            Route("/api/item", item),
            Route("/api/report", report),
            Route("/api/judgement", _writing(session, session.save), methods=["POST"]),
            Route("/api/skip", _writing(session, session.skip), methods=["POST"]),
            Route("/image/{place:int}/{number:int}", image),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(Guard, access=access, hosts=hosts, allowed_hosts=allowed_hosts)],
        exception_handlers={
            Damaged: _damaged,
            InputError: _bad_input,
            RecursionError: _too_deep,
            Conflict: _conflict,
            OSError: _disk,
        },
    )


class Guard:
    """Let pass who has a token, and no writing from other sites' pages; add the headers of HEADERS."""

    def __init__(self, app: ASGIApp, access: Access, hosts: Sequence[str], allowed_hosts: Sequence[str]):
        self.app, self.access, self.pages = app, access, set(allowed_hosts)
        self.any_host = "*" in hosts
        self.hosts = {_split(f"//{host}").hostname for host in (*hosts, *allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        cookie = f"annotate_{(scope.get('server') or ('', 80))[1]}"  # cookies do not tell ports apart
        given = request.query_params.get("token") if request.url.path == "/" else None
        entering = given is not None and self.access.holder(given) is not None

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if entering:
                    headers.append("set-cookie", f"{cookie}={given}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        holder = self.access.holder(given if entering and given else request.cookies.get(cookie, ""))
        scope["holder"] = holder
        await (self._refusal(request, holder) or self.app)(scope, receive, answer)

    def _refusal(self, request: Request, holder: str | None) -> ASGIApp | None:
        host = request.headers.get("host", "")
        if not self.any_host and _split(f"//{host}").hostname not in self.hosts:
            told = f"This server does not answer to {host[:80]!r}. Behind a proxy, start it with --allowed_host NAME.\n"
            return PlainTextResponse(told, 400)
        if holder is None:
            return PlainTextResponse("Open the address that diffusers-ext annotate printed.\n", 403)
        if request.method not in ("GET", "HEAD") and not self._is_our_page(request.headers):
            origin = _split(request.headers.get("origin", "")).netloc[:80]
            told = (
                f"only the page itself may write, and it was opened at {origin!r}; start with --allowed_host {origin}"
            )
            return _error(403, told)
        return None

    def _is_our_page(self, headers: Headers) -> bool:
        """Say whether a request comes from the page, which a proxy may have served under another name or port.

        A browser says so itself (Sec-Fetch-Site, which no script can set); that is believed for the names of this server
        only, since a name that was rebound to this address is the same origin to a browser.
        """
        origin = _split(headers.get("origin", ""))
        if origin.netloc and (origin.netloc == headers.get("host") or origin.netloc in self.pages):
            return True
        ours = self.any_host or origin.hostname in self.hosts
        return bool(origin.netloc) and ours and headers.get("sec-fetch-site") == "same-origin"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _progress(session: Session, annotator: str) -> dict:
    return {**session.progress(annotator), "skipped": session.skipped(annotator)}


def _writing(session: Session, write: Callable[[str, dict], dict]) -> Callable:
    """Return the endpoint that hands a body to `write` and answers with what was saved and the progress."""

    async def endpoint(request: Request) -> Response:
        body = await _body(request)
        annotator = _own_name(request, str(body.get("annotator", "")))
        saved = await run_in_threadpool(write, annotator, body)
        return JSONResponse({"saved": saved, **await run_in_threadpool(_progress, session, annotator)})

    return endpoint


def _picture(path: Path) -> Response:
    """Return an image, read at once: a file that vanishes meanwhile is an answer, too."""
    media = media_type(path)
    try:
        data = path.read_bytes() if media else b""
    except OSError as error:
        log.error("%s", error)
        media = None
    if media is None:
        return _error(404, "this picture is missing")
    headers = {"cache-control": "private, max-age=3600, immutable"}  # the address holds the picture's digest
    return Response(data, media_type=media, headers=headers)


def _annotator(request: Request) -> str:
    return _own_name(request, request.query_params.get("annotator", ""))


def _own_name(request: Request, text: str) -> str:
    """Return a name that this request may use: any with the folder's token, its own with a personal link."""
    name, holder = annotator_name(text), request.scope["holder"]
    if holder and holder != name:
        raise InputError(f"this link is {holder}'s; {name} needs a link of their own")
    return name


def _position(request: Request) -> int:
    text = request.query_params.get("position", "")
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"position {text[:20]!r}: expected a whole number")
    return int(text)


async def _body(request: Request) -> dict:
    """Read a JSON object of at most LARGEST bytes."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise InputError("expected application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise InputError(f"a judgement has at most {LARGEST} bytes")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})") from None
    if not isinstance(body, dict):
        raise InputError("expected a JSON object")
    return body


def _error(status: int, message: str, **more: dict) -> JSONResponse:
    return JSONResponse({"error": message, **more}, status)


async def _bad_input(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _too_deep(request: Request, error: Exception) -> Response:
    return _error(400, "not a judgement: nested too deeply")


async def _conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, Conflict)
    return _error(409, "judged in another window since this page showed it", newer=error.newer)


async def _damaged(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    return _error(
        500, "the file of these judgements is damaged; tell whoever runs the server, whose terminal says where"
    )


async def _disk(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    assert isinstance(error, OSError)
    return _error(500, f"the disk did not take it ({error.strerror or type(error).__name__}); try again")
