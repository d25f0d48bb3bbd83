"""The server of the page that shows a run while it goes on: the page, its state as JSON, and its pictures."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mapo.errors import MapoError, foreseen
from mapo.pages.server import address_to_open, application, listen, run, token_for
from mapo.pages.thumbs import PIXEL_SIDE
from mapo.sample.folder import open_picture, png_bytes
from mapo.watch.state import Watched

LOG = logging.getLogger(__name__)

PAGE = Path(__file__).parent
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
SIDE = 640  # pixels, of what is sent of a larger picture
PICTURES_KEPT = 256


def make_app(
    watched: Watched, token: str | None = None, host: str = "127.0.0.1", cookie: str = "mapo-watch"
) -> Starlette:
    """The application. A picture is sent only where a manifest of the run names it."""

    @lru_cache(maxsize=PICTURES_KEPT)
    def bytes_of(step: int, file: str, sha256: str) -> tuple[bytes, str]:
        row = next(row for row in watched.rows(step) if row.file == file)
        return _small(open_picture(watched.run.pictures_at(step), row))

    def page(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2] or "page.html"
        return Response((PAGE / name).read_bytes(), media_type=FILES[name])

    def state(request: Request) -> Response:
        try:
            return JSONResponse(watched.state())
        except Exception as error:
            if (why := foreseen(error)) is None:
                raise
            return JSONResponse({"error": why}, 500)

    def picture(request: Request) -> Response:
        step, file = int(request.path_params["step"]), request.path_params["file"]
        row = next((row for row in watched.rows(step) if row.file == file), None)
        if row is None:
            return PlainTextResponse("There is no such picture.\n", 404)
        try:
            data, kind = bytes_of(step, file, row.sha256)
        except (MapoError, OSError) as error:
            LOG.info(f"mapo: {error}")
            return PlainTextResponse("That picture cannot be read; the terminal says why.\n", 500)
        return Response(data, media_type=kind)

    routes = [
        Route("/", page),
        *(Route(f"/{name}", page) for name in FILES if name != "page.html"),
        Route("/state", state),
        Route("/picture/{step:int}/{file}", picture),
    ]
    return application(routes, host, token, cookie, "mapo watch")


def _small(picture: Image.Image) -> tuple[bytes, str]:
    if max(picture.size) <= PIXEL_SIDE:
        return png_bytes(picture), "image/png"
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=84, method=1)
    return buffer.getvalue(), "image/webp"


def serve(
    folder: Path, host: str = "127.0.0.1", port: int = 8001, token: str | None = None, blur: bool = False,
    say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve the page of a run until Ctrl-C. ``port`` 0 takes a free one. Beyond this machine a token is asked for."""
    watched, token = Watched(folder, blur), token_for(host, token)
    with listen(host, port) as listening:
        port = listening.getsockname()[1]
        say(f"watching {folder} at {address_to_open(host, port, token)}  (Ctrl-C ends the page, not the training)")
        run(make_app(watched, token, host, cookie=f"mapo-watch-{port}"), listening)
