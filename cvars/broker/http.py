"""What every endpoint shares: bounded bodies, request ids, the two error bodies, threads.

Limits are enforced while reading, before anything is parsed (K36). The middleware turns every way out into an
answer with one of the two bodies; an exception that nobody expected is a 500 with a request id, and a log line.
"""

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from cvars.broker.audit import bounded
from cvars.broker.claims import Call
from cvars.broker.database import DatabaseDown
from cvars.broker.problems import Problem
from cvars.broker.record import Refused
from cvars.broker.secrets import MasterKeyDown, WrongMasterKey
from cvars.release.encoding import Malformed, strict_json

MAX_BODY: Final = 512 * 1024
MAX_HEADERS: Final = 32 * 1024
_KEYLESS: Final = (WrongMasterKey, MasterKeyDown)
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
_Model = TypeVar("_Model", bound=BaseModel)
_T = TypeVar("_T")
log = structlog.get_logger("cvars.broker")

_SECURITY: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'"),
]


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body, at most ``limit`` bytes, within the configured time. Raises ``Problem`` (413, 408, 499)."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise Problem(413, "BODY-SIZE")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(401 if request.url.path.startswith("/kbs/") else 400, "BODY-ENCODING", kind="SerdeError")
    data = bytearray()
    try:
        async with asyncio.timeout(request.app.state.body_timeout_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise Problem(413, "BODY-SIZE")
    except TimeoutError:
        raise Problem(408, "BODY-TIME") from None
    except ClientDisconnect:  # nobody hears the answer; the request counter does
        raise Problem(499, "BODY-GONE") from None
    return bytes(data)


def parse_document(raw: bytes, model: type[BaseModel], *, status: int) -> dict[str, Any]:
    """Strict JSON that ``model`` accepts: the document itself, in its own order. Raises ``Problem``."""
    document = _json(raw, status)
    _validated(document, model, status)
    return dict(document)


def parse_model(raw: bytes, model: type[_Model], *, status: int) -> _Model:
    """Strict JSON into ``model``. Raises ``Problem`` with ``status``: 401 under /kbs, else 400."""
    return _validated(_json(raw, status), model, status)


def _json(raw: bytes, status: int) -> Any:  # noqa: ANN401
    try:
        return strict_json(raw)
    except Malformed as error:
        raise Problem(status, "JSON", str(error), kind="SerdeError", reason="request.malformed") from None


def _validated(document: Any, model: type[_Model], status: int) -> _Model:  # noqa: ANN401
    try:
        return model.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        detail = f"{'.'.join(str(p) for p in first['loc'])[:100]}: {first['msg'][:100]}"
        raise Problem(status, "SCHEMA", detail, kind="SerdeError", reason="request.malformed") from None


async def in_thread(request: Request, action: Callable[[], _T]) -> _T:
    """Run blocking work beside the event loop; in the lab's process, right here."""
    if request.app.state.inline:
        return action()
    return await anyio.to_thread.run_sync(action)


def call_of(request: Request, action: str) -> Call:
    """The audit record of this request."""
    client = request.client.host if request.client else ""
    return Call(request_id=request.state.request_id, action=action, source=client)


def json_response(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401
    """A JSON answer."""
    return Response(_JSON.encode(document), status, headers=headers, media_type="application/json")


def answer_exceptions(app: FastAPI) -> None:
    """Every exception becomes one of the two bodies."""

    for kind in (Problem, Refused, DatabaseDown, *_KEYLESS, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer_exception)


async def answer_exception(request: Request, error: Exception) -> Response:
    """The answer that ``error`` stands for."""
    request_id = request.state.request_id
    problem = problem_of(error, path=request.url.path, request_id=request_id)
    body, content_type = problem.body(request.url.path, request_id)
    close = {"connection": "close"} if problem.status in (408, 413) else None
    return Response(body, problem.status, headers=close, media_type=content_type)


def problem_of(error: Exception, *, path: str, request_id: str) -> Problem:
    """What the client is told about ``error``; what was not expected goes to the log."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return Problem(error.status, error.rule, error.detail, reason=error.reason)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, "NO-SUCH-PATH", reason="request.path")
    if isinstance(error, RequestValidationError):
        status = 401 if path.startswith("/kbs/") else 400
        return Problem(status, "SCHEMA", kind="SerdeError", reason="request.malformed")
    if isinstance(error, DatabaseDown):
        log.error("database", request_id=request_id, error=str(error))
        return Problem(503, "DATABASE", reason="broker.database")
    if isinstance(error, _KEYLESS):
        log.error("master_key", request_id=request_id, error=error.message, reason=error.reason)
        return Problem(503, "MASTER-KEY", reason=error.reason)
    trace = "".join(traceback.format_exception(error))  # text only: frames may hold secrets
    log.error("internal", request_id=request_id, path=bounded(path), trace=trace)
    return Problem(500, "INTERNAL", reason="internal")


class Edge:
    """The outermost ASGI layer: request ids, header limits, security headers.

    ``direct``: hot handlers by (method, path), or by (method, prefix ending in /). They need nothing that routing
    works out, and are called without it; the framework's routes for them remain, as their documentation.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        random: Callable[[int], bytes],
        observe: Callable[[str, str, int], None],
        direct: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]],
    ) -> None:
        self._app = app
        self._random = random
        self._observe = observe
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._random(8).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def emit(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                extra = [(n, v) for n, v in _SECURITY if n not in present]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *extra]
                self._observe(scope["method"], _route(scope), message["status"])
            await send(message)

        if sum(len(n) + len(v) for n, v in scope["headers"]) > MAX_HEADERS or len(scope["raw_path"]) > 4096:
            body, content_type = Problem(431, "HEADER-SIZE").body(scope["path"], request_id)
            headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
            await emit({"type": "http.response.start", "status": 431, "headers": headers})
            await emit({"type": "http.response.body", "body": body})
            return
        handler = self._hot(scope)
        if handler is not None:
            scope["app"] = self._app
            request = Request(scope, receive)
            try:
                response = await handler(request)
            except Exception as error:
                response = await answer_exception(request, error)
            await response(scope, receive, emit)
            return
        try:
            await self._app(scope, receive, emit)
        except Exception:
            if not started:
                raise

    def _hot(self, scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
        method, path = scope["method"], scope["path"]
        found = self._direct.get((method, path))
        if found is not None:
            scope["direct"] = path
            return found
        for (wanted, prefix), handler in self._direct.items():
            if prefix.endswith("/") and wanted == method and path.startswith(prefix):
                scope["direct"] = prefix
                return handler
        return None


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return str(scope.get("direct") or getattr(route, "path", "other"))
