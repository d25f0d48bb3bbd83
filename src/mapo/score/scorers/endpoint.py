"""A server that speaks OpenAI's chat completions. The key comes from the environment and is kept and told nowhere."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from mapo.errors import MapoError

KEY = "MAPO_ENDPOINT_KEY"  # the environment variable that holds an endpoint's key
ASKED_AT_ONCE = 8
SECONDS_TO_WAIT = (1, 4, 16)  # between tries
SECONDS_TO_ANSWER = 120
MOST_BYTES = 4_000_000  # of an answer
REFUSALS = (301, 302, 303, 307, 308, 401, 403, 404)  # address or key is wrong, so nothing will be answered
T = TypeVar("T")


class NoAnswer(Exception):
    """An endpoint gave no answer that is one: it ``refused`` all, was ``silent`` or busy, or said ``nonsense``."""

    def __init__(self, kind: Literal["refused", "silent", "nonsense"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: the key is for the address that was given."""


class Endpoint:
    """A model behind an address such as http://localhost:8000/v1. ``option`` begins every message."""

    def __init__(self, option: str, url: str, model: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets or a port that are none
            good = False
        if not good:
            raise MapoError(f"{option}: endpoint:{url} has no address such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise MapoError(
                f"{option}: give the endpoint's address without name, password or query; the key belongs in {KEY}."
            )
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.option, self.model = option, model
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, messages: Sequence[dict[str, Any]], read: Callable[[str], T | None]) -> T:
        """What ``read`` makes of the answer. Asked again while nothing comes or ``read`` gives None; then NoAnswer."""
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()
        key = _key(self.option)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        for pause in (*SECONDS_TO_WAIT, None):
            try:
                found = self._once(body, headers, read)
            except NoAnswer as failure:
                reason = str(failure).replace(key, "(key)") if key else str(failure)
                if pause is None or failure.kind == "refused":
                    raise NoAnswer(failure.kind, " ".join(reason.split())[:200]) from None
                time.sleep(pause)
            else:
                return found
        raise AssertionError

    def _once(self, body: bytes, headers: dict[str, str], read: Callable[[str], T | None]) -> T:
        try:
            request = urllib.request.Request(self.url, body, headers)
            with self._opener.open(request, timeout=SECONDS_TO_ANSWER) as response:
                answer = str(json.loads(_body(response))["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            kind: Literal["refused", "silent", "nonsense"] = "refused" if error.code in REFUSALS else "nonsense"
            kind = "silent" if error.code in (408, 409, 429) or error.code >= 500 else kind
            said = ""
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = error.read(300).decode(errors="replace")
            raise NoAnswer(kind, f"{error.code} {said}") from None
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise NoAnswer("nonsense", f"no chat completion came back: {error!r}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer("silent", str(getattr(error, "reason", error)) or type(error).__name__) from None
        if (found := read(answer)) is None:
            raise NoAnswer("nonsense", f"it said {answer[:160]!r}")
        return found


def _body(response: http.client.HTTPResponse) -> bytes:
    """All of an answer; TimeoutError for one that trickles in too slowly, ValueError for one that does not end."""
    end, data = time.monotonic() + SECONDS_TO_ANSWER, bytearray()
    while part := response.read1(65_536):
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        if time.monotonic() > end:
            raise TimeoutError("the answer had not ended in time")
    return bytes(data)


def _key(option: str) -> str:
    key = os.environ.get(KEY, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise MapoError(f"{option}: {KEY} holds characters that no key has. Set it to the key alone.")
    return key
