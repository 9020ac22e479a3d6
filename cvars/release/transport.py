"""Ways for the client to reach a broker. The untrusted host carries every byte of them.

``Http`` is one function: method, path, headers, body in; `Response` out. It raises ``AnchorUnreachable`` when
no answer came, and nothing else.
"""

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cvars.errors import AnchorUnreachable, UsageMistake

MAX_RESPONSE: Final = 2 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Http: TypeAlias = Callable[[str, str, Mapping[str, str], bytes], Response]


def http_transport(base_url: str, *, timeout: float = 10.0, verify: str | bool = True) -> Http:
    """Speak to ``base_url`` with httpx2. No redirects, no proxies from the environment, bounded answers."""
    import httpx2  # noqa: PLC0415 - heavy; only here

    if not base_url.startswith(("http://", "https://")):
        raise UsageMistake(f"a broker's address starts with http:// or https://: {base_url}")
    context: Any = verify
    if isinstance(verify, str):
        import ssl  # noqa: PLC0415

        context = ssl.create_default_context(cafile=verify)
    client = httpx2.Client(
        base_url=base_url, timeout=timeout, follow_redirects=False, trust_env=False, verify=context
    )

    def send(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        try:
            with client.stream(method, path, headers=dict(headers), content=body) as answer:
                data = bytearray()
                for chunk in answer.iter_bytes():
                    data += chunk
                    if len(data) > MAX_RESPONSE:
                        raise AnchorUnreachable("the broker's answer is larger than 2 MiB", where=base_url)
                found = {k.lower(): v for k, v in answer.headers.items()}
                client.cookies.clear()  # cookies are the client's own business
                return Response(answer.status_code, found, bytes(data))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise AnchorUnreachable(
                f"no answer from the broker: {type(error).__name__}", where=base_url, hint="is it running?"
            ) from None

    return send


def asgi_transport(app: Any) -> Http:  # noqa: ANN401 - any ASGI application
    """Speak to an ASGI application in this process: the lab's broker."""

    def send(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        return asyncio.run(_call(app, method, path, headers, body))

    return send


async def _call(app: Any, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:  # noqa: ANN401
    raw_path, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw_path,
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        + [(b"host", b"broker"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    sent = False
    status, found, out = 500, {}, bytearray()

    async def receive() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def emit(message: MutableMapping[str, Any]) -> None:
        nonlocal status, found
        if message["type"] == "http.response.start":
            status = message["status"]
            found = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        elif message["type"] == "http.response.body":
            out.extend(message.get("body", b""))

    await app(scope, receive, emit)
    return Response(status, found, bytes(out))
