"""The web server of the labelling page: a few routes behind the guard of all local pages (``pages/server.py``).

Nothing but the page and the pictures of the tasks is served. A picture is named by its hash and sent as the pixels that
training sees, so that neither its address nor its bytes tell where it comes from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mapo.errors import MapoError, count
from mapo.files import prepare_out
from mapo.label.ballot import Ballot, Refused, clean_name
from mapo.label.blind import Material
from mapo.label.votes import VoteLog, standing
from mapo.pages.server import address_to_open, application, listen, run, token_for
from mapo.sample.folder import png_bytes

LOG = logging.getLogger(__name__)

PAGE = Path(__file__).parent
SCRIPTS = ("page.js", "pair.js", "grid.js")
FILES = {"page.html": "text/html", "page.css": "text/css", **dict.fromkeys(SCRIPTS, "text/javascript")}
PICTURES_KEPT = 64
BODY_LIMIT = 4096


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
        def keep(v: Mapping[str, str]) -> dict[str, Any]:
            picked = v.get("best", ""), v.get("worst", "")
            return ballot.vote(_annotator(v, fixed), v["pair"], v["vote"], *picked)

        return _answer(keep, await _body(request), fixed)

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
    return application(routes, host, token, cookie, "mapo label")


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
    token = token_for(host, token)
    if blur:
        material = replace(material, sensitive=True)
    if annotator is not None:
        clean_name(annotator)
    prepare_out(votes).parent.mkdir(parents=True, exist_ok=True)
    with listen(host, port) as listening, VoteLog(votes) as log:
        _check_same(log, material)
        port = listening.getsockname()[1]
        app = make_app(material, log, annotator, token, host, cookie=f"mapo-label-{port}")
        say(
            f"{count(len(material.tasks), material.noun)} to judge at "
            f"{address_to_open(host, port, token)}  (Ctrl-C ends)"
        )
        run(app, listening)
        say(f"{count(len(standing(log.lines)), 'vote')} in {votes}; the same command goes on.")


def _check_same(log: VoteLog, material: Material) -> None:
    """A file of votes on a comparison is of one comparison; that of a set may know pairs that have left the set."""
    if any(task.record for task in material.tasks.values()):
        others = {vote.pair for vote in log.lines} - material.tasks.keys()
        if others:
            raise MapoError(
                f"{log.path} holds votes on {count(len(others), 'pair')} of other pictures than these. Choose "
                "another --out."
            )
