"""`/console`: what an operator looks at. Read-only, server-rendered, works without script, nothing from elsewhere.

People authenticate as programs do (a role token), or through a reverse proxy that adds it. In simulation on
loopback with ``allow_all`` the page is open.
"""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from fastapi import APIRouter, Request, Response

from cvars import __version__
from cvars.broker.http import in_thread
from cvars.broker.routes_admin import authorised
from cvars.broker.service import Broker
from cvars.broker.views import describe

router: Final = APIRouter(include_in_schema=False)
_HERE: Final = Path(__file__).parent
_PAGES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_SHOWN: Final = 100


def when(at: float | None) -> str:
    """A time for people, UTC."""
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


_PAGES.filters["when"] = when


@router.get("/console")
async def console(request: Request) -> Response:
    """Guests, leases, decisions, policies, health."""
    broker: Broker = request.app.state.broker
    authorised(request, "console")

    def work() -> dict[str, Any]:
        records = broker.anchors.all()
        decisions = list(broker.audit.recent)[-_SHOWN:][::-1]
        snapshot = broker.policies.current()
        return {
            "vms": [describe(r) for r in records],
            "decisions": decisions,
            "rules": Counter(d["rule"] for d in decisions if d.get("rule")).most_common(8),
            "policies": snapshot.policies,
            "restriction": snapshot.restriction,
            "sessions": broker.sessions.counts(),
        }

    return page(request, "console.html", await in_thread(request, work))


@router.get("/console/vm/{vm}")
async def console_vm(request: Request, vm: str) -> Response:
    """One guest: record and anchor history."""
    broker: Broker = request.app.state.broker
    authorised(request, "console")

    def work() -> dict[str, Any] | None:
        record = broker.anchors.get(vm)
        if record is None:
            return None
        history = broker.anchors.history(vm, after=max(0, record.version - _SHOWN))[::-1]
        return {"vm": describe(record), "history": history}

    found = await in_thread(request, work)
    if found is None:
        return page(request, "missing.html", {}, status=404)
    return page(request, "vm.html", found)


@router.get("/console/style.css")
async def style() -> Response:
    """The one stylesheet."""
    return Response((_HERE / "static" / "console.css").read_bytes(), media_type="text/css")


def page(request: Request, name: str, members: dict[str, Any], *, status: int = 200) -> Response:
    """Render one page with what every page shows."""
    broker: Broker = request.app.state.broker
    base = {
        "broker_id": broker.broker_id,
        "pin": broker.signer.kid,
        "version": __version__,
        "simulation": broker.verifier.simulation,
        "now": broker.clock(),
    }
    return Response(_PAGES.get_template(name).render(base | members), status, media_type="text/html")
