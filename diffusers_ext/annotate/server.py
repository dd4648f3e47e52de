"""The judgements over HTTP, for browsers on this machine.

Whoever has the token of this run may use it: the address that is printed carries it once, a cookie from then on. A
page of another site can neither read (no cookie is sent for it, and the Host must be ours, so no name can be rebound to
this address) nor write (the Origin must be ours, too). Texts and names from the data reach the page as JSON and are set
as text; the policy lets no script run but ours. Images go by number, never by path.

    GET  /                        the page               GET  /image/PLACE/NUMBER   an image
    GET  /api/progress            how far one is         GET  /api/item             one prompt, with its last judgement
    POST /api/judgement           answers once it is on the disk
    GET  /api/report              everybody's progress and agreement
"""

import json
import logging
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError
from .items import PICTURES
from .session import Session
from .store import Conflict, annotator_name

PAGE = Path(__file__).parent / "page"
LARGEST = 64 * 1024  # bytes of a judgement
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
log = logging.getLogger(__name__)


def make_app(session: Session, token: str, hosts: list[str]) -> Starlette:
    """Return the ASGI app. hosts: the names under which it may be asked for, ["*"] for any."""

    def progress(request: Request) -> Response:
        return JSONResponse(session.progress(_annotator(request)))

    def item(request: Request) -> Response:
        return JSONResponse(session.item(_annotator(request), _position(request)))

    def report(request: Request) -> Response:
        return JSONResponse(session.report())

    async def judgement(request: Request) -> Response:
        body = await _body(request)
        annotator = annotator_name(str(body.get("annotator", "")))
        saved = await run_in_threadpool(session.save, annotator, body)
        return JSONResponse({"saved": saved, **await run_in_threadpool(session.progress, annotator)})

    def image(request: Request) -> Response:
        place, number = request.path_params["place"], request.path_params["number"]
        if place >= len(session.items) or number >= len(session.items[place].images):
            return _error(404, "no such image")
        path = session.items[place].images[number]
        headers = {"cache-control": "private, max-age=3600, immutable"}  # the address holds the file's version
        return FileResponse(path, media_type=PICTURES[path.suffix.lower()], headers=headers)

    def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/progress", progress),
            Route("/api/item", item),
            Route("/api/report", report),
            Route("/api/judgement", judgement, methods=["POST"]),
            Route("/image/{place:int}/{number:int}", image),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(Guard, token=token),
        ],
        exception_handlers={InputError: _bad_input, Conflict: _conflict, OSError: _disk},
    )


class Guard:
    """Let pass who has the token, and no writing from other sites' pages; add the headers of HEADERS."""

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        cookie = f"annotate_{request.url.port or 80}"  # cookies do not tell ports apart
        given = request.query_params.get("token")
        entering = (
            request.url.path == "/"
            and given is not None
            and secrets.compare_digest(given.encode(), self.token.encode())
        )

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if entering:
                    headers.append("set-cookie", f"{cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        known = secrets.compare_digest(request.cookies.get(cookie, "").encode(), self.token.encode())
        if not (entering or known):
            refusal: ASGIApp = PlainTextResponse("Open the address that diffusers-ext annotate printed.\n", 403)
        elif request.method not in ("GET", "HEAD") and not _from_our_page(request.headers):
            refusal = _error(403, "only the page itself may write")
        else:
            refusal = self.app
        await refusal(scope, receive, answer)


def _from_our_page(headers: Headers) -> bool:
    return urlsplit(headers.get("origin", "")).netloc == headers.get("host")


def _annotator(request: Request) -> str:
    return annotator_name(request.query_params.get("annotator", ""))


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


def _error(status: int, message: str, **more) -> JSONResponse:
    return JSONResponse({"error": message, **more}, status)


async def _bad_input(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _conflict(request: Request, error: Exception) -> Response:
    return _error(409, "judged in another window since this page showed it", newer=error.newer)


async def _disk(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    return _error(500, str(error))
