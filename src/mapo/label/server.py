"""The web server of the labelling page: a few routes, and a guard before all of them.

Nothing but the page and the pictures of the tasks is served. A picture is named by its hash and sent as the pixels that
training sees, so that neither its address nor its bytes tell where it comes from.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mapo.errors import MapoError, count
from mapo.files import prepare_out
from mapo.label.ballot import Ballot, Refused, clean_name
from mapo.label.blind import Material
from mapo.label.votes import VoteLog
from mapo.sample.folder import png_bytes

LOG = logging.getLogger(__name__)

PAGE = Path(__file__).parent
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
PICTURES_KEPT = 64
BODY_LIMIT = 4096
TOKEN_LETTERS = frozenset(string.ascii_letters + string.digits + "-._~")
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets a request through when its Host, its Origin and its token are right, and sets the headers of every answer.

    ``hosts`` are names that the page may be opened by; with None any address in digits is right as well. The token
    comes once in the address (``?token=``) and is then kept in a cookie that no script can read.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], any_address: bool, token: str | None, cookie: str) -> None:
        self.app, self.hosts, self.any_address, self.token, self.cookie = app, hosts, any_address, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        why = self._why_not(scope["method"], headers, given)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    answer[name] = value
                if self.token and given and why is None:
                    answer.append("Set-Cookie", f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        app = self.app if why is None else PlainTextResponse(why + "\n", 403)
        await app(scope, receive, send_safely)

    def _why_not(self, method: str, headers: Headers, given: str) -> str | None:
        host = headers.get("host", "")
        if not self._known(host):  # a foreign name that was made to point here (DNS rebinding)
            return "This page is not served under that name. Open it by the address that `mapo label` printed."
        if method not in ("GET", "HEAD") and headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return "Votes are taken only from the page itself."
        if self.token:
            kept = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
            if not any(hmac.compare_digest(t.encode(), self.token.encode()) for t in (given, kept)):
                return "This page needs its token. Open the address that `mapo label` printed, with its ?token=…"
        return None

    def _known(self, host: str) -> bool:
        name = _without_port(host).lower()
        return name in self.hosts or (self.any_address and _address(name) is not None)


def _without_port(host: str) -> str:
    """``[::1]:8000`` → ``::1``, ``localhost:8000`` → ``localhost``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def make_app(
    material: Material, log: VoteLog, annotator: str | None = None, token: str | None = None,
    host: str = "127.0.0.1", cookie: str = "mapo-label",
) -> Starlette:  # fmt: skip
    """The application. With an ``annotator`` everybody votes under that name, without one the page asks for it."""
    ballot = Ballot(material, log)
    names = material.picture_names()
    fixed = clean_name(annotator) if annotator is not None else None

    @lru_cache(maxsize=PICTURES_KEPT)
    def picture_bytes(name: str) -> bytes:
        return png_bytes(material.open_picture(name))

    def page(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2] or "page.html"
        return Response((PAGE / name).read_bytes(), media_type=FILES[name])

    def picture(request: Request) -> Response:  # in a thread of its own, while votes go on
        name = request.path_params["name"]
        if name not in names:
            return PlainTextResponse("There is no such picture.\n", 404)
        try:
            return Response(picture_bytes(name), media_type="image/png")
        except (MapoError, OSError) as error:
            LOG.info(f"mapo: {error}")  # to the terminal only: a path tells which picture this is
            return JSONResponse({"error": "A picture cannot be read; the terminal says which."}, 500)

    async def state(request: Request) -> Response:
        values = dict(request.query_params)
        if not fixed and not values.get("annotator"):
            return JSONResponse({"ask": True})
        return _answer(lambda v: ballot.state(_annotator(v, fixed)), values, fixed)

    async def vote(request: Request) -> Response:
        return _answer(lambda v: ballot.vote(_annotator(v, fixed), v["pair"], v["vote"]), await _body(request), fixed)

    async def undo(request: Request) -> Response:
        return _answer(lambda v: ballot.undo(_annotator(v, fixed), v["pair"]), await _body(request), fixed)

    routes = [
        Route("/", page),
        *(Route(f"/{name}", page) for name in FILES if name != "page.html"),
        Route("/picture/{name}", picture),
        Route("/state", state),
        Route("/vote", vote, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
    ]
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host.lower(), *_own_names(host)})
    guard = Middleware(Guard, hosts=hosts, any_address=not is_loopback(host), token=token, cookie=cookie)
    return Starlette(routes=routes, middleware=[guard])


def _own_names(host: str) -> set[str]:
    return set() if is_loopback(host) else {socket.gethostname().lower()}


def _annotator(values: Mapping[str, str], fixed: str | None) -> str:
    return fixed or clean_name(values.get("annotator", ""))


async def _body(request: Request) -> Mapping[str, str] | None:
    """The JSON object of a POST, all its values text; None when it is anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return None
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_LIMIT:
            return None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    fine = isinstance(values, dict) and all(isinstance(v, str) for v in values.values())
    return values if fine else None


def _answer(
    what: Callable[[Mapping[str, str]], dict[str, Any]], values: Mapping[str, str] | None, fixed: str | None
) -> Response:
    """The state as JSON, or why there is none: 400 what the page never sends, 409 a vote on another pair, 507 disk."""
    if values is None:
        return JSONResponse({"error": "That is not a vote of this page."}, 400)
    try:
        return JSONResponse({**what(values), "fixed": fixed is not None})
    except KeyError as error:
        return JSONResponse({"error": f"That is not a vote of this page: it has no {error.args[0]}."}, 400)
    except MapoError as error:
        return JSONResponse({"error": str(error)}, 400)
    except Refused as error:
        return JSONResponse({"error": str(error)}, 409)
    except OSError as error:
        return JSONResponse(
            {"error": f"The vote could not be kept ({error.strerror}). Make room, then vote again."}, 507
        )


def serve(
    material: Material, votes: Path, annotator: str | None = None, host: str = "127.0.0.1", port: int = 8000,
    token: str | None = None, blur: bool = False, say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve the page until Ctrl-C. ``port`` 0 takes a free one. Beyond this machine a token is always asked for."""
    if token is not None and (len(token) < 8 or not set(token) <= TOKEN_LETTERS):
        raise MapoError("--token must have 8 characters or more, of A-Z a-z 0-9 - . _ ~ only. Choose another.")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(16)
    if blur:
        material = replace(material, sensitive=True)
    if annotator is not None:
        clean_name(annotator)
    prepare_out(votes)
    with VoteLog(votes) as log, _listen(host, port) as listening:
        _check_same(log, material)
        port = listening.getsockname()[1]
        app = make_app(material, log, annotator, token, host, cookie=f"mapo-label-{port}")
        say(f"{count(len(material.tasks), 'pair')} to judge at {_address_to_open(host, port, token)}  (Ctrl-C ends)")
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", ws="none", lifespan="off", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        say(f"{count(len(log.lines), 'line')} in {votes}; the same command goes on.")


def _check_same(log: VoteLog, material: Material) -> None:
    """A file of votes on a comparison is of one comparison; that of a set may know pairs that have left the set."""
    if any(task.record for task in material.tasks.values()):
        others = {vote.pair for vote in log.lines} - material.tasks.keys()
        if others:
            raise MapoError(
                f"{log.path} holds votes on {count(len(others), 'pair')} of other pictures than these. Choose "
                "another --out."
            )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MapoError(f"Cannot listen on {host} port {port} ({why}). Choose another --port or --host.") from None


def _address_to_open(host: str, port: int, token: str | None) -> str:
    address = _address(host)
    name = socket.gethostname() if address is not None and address.is_unspecified else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
