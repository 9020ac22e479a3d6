"""For machines that watch: `/healthz`, `/readyz`, `/metrics`; and the OpenAPI page without script or CDN."""

from typing import Final

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response

from cvars.broker.console import page
from cvars.broker.http import in_thread, json_response
from cvars.broker.problems import Problem
from cvars.broker.service import Broker
from cvars.errors import CvarsError

router: Final = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives."""
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Database, signing key and trust anchors are there."""
    broker: Broker = request.app.state.broker

    def check() -> None:
        with broker.db.read() as connection:
            connection.execute(sa.select(1)).scalar()

    if request.app.state.draining:
        raise Problem(503, "DRAINING", reason="broker.draining")
    try:
        await in_thread(request, check)
    except CvarsError:
        raise Problem(503, "DATABASE", reason="broker.database") from None
    return json_response({"status": "ready", "broker": broker.broker_id, "pin": broker.signer.kid})


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API for people: server-rendered from /openapi.json, no script."""
    document = request.app.openapi()
    rows = [
        {"method": method.upper(), "path": path, "summary": str(op.get("description") or "").split("\n")[0],
         "statuses": ", ".join(op["responses"]), "tag": (op.get("tags") or [""])[0]}
        for path, methods in document["paths"].items()
        for method, op in methods.items()
    ]  # fmt: skip
    return page(request, "docs.html", {"rows": rows})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text; no guest identities in labels."""
    if request.app.state.metrics is None:
        raise Problem(404, "NO-SUCH-PATH", reason="request.path")
    broker: Broker = request.app.state.broker
    counts = await in_thread(request, broker.sessions.counts)
    body, content_type = request.app.state.metrics.render(counts)
    return Response(body, media_type=content_type)
