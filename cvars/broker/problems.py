"""Why a request is refused, and its two bodies: Trustee's under /kbs/v0, RFC 9457 on our own endpoints (1.5).

What an unauthenticated client is told names the rule only; what was found goes to the audit log.
"""

import json
from typing import Final

KBS_ERRORS: Final = "https://github.com/confidential-containers/kbs/errors/"
_KINDS: Final = {
    400: "SerdeError",
    401: "AttestationError",
    403: "PolicyDeny",
    404: "InvalidRequestPath",
    405: "InvalidRequestPath",
    408: "Unavailable",
    409: "AttestationError",
    413: "PayloadTooLarge",
    414: "PayloadTooLarge",
    429: "TooManyRequests",
    431: "PayloadTooLarge",
    499: "Unavailable",
    500: "Unavailable",
    503: "Unavailable",
}
_TITLES: Final = {
    400: "The request is malformed",
    401: "Not authenticated",
    403: "Refused by policy",
    404: "Not found",
    405: "Method not allowed",
    408: "The request took too long",
    409: "Conflict",
    410: "Retired",
    412: "Fenced, or not the predecessor",
    413: "The body is too large",
    423: "Frozen",
    429: "Too many requests",
    499: "The client went away",
    500: "Internal error",
    503: "Not available",
}


class Problem(Exception):
    """A refusal. ``rule`` is told to the client, ``detail`` only to the audit log, ``told`` to operators."""

    def __init__(
        self, status: int, rule: str, detail: str = "", *, kind: str = "", reason: str = "", told: str = ""
    ) -> None:
        super().__init__(rule)
        self.status = status
        self.rule = rule
        self.detail = detail
        self.kind = kind or _KINDS.get(status, "AttestationError")
        self.reason = reason or "broker.refused"
        self.told = told or rule

    def body(self, path: str, request_id: str) -> tuple[bytes, str]:
        """(body, content type) for the API that ``path`` belongs to."""
        if path.startswith("/kbs/"):
            return json.dumps({"type": KBS_ERRORS + self.kind, "detail": self.rule}).encode(), "application/json"
        document = {
            "type": "about:blank",
            "title": _TITLES.get(self.status, "Refused"),
            "status": self.status,
            "detail": self.told,
            "reason": self.reason,
            "rule": self.rule,
            "request_id": request_id,
        }
        return json.dumps(document).encode(), "application/problem+json"
