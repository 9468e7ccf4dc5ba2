"""The routes: what is asked for, worked on in a thread on one view, and told with the run it comes from."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import batchproj
from batchproj.config import in_words
from batchproj.errors import (
    BatchprojError,
    CollectionError,
    ItemFault,
    RunMissing,
    TryLater,
    UsageError,
    WeightsError,
)
from batchproj.queries import Example, weight_of
from batchproj.serve import guards
from batchproj.serve.files import Wanted, media, refused
from batchproj.serve.live import View
from batchproj.serve.metrics import Measured
from batchproj.serve.requests import BODY, RUN_CHARS, Found, SearchRequest, read_search
from batchproj.serve.service import Service
from batchproj.serve.settings import LOOPBACK
from batchproj.serve.urls import fetch

PAGE = Path(__file__).parent / "page"
RUN_HEADER = "X-Batchproj-Run"

log = logging.getLogger("batchproj.serve")

Id = Annotated[str, InPath(min_length=1, max_length=200, description="of a hit, or its item")]
Run = Annotated[str | None, Query(min_length=1, max_length=RUN_CHARS, description="one that is kept, not the live one")]


class Problem(BaseModel):
    """Every error: one line that says what was wrong, what was expected and what to do."""

    detail: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 404, 405, 408, 409, 413, 415, 421, 422, 429, 503)
}


def create_app(service: Service) -> FastAPI:
    """The service as an ASGI app; it closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    settings = service.settings
    guarding = [
        Middleware(Measured, metrics=service.metrics),
        Middleware(guards.Hosts, hosts=(*LOOPBACK, *settings.hosts)),
        *([Middleware(guards.Token, token=settings.token)] if settings.token else []),
        Middleware(
            guards.Bodies,
            most_bytes=settings.body_bytes,
            all_bytes=settings.bodies_bytes,
            seconds=settings.body_s,
        ),
    ]
    app = _App(
        title="batchproj",
        version=batchproj.__version__,
        summary="Search of one collection, whatever its kinds of items.",
        docs_url=None,  # pages that load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
        middleware=guarding,
        responses=_PROBLEMS,
    )
    _add_faults(app)
    _add_search(app, service)
    _add_items(app, service)
    _add_overview(app, service)
    _add_page(app, service)
    return app


class _App(FastAPI):
    """Whose answers to what nobody expected, made outside all middleware, have the security headers as well."""

    def build_middleware_stack(self) -> ASGIApp:
        return guards.Answers(super().build_middleware_stack())


def _add_faults(app: FastAPI) -> None:
    """Errors on purpose, each with its status; of any other the client learns nothing."""

    @app.exception_handler(BatchprojError)
    async def told(_: Request, error: BatchprojError) -> Response:
        match error:
            case ItemFault():
                raised = refused(error)
                return JSONResponse({"detail": raised.detail}, raised.status_code)
            case TryLater():
                return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "5"})
            case RunMissing():
                return JSONResponse({"detail": str(error)}, 404)
            case CollectionError() | WeightsError():
                return JSONResponse({"detail": str(error)}, 409)
            case UsageError():
                return JSONResponse({"detail": str(error)}, 422)
            case _:
                log.error("%s", error)
                return JSONResponse({"detail": "the collection is damaged; see the service's log"}, 500)

    @app.exception_handler(AnyHTTPException)
    async def http(_: Request, error: AnyHTTPException) -> Response:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = [{**each, "loc": each["loc"][1:]} for each in error.errors()]  # without "path" or "query" before it
        return JSONResponse({"detail": in_words(told)}, 422)

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:
        log.error("%s %s: %s", request.method, request.url.path, type(error).__name__, exc_info=error)
        return JSONResponse({"detail": "internal error; see the service's log"}, 500)


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/search", response_model=Found, openapi_extra=BODY)
    async def search(request: Request) -> Response:
        """The nearest items to a text, a file, or an item, of any kind; best first."""
        asked, files = await read_search(request)

        def found(view: View) -> dict[str, Any]:
            hits = view.collection.answer(asked.search([*files, *_fetched(asked, service)]))
            return {"run": hits.run, "hits": [{**hit.as_dict(), "why": hit.why} for hit in hits]}

        return await _told(service, found, asked.run)


def _fetched(asked: SearchRequest, service: Service) -> list[Example]:
    """The file that is searched by its URL."""
    if asked.url is None:
        return []
    data, name = fetch(asked.url, service.settings.url_hosts, service.settings.body_bytes)
    return [Example(None, data=data, name=name, weight=weight_of(asked.given_weights, "url"))]


async def _told(service: Service, work: Callable[[View], Any], run: str | None = None) -> Response:
    """What work on a view gives, as JSON, with the run in the header."""

    def told() -> Response:
        view, found = service.live.ask(work, run)
        return JSONResponse(found, headers={RUN_HEADER: view.run})

    return await service.queries.run(told)


async def _read(service: Service, work: Callable[[View], Response], run: str | None) -> Response:
    """The answer that work on a view gives, with the run in the header."""

    def read() -> Response:
        view, answer = service.live.ask(work, run)
        answer.headers[RUN_HEADER] = view.run
        return answer

    return await service.reads.run(read)


def _add_items(app: FastAPI, service: Service) -> None:
    @app.get("/items/{id}")
    async def item(id: Id, run: Run = None) -> Response:
        """All that is known of an item: its columns, its metadata, and its segments."""
        return await _told(service, lambda view: _described(view, id), run)

    @app.head("/items/{id}/media", include_in_schema=False)
    @app.get("/items/{id}/media", response_class=Response, responses={206: {}, 304: {}, 416: {"model": Problem}})
    async def item_media(request: Request, id: Id, run: Run = None) -> Response:
        """The item's bytes, by ranges if asked so; pinned to the version that was embedded."""
        part, if_range, known = map(request.headers.get, ("range", "if-range", "if-none-match"))
        wanted = Wanted(part, if_range, known, is_head=request.method == "HEAD")
        return await _read(service, lambda view: _media(view, id, wanted), run)

    @app.head("/items/{id}/thumbnail", include_in_schema=False)
    @app.get("/items/{id}/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def item_thumbnail(request: Request, id: Id, run: Run = None) -> Response:
        """A small picture: of an image, of a video at the segment's start, of a sound its waveform; 404 for a text."""
        known = request.headers.get("if-none-match")
        return await _read(service, lambda view: service.thumbnail(view, _row(view, id), known), run)


def _row(view: View, id: str) -> dict[str, Any]:
    """The row of an id, the first one of an item; raises HTTPException 404."""
    return _rows(view, id)[0]


def _rows(view: View, id: str) -> list[dict[str, Any]]:
    try:
        return view.collection.rows_of(id)
    except UsageError as error:
        raise HTTPException(404, str(error)) from None


def _described(view: View, id: str) -> dict[str, Any]:
    row = _row(view, id)
    segments = view.collection.rows_of(row["item"])
    told = ("id", "item", "uri", "modality", "pair", "text", "start", "end", "segment", "content_id", "source_version")
    place = ("id", "segment", "start", "end", "text")
    return {
        "run": view.run,
        **{name: row[name] for name in told},
        "made_by": row["run"],
        "metadata": json.loads(row["metadata"] or "{}"),
        "segments": [{name: each[name] for name in place} for each in segments],
    }


def _media(view: View, id: str, wanted: Wanted) -> Response:
    row = _row(view, id)
    return media(view.items.find(row["item"], row["uri"]), row, wanted)


def _add_overview(app: FastAPI, service: Service) -> None:
    @app.get("/stats")
    async def stats(run: Run = None) -> Response:
        """How much there is of what, and which fields of metadata rows have."""
        return await _told(service, lambda view: {**view.overview.stats, "balance": view.overview.has_balance}, run)

    @app.get("/runs")
    async def runs() -> Response:
        """The ledger, newest first; those that are `kept` may be searched."""
        return await _told(service, lambda view: {"run": view.run, "runs": view.overview.runs()})

    @app.get("/map")
    async def map_(run: Run = None) -> Response:
        """A sample of rows in two dimensions."""
        return await _told(service, lambda view: {"run": view.run, "points": view.overview.map}, run)

    @app.get("/health")
    async def health() -> Response:
        """Whether searches are answered, and of which run."""
        live = service.live
        told = {"status": "ok", "run": live.view.run, "problem": live.problem}
        return JSONResponse(told, headers={RUN_HEADER: live.view.run})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, service: Service) -> None:
    token = service.settings.token

    @app.post("/session", status_code=204, response_class=Response)
    async def session(request: Request) -> Response:
        """For a browser: a cookie in the token's place. 204 also where no token is wanted."""
        answer = Response(status_code=204)
        if token is not None:
            if not guards.is_bearer(request.headers.get("authorization", ""), token.encode()):
                raise HTTPException(401, "no token; send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
            value = guards.session_of(token)
            secure = request.url.scheme == "https"
            answer.set_cookie(guards.COOKIE, value, httponly=True, samesite="strict", secure=secure)
        return answer

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
