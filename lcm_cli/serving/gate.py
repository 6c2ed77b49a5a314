"""The gate of the server: every request passes through it, and each receives an answer.

It checks where a request comes from, adds security headers, turns errors into answers, and writes
the log and the metrics. Neither bodies nor queries of requests are logged.
"""

import asyncio
import hmac
import os
import secrets
import time
import traceback
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lcm_cli import console
from lcm_cli.errors import LcmError
from lcm_cli.serving.batching import StoppedError
from lcm_cli.serving.metrics import Metrics
from lcm_cli.serving.requests import RefusedError
from lcm_cli.serving.service import RETRY_AFTER, Service

LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPENAI = "/v1/"  # paths whose errors have the form of OpenAI's
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """The state of a server that its requests share.

    `service` is None while the models are loading. `host` is the address that the server is bound
    to, `key` the API key that requests must present.
    """

    def __init__(self, host: str, key: str | None = None, metrics: Metrics | None = None) -> None:
        self.service: Service | None = None
        self.draining = False
        self.active = 0
        self.metrics = metrics or Metrics()
        self.metrics.active = lambda: self.active
        self._key = None if key is None else sha256(os.fsencode(key)).digest()
        # On loopback, any other host name is a DNS rebinding attack by a web page.
        self._hosts = {*LOOPBACK, host} if host in LOOPBACK else None

    @property
    def ready(self) -> Service:
        """The loaded service. Raises RefusedError (503) if it is loading or stopping."""
        if self.draining:
            raise unavailable("the server is stopping")
        if self.service is None:
            raise unavailable("the server is loading its models")
        return self.service

    def authorize(self, request: Request, given: str | None = None) -> None:
        """Refuse a request without the API key, in its header or `given` in its body (401)."""
        if self._key is None:
            return
        named = None if given is None else given.encode()
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            named = token.strip().encode("latin-1")  # the bytes that were sent
        # Digests have equal lengths, so comparing them takes equally long for every wrong key.
        if named is None or not hmac.compare_digest(sha256(named).digest(), self._key):
            headers = {"WWW-Authenticate": "Bearer"}
            raise RefusedError(401, "the API key is missing or wrong", headers)

    def check_origin(self, headers: Headers) -> None:
        """Refuse requests that other web sites make through a browser."""
        host = urlsplit(f"//{headers.get('host', '')}")
        if self._hosts is not None and host.hostname not in self._hosts:
            raise RefusedError(421, "this server does not answer for this host name")
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if foreign:
            raise RefusedError(403, "requests from other origins are not allowed")


class GateMiddleware:
    """The ASGI application around `app`. `paths` are the known ones, for the metrics."""

    def __init__(self, app: ASGIApp, gate: Gate, paths: Collection[str]) -> None:
        self._app, self._gate, self._paths = app, gate, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        gate, path, start = self._gate, scope["path"], time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if gate.draining:
                    headers["Connection"] = "close"
            await send(message)

        gate.active += 1
        try:
            await self._answer(scope, receive, sending)
        except Exception as error:
            if status == 0:
                await error_response(path, error)(scope, receive, sending)
            else:  # the answer has begun: only the log can report it
                report(error)
        except asyncio.CancelledError:
            status = status or 500  # as uvicorn answers
            raise
        finally:
            gate.active -= 1
            seconds = time.perf_counter() - start
            label = path if path in self._paths else "other"
            gate.metrics.requests.add(path=label, code=str(status))
            gate.metrics.seconds.observe(seconds, path=label)
            console.info(f"{scope['method']} {_shown(path)} {status} {1000 * seconds:.1f} ms")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._gate.check_origin(headers)
        if self._gate.draining and scope["path"] != "/health":
            raise unavailable("the server is stopping")
        await self._app(scope, receive, send)


def unavailable(message: str) -> RefusedError:
    """Return the refusal of a request that may be repeated later."""
    return RefusedError(503, message, {"Retry-After": RETRY_AFTER})


def error_response(path: str, error: Exception) -> Response:
    """Return the answer to a request that failed, in the form that clients of `path` expect."""
    if isinstance(error, RefusedError):
        return _error(path, error.status, error.message, error.headers)
    if isinstance(error, StoppedError):
        return error_response(path, unavailable("the server is stopping"))
    return _error(path, 500, f"internal error {report(error)}", {})


def report(error: Exception) -> str:
    """Log an unexpected error and return its id in the log.

    The message of a foreign error may quote the text of a request, and is left out.
    """
    number = secrets.token_hex(4)
    own = f": {error.message}" if isinstance(error, LcmError) else ""
    trace = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    console.show_error(LcmError(f"{number}: {type(error).__name__}{own}\n{trace}"))
    return number


def _error(path: str, status: int, message: str, headers: Mapping[str, str]) -> Response:
    content: dict[str, Any] = {"error": message}
    if path.startswith(OPENAI):
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = {401: "invalid_api_key", 404: "model_not_found"}.get(status)
        content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, status, dict(headers))


def _shown(path: str) -> str:
    return path.replace("\n", "\\n") if len(path) <= 100 else f"{path[:100]}…"
