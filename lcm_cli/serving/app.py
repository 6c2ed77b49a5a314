"""The routes of the server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lcm_cli.serving import embeddings, similar, translation, writing
from lcm_cli.serving.batching import Deadline, OutOfTimeError
from lcm_cli.serving.gate import Gate, GateMiddleware, report
from lcm_cli.serving.metrics import CONTENT_TYPE
from lcm_cli.serving.requests import Fields, RefusedError, read_fields
from lcm_cli.serving.service import Service, too_slow
from lcm_cli.serving.streams import Stream, event

Handler = Callable[[Service, Fields], Any]
Endpoint = Callable[[Request], Awaitable[Response]]

POSTED: dict[str, Handler] = {
    "/v1/embeddings": embeddings.embeddings,
    "/translate": translation.translate,
    "/detect": translation.detect,
    "/summarize": writing.summarize,
    "/decode": writing.decode,
    "/generate": writing.generate,
    "/similar": similar.similar,
}
KEY_IN_BODY = ("/translate", "/detect")  # where LibreTranslate's clients send it
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    "/favicon.ico": ("favicon.svg", "image/svg+xml"),
}


def build_app(gate: Gate) -> ASGIApp:
    """Return the ASGI application of a server."""
    posted = {path: _posted(gate, path, handler) for path, handler in POSTED.items()}
    shown = {path: _file(*file) for path, file in FILES.items()} | {
        "/v1/models": _models(gate),
        "/languages": _languages(gate),
        "/health": _health(gate),
        "/metrics": _metrics(gate),
    }
    routes: dict[str, tuple[tuple[str, ...], Endpoint]]
    routes = {path: (("POST",), endpoint) for path, endpoint in posted.items()}
    routes |= {path: (("GET", "HEAD"), endpoint) for path, endpoint in shown.items()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in routes:
            raise RefusedError(404, "there is no such path")
        methods, endpoint = routes[scope["path"]]
        if scope["method"] not in methods:
            allowed = ", ".join(methods)
            raise RefusedError(405, f"this path takes {allowed}", {"Allow": allowed})
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return GateMiddleware(app, gate, routes)


def _posted(gate: Gate, path: str, handler: Handler) -> Endpoint:
    """Return the endpoint of `handler`, which runs in a thread."""
    key_in_body = path in KEY_IN_BODY

    async def endpoint(request: Request) -> Response:
        if not key_in_body:
            gate.authorize(request)
        service = gate.ready
        limits = service.limits
        deadline = Deadline(limits.seconds)
        try:
            fields = await asyncio.wait_for(read_fields(request, limits.body), deadline.left)
        except TimeoutError as error:
            raise RefusedError(408, "the body did not arrive in time") from error
        if key_in_body:
            gate.authorize(request, fields.text("api_key", ""))
        found = await service.run(deadline, lambda: handler(service, fields))
        if isinstance(found, Stream):
            return _streamed(service, deadline, found)
        return JSONResponse(found)

    return endpoint


def _streamed(service: Service, deadline: Deadline, stream: Stream) -> Response:
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(item: bytes | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, item)

    work = service.submit(deadline, lambda: stream.run(lambda name, data: put(event(name, data))))
    work.add_done_callback(lambda _: put(None))

    async def body() -> AsyncIterator[bytes]:
        try:
            while item := await asyncio.wait_for(events.get(), deadline.left):
                yield item
            work.result()
        except (TimeoutError, OutOfTimeError):
            yield event("error", {"error": too_slow(service.limits).message})
        except Exception as error:
            yield event("error", {"error": f"internal error {report(error)}"})
        finally:
            deadline.cancel()  # also if the client has disconnected

    return StreamingResponse(body(), media_type="text/event-stream")


def _models(gate: Gate) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        gate.authorize(request)
        return JSONResponse(embeddings.models(gate.ready))

    return endpoint


def _languages(gate: Gate) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(gate.ready.languages)

    return endpoint


def _health(gate: Gate) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        status = "stopping" if gate.draining else "ok" if gate.service else "loading"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    return endpoint


def _metrics(gate: Gate) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        gate.authorize(request)
        return Response(gate.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return endpoint


def _file(name: str, kind: str) -> Endpoint:
    content = (resources.files("lcm_cli.serving") / "page" / name).read_bytes()
    headers = {"Content-Type": kind, "Cache-Control": "no-cache"}

    async def endpoint(request: Request) -> Response:
        return Response(content, headers=headers)

    return endpoint
