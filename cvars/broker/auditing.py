"""One decision, one audit line: what every part of the broker says when it accepts or refuses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cvars.broker.audit import AuditLog
from cvars.broker.claims import Call
from cvars.broker.problems import Problem
from cvars.broker.record import Refused


class Auditing:
    """Base of the broker: has an audit log and, perhaps, somebody who counts."""

    audit: AuditLog
    observe: Callable[[str, str, str | None], None] | None

    @contextmanager
    def refusals(self, call: Call) -> Iterator[None]:
        """A record that says no becomes a `Problem`, with its audit line."""
        try:
            yield
        except Refused as error:
            problem = Problem(error.status, error.rule, error.detail, reason=error.reason)
            raise self.refuse(call, problem) from None

    def refuse(self, call: Call, problem: Problem) -> Problem:
        """Write the audit line of a refusal; the caller raises it."""
        self._line(call, decision="deny", rule=problem.rule, status=problem.status, why=problem.detail or None)
        return problem

    def accept(self, call: Call) -> None:
        """Write the audit line of what was done."""
        self._line(call, decision="allow")

    def _line(self, call: Call, **members: Any) -> None:  # noqa: ANN401
        if self.observe is not None:
            self.observe(call.action, members["decision"], members.get("rule"))
        self.audit.write(
            request_id=call.request_id,
            action=call.action,
            session=call.session.id_hash[:16] if call.session else None,
            vm_id=call.vm_id,
            resource=call.resource,
            policy=call.policy,
            evidence=call.evidence,
            trust_domain=call.trust_domain,
            epoch=call.epoch,
            **members,
            **call.detail,
        )
