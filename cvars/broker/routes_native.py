"""Our own endpoints for guests: signed release and the freshness anchor (key-release 4, 5.4)."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from cvars.broker import record as rules
from cvars.broker.http import MAX_BODY, call_of, in_thread, json_response, parse_model, read_body
from cvars.broker.messages import (
    AcquireReply,
    AcquireRequest,
    AdvanceRequest,
    Body,
    IdentityReply,
    Point,
    ReceiptReply,
    ReleaseReply,
    ReleaseRequest,
    RenewRequest,
    SealRequest,
)
from cvars.broker.openapi import documented
from cvars.broker.problems import Problem
from cvars.broker.record import Change, Record
from cvars.broker.routes_kbs import bearer_of, cookie_of
from cvars.broker.service import Broker
from cvars.release import channel
from cvars.release.encoding import Malformed, b64, b64_decode
from cvars.store.anchor import AnchorPoint

router: Final = APIRouter(prefix="/cvars/v1", tags=["guests"])
VmId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
_SMALL: Final = 16 * 1024
_CHANNEL: Final = (400, 401, 403, 404, 408, 412, 413)


@router.get("/identity", **documented(reply=IdentityReply, errors=(), kbs=False))
async def identity(request: Request) -> Response:
    """The public keys of this broker."""
    broker: Broker = request.app.state.broker
    return json_response(
        {
            "broker_id": broker.broker_id,
            "keys": [b64(broker.signer.spki)],
            "simulation": broker.verifier.simulation,
        }
    )


@router.post(
    "/release",
    **documented(body=ReleaseRequest, reply=ReleaseReply, errors=(400, 401, 403, 404, 408, 413), kbs=False),
)
async def release(request: Request) -> Response:
    """A secret with a statement that the pinned broker key signed over its ciphertext."""
    broker: Broker = request.app.state.broker
    call = call_of(request, "release")
    body = parse_model(await read_body(request, _SMALL), ReleaseRequest, status=400)
    cookie, bearer = cookie_of(request), bearer_of(request)

    def work() -> Response:
        session = broker.session_for(call, cookie=cookie, bearer=bearer)
        done = broker.release(call, session, body.resource, nonce=body.nonce, provision=body.provision)
        return json_response({"jwe": done.jwe, "statement": done.statement})

    return await in_thread(request, work)


@router.post(
    "/anchor/{vm}/acquire",
    **documented(
        body=AcquireRequest,
        reply=AcquireReply,
        errors=(400, 401, 403, 404, 408, 409, 410, 412, 413, 423),
        kbs=False,
    ),
)
async def acquire(request: Request, vm: VmId) -> Response:
    """Open a session at the anchor: a new epoch, which fences all older ones."""
    broker: Broker = request.app.state.broker
    call = call_of(request, "acquire")
    body = parse_model(await read_body(request, _SMALL), AcquireRequest, status=400)
    cookie, bearer = cookie_of(request), bearer_of(request)

    def work() -> Response:
        session = broker.session_for(call, cookie=cookie, bearer=bearer)
        return json_response(
            broker.acquire(call, session, vm, nonce=body.nonce, takeover=body.takeover, resume=body.resume)
        )

    return await in_thread(request, work)


@router.post(
    "/anchor/{vm}/advance", **documented(body=AdvanceRequest, reply=ReceiptReply, errors=_CHANNEL, kbs=False)
)
async def advance(request: Request, vm: VmId) -> Response:
    """Move the committed point by one compare-and-swap; renews the lease."""

    def change(body: AdvanceRequest, now: float) -> Callable[[Record, str], Change]:
        try:
            escrow = b64_decode(body.escrow)
        except Malformed:
            raise Problem(400, "SCHEMA", "escrow is not base64", reason="request.malformed") from None
        return lambda record, holder: rules.advance(
            record,
            epoch=body.epoch,
            holder=holder,
            start=_point(body.start),
            to=_point(body.to),
            base=_point(body.base),
            key_version=body.key_version,
            escrow=escrow,
            now=now,
        )

    return await _channel(request, vm, "advance", AdvanceRequest, change)


@router.post("/anchor/{vm}/renew", **documented(body=RenewRequest, reply=ReceiptReply, errors=_CHANNEL, kbs=False))
async def renew(request: Request, vm: VmId) -> Response:
    """Renew the lease."""

    def change(body: RenewRequest, now: float) -> Callable[[Record, str], Change]:
        return lambda record, holder: rules.renew(record, epoch=body.epoch, holder=holder, now=now)

    return await _channel(request, vm, "renew", RenewRequest, change)


@router.post("/anchor/{vm}/seal", **documented(body=SealRequest, reply=ReceiptReply, errors=_CHANNEL, kbs=False))
async def seal(request: Request, vm: VmId) -> Response:
    """Give the lease back."""

    def change(body: SealRequest, now: float) -> Callable[[Record, str], Change]:  # noqa: ARG001
        point = AnchorPoint(body.counter, bytes.fromhex(body.root))
        return lambda record, holder: rules.seal(record, epoch=body.epoch, holder=holder, point=point)

    return await _channel(request, vm, "seal", SealRequest, change)


async def _channel(
    request: Request,
    vm: str,
    action: str,
    model: type[Any],
    change: Callable[[Any, float], Callable[[Record, str], Change]],
) -> Response:
    """One call with proof of possession: session, then MAC, then body, then the record."""
    broker: Broker = request.app.state.broker
    call = call_of(request, action)
    raw = await read_body(request, MAX_BODY)
    cookie = cookie_of(request)
    given = {name: request.headers.get(name, "") for name in (channel.SEQUENCE, channel.MAC)}
    path = request.scope["raw_path"].partition(b"?")[0].decode("latin-1")

    def work() -> Response:
        session = broker.session_for(call, cookie=cookie, bearer=None)
        key = session.channel_key
        sequence = None if key is None else channel.sequence_of(given, key, request.method, path, raw)
        if sequence is None:
            raise broker.refuse(
                call, Problem(401, "ANCHOR-MAC", "no proof of possession", reason="anchor.channel")
            )
        body: Body = parse_model(raw, model, status=400)
        return json_response(broker.anchor_call(call, session, vm, sequence, change(body, broker.clock())))

    return await in_thread(request, work)


def _point(point: Point) -> AnchorPoint:
    return AnchorPoint(point.counter, bytes.fromhex(point.root))
