"""Counters for Prometheus: requests by route and status, decisions by action and rule, sessions by state.

Labels come from closed sets of this program: routes as they are declared, rule ids as the rules are named (K48).
"""

import re
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_RULE: Final = re.compile(r"[A-Z][A-Z0-9-]{1,40}")


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cvars_broker_requests", "HTTP requests", ["method", "route", "status"], registry=self.registry
        )
        self._decisions = Counter(
            "cvars_broker_decisions", "Decisions", ["action", "decision", "rule"], registry=self.registry
        )
        self._sessions = Gauge("cvars_broker_sessions", "Live sessions", ["state"], registry=self.registry)

    def request(self, method: str, route: str, status: int) -> None:
        """One answered request."""
        known = method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "other"
        self._requests.labels(known, route, str(status)).inc()

    def decision(self, action: str, decision: str, rule: str | None) -> None:
        """One decision."""
        name = rule if rule is not None and _RULE.fullmatch(rule) else ("" if rule is None else "other")
        self._decisions.labels(action, decision, name).inc()

    def render(self, sessions: dict[str, int]) -> tuple[bytes, str]:
        """(text, content type)."""
        for state, count in sessions.items():
            self._sessions.labels(state).set(count)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
