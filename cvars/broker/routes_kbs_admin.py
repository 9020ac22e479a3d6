"""The administrative half of Trustee's API (key-release 1.4): resources, policies, reference values."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from cvars.broker import messages
from cvars.broker.claims import Call
from cvars.broker.http import in_thread, json_response, parse_model, read_body
from cvars.broker.openapi import documented
from cvars.broker.policy.load import PolicyError
from cvars.broker.policy_store import RESTRICTION
from cvars.broker.problems import Problem
from cvars.broker.resources import MAX_RESOURCE
from cvars.broker.routes_admin import authorised
from cvars.broker.routes_kbs import resource_path
from cvars.broker.service import Broker
from cvars.release.encoding import Malformed, b64url_decode, strict_json

router: Final = APIRouter(prefix="/kbs/v0", tags=["kbs administration"])
_ERRORS: Final = (401, 403, 404, 408, 413)
_PREFIX: Final = "/kbs/v0/resource/"
_BINARY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "maxLength": MAX_RESOURCE}}},
    }
}
_EMPTY: Final[dict[int | str, dict[str, Any]]] = {200: {"description": "done, empty", "content": {}}}
_VALUE: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^[0-9a-f]{96}$"},
                    "minItems": 1,
                    "maxItems": 256,
                }
            }
        },
    }
}


def _extended(extra: dict[str, Any], openapi: dict[str, Any] | None = None) -> dict[str, Any]:
    out = dict(extra)
    out["responses"] = _EMPTY | out["responses"]
    out["response_class"] = Response
    if openapi is not None:
        out["openapi_extra"] = openapi
    return out


@router.post("/resource/{repository}/{type}/{tag}", **_extended(documented(errors=_ERRORS, kbs=True), _BINARY))
async def put_resource(request: Request, repository: str, type: str, tag: str) -> Response:  # noqa: A002, ARG001
    """Store a secret: the raw body."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "resource.put")
    path = resource_path(request, _PREFIX)
    call.resource = path
    if path.startswith("vms/") and path.endswith("/store-kek"):
        raise broker.refuse(call, Problem(403, "RESOURCE-DERIVED", "store keys are derived, never stored"))
    secret = await read_body(request, MAX_RESOURCE)
    await in_thread(request, lambda: broker.put_resource(path, secret))
    broker.accept(call)
    return Response(status_code=200)


@router.delete("/resource/{repository}/{type}/{tag}", **_extended(documented(errors=_ERRORS, kbs=True)))
async def delete_resource(request: Request, repository: str, type: str, tag: str) -> Response:  # noqa: A002, ARG001
    """Remove a secret."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "resource.delete")
    path = resource_path(request, _PREFIX)
    call.resource = path
    if not await in_thread(request, lambda: broker.resources.delete(path)):
        raise broker.refuse(call, Problem(404, "RESOURCE-MISSING", kind="PluginNotFound"))
    broker.accept(call)
    return Response(status_code=200)


@router.post("/resource-policy", **_extended(documented(body=messages.RegoBody, errors=_ERRORS, kbs=True)))
async def put_resource_policy(request: Request) -> Response:
    """A Rego text that restricts every release; stock texts always, others with the Rego extra."""
    call = authorised(request, "resource-policy.put")
    body = parse_model(await read_body(request), messages.RegoBody, status=401)
    return await _put_rego(request, call, body.policy)


@router.post(
    "/attestation-policy", **_extended(documented(body=messages.AttestationPolicyBody, errors=_ERRORS, kbs=True))
)
async def put_attestation_policy(request: Request) -> Response:
    """The same restriction under Trustee's other name: here attestation decides by typed policy only."""
    call = authorised(request, "attestation-policy.put")
    body = parse_model(await read_body(request), messages.AttestationPolicyBody, status=401)
    return await _put_rego(request, call, body.policy)


async def _put_rego(request: Request, call: Call, encoded: str) -> Response:
    broker: Broker = request.app.state.broker
    try:
        text = b64url_decode(encoded.rstrip("=")).decode()
        kind = await in_thread(request, lambda: broker.policy_store.put_rego(text, broker.policies))
    except (Malformed, UnicodeDecodeError):
        raise broker.refuse(call, Problem(401, "SCHEMA", "policy is not base64url", kind="SerdeError")) from None
    except PolicyError as error:
        raise broker.refuse(call, Problem(403, "POLICY", error.message)) from None
    call.detail["rego"] = kind
    broker.accept(call)
    return Response(status_code=200)


@router.get(
    "/resource-policy",
    responses=documented(errors=(401, 403), kbs=True)["responses"]
    | {
        200: {
            "description": "ids",
            "content": {"application/json": {"schema": {"type": "array", "items": {"type": "string"}}}},
        }
    },
)
async def list_resource_policies(request: Request) -> Response:
    """The ids of active policies."""
    broker: Broker = request.app.state.broker
    authorised(request, "resource-policy.list")
    snapshot = await in_thread(request, broker.policies.current)
    extra = [RESTRICTION] if snapshot.restriction is not None else []
    return json_response([p.name for p in snapshot.policies] + extra)


@router.get(
    "/reference-value",
    responses=documented(errors=(401, 403), kbs=True)["responses"]
    | {200: {"description": "by id", "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def list_reference_values(request: Request) -> Response:
    """All reference values."""
    broker: Broker = request.app.state.broker
    authorised(request, "reference-value.list")
    return json_response(await in_thread(request, broker.policy_store.references))


ReferenceId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]


@router.get(
    "/reference-value/{reference_id}",
    responses=documented(errors=(401, 403, 404), kbs=True)["responses"]
    | {200: {"description": "the value", "content": {"application/json": {"schema": {}}}}},
)
async def get_reference_value(request: Request, reference_id: ReferenceId) -> Response:
    """One reference value."""
    broker: Broker = request.app.state.broker
    authorised(request, "reference-value.get")
    found = await in_thread(request, broker.policy_store.references)
    if reference_id not in found:
        raise Problem(404, "REFERENCE-UNKNOWN", kind="PluginNotFound")
    return json_response(found[reference_id])


@router.post("/reference-value/{reference_id}", **_extended(documented(errors=_ERRORS, kbs=True), _VALUE))
async def put_reference_value(request: Request, reference_id: ReferenceId) -> Response:
    """Store a reference value: a list of measurements in hex."""
    broker: Broker = request.app.state.broker
    call = authorised(request, "reference-value.put")
    call.resource = f"reference-value/{reference_id}"
    raw = await read_body(request)
    try:
        value = strict_json(raw)
        if not isinstance(value, list) or len(value) > 256:
            raise Malformed("not a list")
        await in_thread(request, lambda: broker.policy_store.put_reference(reference_id, value, broker.policies))
    except Malformed as error:
        raise broker.refuse(call, Problem(401, "JSON", str(error), kind="SerdeError")) from None
    except PolicyError as error:
        raise broker.refuse(call, Problem(401, "SCHEMA", error.message, kind="SerdeError")) from None
    broker.accept(call)
    return Response(status_code=200)
