"""Trustee's KBS protocol 0.4.0: auth, attest, resource (key-release 1)."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Final
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request, Response

from cvars.broker.http import call_of, in_thread, json_response, parse_document, parse_model, read_body
from cvars.broker.messages import AttestReply, AttestRequest, AuthReply, AuthRequest, Jwe
from cvars.broker.openapi import documented
from cvars.broker.policy.model import is_part
from cvars.broker.problems import Problem
from cvars.broker.service import Broker
from cvars.release.answers import COOKIE

router: Final = APIRouter(prefix="/kbs/v0", tags=["kbs"])
_AUTH_BODY: Final = 16 * 1024


@router.post("/auth", **documented(body=AuthRequest, reply=AuthReply, errors=(401, 408, 413, 429), kbs=True))
async def auth(request: Request) -> Response:
    """Ask for a challenge."""
    broker: Broker = request.app.state.broker
    call = call_of(request, "auth")
    body = parse_model(await read_body(request, _AUTH_BODY), AuthRequest, status=401)
    cookie, nonce, expires = await in_thread(
        request, lambda: broker.auth(call, version=body.version, tee=body.tee)
    )
    return json_response({"nonce": nonce, "extra-params": ""}, headers=_cookie(request, cookie, expires))


@router.post("/attest", **documented(body=AttestRequest, reply=AttestReply, errors=(401, 408, 413), kbs=True))
async def attest(request: Request) -> Response:
    """Show evidence bound to the challenge and to a fresh key; receive a token."""
    broker: Broker = request.app.state.broker
    call = call_of(request, "attest")
    cookie = cookie_of(request)
    try:
        raw = await read_body(request)
        document = parse_document(raw, AttestRequest, status=401)
    except Problem:
        broker.abandon(cookie)
        raise
    call.evidence = hashlib.sha256(raw).hexdigest()
    token, session = await in_thread(request, lambda: broker.attest(call, cookie, document))
    assert cookie is not None
    return json_response({"token": token}, headers=_cookie(request, cookie, session.expires))


@router.get("/resource/{repository}/{type}/{tag}", **documented(reply=Jwe, errors=(401, 403, 404), kbs=True))
async def resource(request: Request, repository: str, type: str, tag: str) -> Response:  # noqa: A002, ARG001
    """Receive a secret, encrypted to the attested key."""
    return await get_resource(request)


async def get_resource(request: Request) -> Response:
    """The work of `resource`: the path is read as it was sent."""
    broker: Broker = request.app.state.broker
    call = call_of(request, "resource")
    path = resource_path(request, "/kbs/v0/resource/")
    cookie, bearer = cookie_of(request), bearer_of(request)

    def work() -> Response:
        session = broker.session_for(call, cookie=cookie, bearer=bearer)
        released = broker.release(call, session, path)
        return json_response(released.jwe, headers={"X-CVars-Release": released.statement})

    return await in_thread(request, work)


def resource_path(request: Request, prefix: str) -> str:
    """The three checked parts, decoded once (K39).

    Raises ``Problem``: 404 for another number of parts, else 401.
    """
    raw: bytes = request.scope["raw_path"]
    parts = raw.partition(b"?")[0][len(prefix) :].split(b"/")
    if len(parts) != 3:
        raise Problem(404, "PATH-PARTS", kind="InvalidRequestPath")
    out = []
    for part in parts:
        text = unquote_to_bytes(part).decode("latin-1")
        if not is_part(text):
            raise Problem(401, "PATH-PART", kind="AttestationError")
        out.append(text)
    return "/".join(out)


def cookie_of(request: Request) -> str | None:
    """The session cookie, when there is exactly one."""
    found = [
        value.strip()
        for header in request.headers.getlist("cookie")
        for name, _, value in (pair.partition("=") for pair in header.split(";"))
        if name.strip() == COOKIE
    ]
    return found[0] if len(found) == 1 and len(found[0]) == 32 else None


def bearer_of(request: Request) -> str | None:
    """The bearer token, if any."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def _cookie(request: Request, cookie: str, expires: float) -> dict[str, str]:
    when = formatdate(expires, usegmt=True)
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    return {"set-cookie": f"{COOKIE}={cookie}; Expires={when}; Path=/; HttpOnly; SameSite=Strict{secure}"}


#: what a fleet that boots asks for, without the framework's routing
HOT: Final[Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]]] = {
    ("POST", "/kbs/v0/auth"): auth,
    ("POST", "/kbs/v0/attest"): attest,
    ("GET", "/kbs/v0/resource/"): get_resource,
}
