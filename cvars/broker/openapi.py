"""How an endpoint is documented: body, answer, and every status it can give."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from cvars.broker.messages import KbsError, ProblemBody

_TEXT: Final = {
    400: "malformed",
    401: "not authenticated, or the evidence was refused",
    403: "refused by policy",
    404: "no such thing",
    405: "no such method",
    408: "the body came too slowly",
    409: "conflict",
    410: "retired",
    412: "fenced, or not the predecessor",
    413: "body too large",
    423: "frozen",
    429: "too many requests",
    431: "headers too large",
    503: "not available",
}


def documented(
    *,
    body: type[BaseModel] | None = None,
    reply: type[BaseModel] | None = None,
    errors: tuple[int, ...],
    kbs: bool,
    links: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for a route whose handler reads the request itself. ``links``: OpenAPI links."""
    model: type[BaseModel] = KbsError if kbs else ProblemBody
    content_type = "application/json" if kbs else "application/problem+json"
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": _TEXT[status], "content": {content_type: {"schema": schema}}}
        for status in sorted({*errors, 431, 503})
    }
    out: dict[str, Any] = {"responses": responses}
    if reply is not None:
        responses[200] = {
            "description": "done",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{reply.__name__}"}}},
        }
        if links:
            responses[200]["links"] = dict(links)
    if body is not None:
        out["openapi_extra"] = {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}},
            }
        }
    return out


def components(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """All schemas, by name."""
    from pydantic.json_schema import models_json_schema  # noqa: PLC0415

    _, document = models_json_schema(
        [(m, "validation") for m in models], by_alias=True, ref_template="#/components/schemas/{model}"
    )
    return dict(document.get("$defs", {}))
