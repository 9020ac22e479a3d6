"""The operator's endpoints: VMs and their anchors, policies, decisions, checkpoints. Role tokens only."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from cvars.broker import checkpoints, messages
from cvars.broker import record as rules
from cvars.broker.anchors import Exists
from cvars.broker.claims import Call
from cvars.broker.http import call_of, in_thread, json_response, parse_model, read_body
from cvars.broker.openapi import documented
from cvars.broker.policy.load import PolicyError
from cvars.broker.problems import Problem
from cvars.broker.record import Change, Record
from cvars.broker.service import Broker
from cvars.broker.views import describe
from cvars.store.anchor import AnchorPoint

router: Final = APIRouter(prefix="/cvars/v1", tags=["operators"])
VmId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
_BODY: Final = 16 * 1024
_POLICY_BODY: Final = 512 * 1024
_READ: Final = (400, 401, 403, 404)
_WRITE: Final = (400, 401, 403, 404, 408, 409, 410, 413, 423)


def authorised(request: Request, action: str) -> Call:
    """The audit record of an operator's call. Raises ``Problem`` 401 or 403, with an audit line."""
    broker: Broker = request.app.state.broker
    call = call_of(request, f"admin.{action}")
    raw: bytes = request.scope["raw_path"].partition(b"?")[0]
    try:
        call.detail["role"] = request.app.state.admin.authorise(
            request.headers.get("authorization", ""),
            method=request.method,
            path=raw.decode("latin-1"),
            now=broker.clock(),
        )
    except Problem as problem:
        raise broker.refuse(call, problem) from None
    return call


@router.get("/vms", **documented(reply=messages.VmList, errors=_READ, kbs=False))
async def list_vms(request: Request) -> Response:
    """All anchor records."""
    broker: Broker = request.app.state.broker
    authorised(request, "vm.list")
    return await in_thread(request, lambda: json_response({"vms": [describe(r) for r in broker.anchors.all()]}))


_MADE: Final = {
    name: {"operationId": operation, "parameters": {"vm": "$response.body#/vm_id"}}
    for name, operation in (("show", "show_vm"), ("history", "history"), ("freeze", "freeze"), ("reset", "reset"))
}


@router.post(
    "/vms",
    **documented(body=messages.AddVmRequest, reply=messages.Vm, errors=_WRITE, kbs=False, links=_MADE),
)
async def add_vm(request: Request) -> Response:
    """A new record, so that this VM may create its store once."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "vm.add")
    body = parse_model(await read_body(request, _BODY), messages.AddVmRequest, status=400)
    call.vm_id = body.vm_id

    def work() -> Response:
        try:
            record = broker.add_vm(body.vm_id, mode=body.mode)
        except Exists:
            raise broker.refuse(call, Problem(409, "ANCHOR-EXISTS", reason="anchor.exists")) from None
        broker.accept(call)
        return json_response(describe(record))

    return await in_thread(request, work)


@router.get("/vms/{vm}", **documented(reply=messages.Vm, errors=_READ, kbs=False))
async def show_vm(request: Request, vm: VmId) -> Response:
    """One anchor record."""
    broker: Broker = request.app.state.broker
    authorised(request, "vm.show")
    record = await in_thread(request, lambda: broker.anchors.get(vm))
    if record is None:
        raise Problem(404, "ANCHOR-UNKNOWN", reason="anchor.unknown")
    return json_response(describe(record))


@router.get("/anchor/{vm}/log", **documented(reply=messages.HistoryReply, errors=_READ, kbs=False))
async def history(
    request: Request,
    vm: VmId,
    after: Annotated[int, Query(ge=0, le=(1 << 63) - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """The hash-chained history of one record."""
    broker: Broker = request.app.state.broker
    authorised(request, "vm.log")
    entries = await in_thread(request, lambda: broker.anchors.history(vm, after=after, limit=limit))
    if not entries and after == 0:
        raise Problem(404, "ANCHOR-UNKNOWN", reason="anchor.unknown")
    return json_response({"entries": entries})


@router.post(
    "/anchor/{vm}/reset", **documented(body=messages.ResetRequest, reply=messages.Vm, errors=_WRITE, kbs=False)
)
async def reset(request: Request, vm: VmId) -> Response:
    """Another anchored point by authority (`rebase`), or a new start with a new store id and key."""
    broker: Broker = request.app.state.broker

    def change(body: messages.ResetRequest) -> Callable[[Record], Change]:
        to = body.to
        point = None if isinstance(to, str) else AnchorPoint(to.counter, bytes.fromhex(to.root))
        store_id = broker.random(16)
        return lambda record: rules.reset(record, point=point, store_id=store_id, reason=body.reason)

    return await _operate(request, vm, "reset", messages.ResetRequest, change)


def _simple(name: str, rule: Callable[..., Change], text: str) -> None:
    """One endpoint that takes a reason and nothing else."""

    async def endpoint(request: Request, vm: VmId) -> Response:
        def change(body: messages.ReasonRequest) -> Callable[[Record], Change]:
            return lambda record: rule(record, reason=body.reason)

        return await _operate(request, vm, name, messages.ReasonRequest, change)

    endpoint.__name__ = name
    endpoint.__doc__ = text
    extra = documented(body=messages.ReasonRequest, reply=messages.Vm, errors=_WRITE, kbs=False)
    router.post(f"/anchor/{{vm}}/{name}", **extra)(endpoint)


_simple("freeze", rules.freeze, "Incident response: acquire answers 423, the present lease is fenced.")
_simple("thaw", rules.thaw, "End a freeze; the session before it stays fenced.")
_simple("retire", rules.retire, "Crypto-erase: the keys go, the record stays as a tombstone.")
_simple("rotate", rules.rotate, "A new key version for the next acquire.")
_simple("finalise", rules.finalise, "Destroy the old key version now.")


async def _operate(
    request: Request,
    vm: str,
    action: str,
    model: type[Any],
    change: Callable[[Any], Callable[[Record], Change]],
) -> Response:
    broker: Broker = request.app.state.broker
    call = authorised(request, f"vm.{action}")
    body = parse_model(await read_body(request, _BODY), model, status=400)
    call.vm_id, call.detail["reason"] = vm, body.reason
    return await in_thread(request, lambda: json_response(describe(broker.operate(vm, change(body), call))))


# --- policies, secrets, decisions, checkpoints ------------------------------------------------------


@router.get("/policies", **documented(reply=messages.PolicyList, errors=_READ, kbs=False))
async def list_policies(request: Request) -> Response:
    """The active policies."""
    broker: Broker = request.app.state.broker
    authorised(request, "policy.list")
    snapshot = await in_thread(request, broker.policies.current)
    found = [{"name": p.name, "digest": p.digest, "applies_to": p.document.applies_to} for p in snapshot.policies]
    restriction = snapshot.restriction_digest if snapshot.restriction is not None else None
    return json_response({"policies": found, "restriction": restriction})


PolicyName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


@router.put(
    "/policies/{name}", **documented(body=messages.PolicyBody, reply=messages.Done, errors=_WRITE, kbs=False)
)
async def put_policy(request: Request, name: PolicyName) -> Response:
    """Store a typed policy; on an error the old one stays active."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "policy.put")
    body = parse_model(await read_body(request, _POLICY_BODY), messages.PolicyBody, status=400)
    call.resource = f"policy/{name}"

    def work() -> Response:
        try:
            if broker.policy_store.name_of(body.text) != name:
                raise PolicyError("the policy has another name than the path")
            broker.policy_store.put(body.text, broker.policies)
        except PolicyError as error:
            detail = f"{error.message} {error.where}".strip()
            raise broker.refuse(
                call, Problem(400, "POLICY", detail, reason="policy.malformed", told=detail)
            ) from None
        broker.accept(call)
        return json_response({"done": True})

    return await in_thread(request, work)


@router.delete("/policies/{name}", **documented(reply=messages.Done, errors=_READ, kbs=False))
async def delete_policy(request: Request, name: PolicyName) -> Response:
    """Remove a policy that was put here. What it allowed is denied from now on."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "policy.delete")
    call.resource = f"policy/{name}"
    if not await in_thread(request, lambda: broker.policy_store.delete(name, broker.policies)):
        raise broker.refuse(call, Problem(404, "POLICY-UNKNOWN", reason="policy.unknown"))
    broker.accept(call)
    return json_response({"done": True})


@router.get("/secrets", **documented(reply=messages.SecretList, errors=_READ, kbs=False))
async def list_secrets(request: Request) -> Response:
    """Paths and versions of stored secrets."""
    broker: Broker = request.app.state.broker
    authorised(request, "secret.list")
    found = await in_thread(request, broker.resources.list)
    return json_response({"secrets": [{"path": path, "version": version} for path, version in found]})


@router.get("/decisions", **documented(reply=messages.DecisionList, errors=_READ, kbs=False))
async def decisions(request: Request, limit: Annotated[int, Query(ge=1, le=500)] = 100) -> Response:
    """The last decisions of this process, oldest first, as in the audit log."""
    broker: Broker = request.app.state.broker
    authorised(request, "decisions")
    return json_response({"decisions": list(broker.audit.recent)[-limit:]})


@router.get("/checkpoint", **documented(reply=messages.CheckpointReply, errors=_READ, kbs=False))
async def checkpoint(request: Request) -> Response:
    """A signed checkpoint of this moment; keep it elsewhere."""
    broker: Broker = request.app.state.broker
    authorised(request, "checkpoint")
    text = await in_thread(
        request,
        lambda: checkpoints.make(broker.db, broker.signer, now=broker.clock(), broker_id=broker.broker_id),
    )
    return json_response({"checkpoint": text})
