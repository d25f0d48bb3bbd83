"""What the local pages share: a guard before all routes, the port, and quitting.

A page is served to this machine alone unless another ``--host`` is asked for, which then needs a token.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
import socket
import string
from collections.abc import Sequence
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mapo.errors import MapoError

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
    comes once in the address (``?token=``) and is then kept in a cookie that no script can read. ``verb`` is the
    command that serves the page.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], any_address: bool, token: str | None, cookie: str, verb: str
    ) -> None:
        self.app, self.hosts, self.any_address, self.token = app, hosts, any_address, token
        self.cookie, self.verb = cookie, verb

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
            return f"This page is not served under that name. Open it by the address that `{self.verb}` printed."
        if method not in ("GET", "HEAD") and headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return "That is taken only from the page itself."
        if self.token:
            kept = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
            if not any(hmac.compare_digest(t.encode(), self.token.encode()) for t in (given, kept)):
                return f"This page needs its token. Open the address that `{self.verb}` printed, with its ?token=…"
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


def application(routes: Sequence[BaseRoute], host: str, token: str | None, cookie: str, verb: str) -> Starlette:
    """The routes behind the guard."""
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host.lower(), *_own_names(host)})
    guard = Middleware(Guard, hosts=hosts, any_address=not is_loopback(host), token=token, cookie=cookie, verb=verb)
    return Starlette(routes=routes, middleware=[guard])


def _own_names(host: str) -> set[str]:
    return set() if is_loopback(host) else {socket.gethostname().lower()}


def token_for(host: str, token: str | None) -> str | None:
    """The token that was asked for, a random one beyond this machine, else none; MapoError where it is not one."""
    if token is not None and (len(token) < 8 or not set(token) <= TOKEN_LETTERS):
        raise MapoError("--token must have 8 characters or more, of A-Z a-z 0-9 - . _ ~ only. Choose another.")
    return secrets.token_urlsafe(16) if token is None and not is_loopback(host) else token


def listen(host: str, port: int) -> socket.socket:
    """A socket at a port, 0: any that is free; MapoError where there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MapoError(f"Cannot listen on {host} port {port} ({why}). Choose another --port or --host.") from None


def address_to_open(host: str, port: int, token: str | None) -> str:
    """The address that a person opens."""
    address = _address(host)
    name = socket.gethostname() if address is not None and address.is_unspecified else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def run(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", ws="none", lifespan="off", server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
