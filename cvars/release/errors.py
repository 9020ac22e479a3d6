"""Why a guest got no key: the errors of the client side. The guest does not start."""

from cvars.errors import StoreError


class AttestRefused(StoreError):
    """The broker refused the evidence; ``rule`` as it named it."""

    reason = "attest.refused"

    def __init__(self, message: str, *, rule: str, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.rule = rule


class ReleaseRefused(StoreError):
    """The broker's policy refused the secret."""

    reason = "release.refused"


class StatementRefusedError(StoreError):
    """No statement by a pinned broker key covers what was received: nothing was opened (K44)."""

    reason = "release.statement_refused"
