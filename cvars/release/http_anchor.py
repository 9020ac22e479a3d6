"""The freshness anchor over HTTP: what the store calls, one attempt a call (key-release 5.4)."""

from collections.abc import Mapping
from typing import Any, Protocol

from cvars.errors import AnchorError, AnchorFenced, AnchorLeased
from cvars.release.answers import anchor_error, plain_point
from cvars.release.encoding import b64
from cvars.release.errors import AttestRefused
from cvars.release.transport import Response
from cvars.store.anchor import Acquired, AnchorPoint, Receipt


class Channel(Protocol):
    """What `HttpAnchor` needs of the client that acquired the session."""

    def channel_call(self, path: str, document: Mapping[str, Any]) -> Response:
        """One call with proof of possession."""
        ...

    def receipt(self, answer: Response, *, vm_id: str, epoch: int) -> Receipt:
        """The verified receipt of the last call."""
        ...

    def reattest(self, epoch: int) -> None:
        """Attest again and continue ``epoch``."""
        ...


class HttpAnchor:
    """One open session at the anchor, over HTTP (`cvars.store.anchor.Anchor`). Each method makes one attempt.

    A session that the broker lost (restart) is attested again and continued, once per call.
    """

    def __init__(self, client: Channel, acquired: Acquired) -> None:
        self._client = client
        self._vm = acquired.vm_id

    def advance(
        self,
        *,
        epoch: int,
        start: AnchorPoint,
        to: AnchorPoint,
        base: AnchorPoint,
        key_version: int,
        escrow: bytes,
    ) -> Receipt:
        """Move the committed point; renews the lease. Idempotent within the epoch."""
        receipt = self._call(
            "advance",
            epoch,
            {
                "epoch": epoch,
                "from": plain_point(start),
                "to": plain_point(to),
                "base": plain_point(base),
                "key_version": key_version,
                "escrow": b64(escrow),
            },
        )
        if receipt.point != to:
            raise AnchorError("the receipt names another point than was advanced to", where=self._vm)
        return receipt

    def renew(self, *, epoch: int) -> Receipt:
        """Renew the lease."""
        return self._call("renew", epoch, {"epoch": epoch})

    def seal(self, *, epoch: int, point: AnchorPoint) -> Receipt:
        """Give the lease back."""
        return self._call("seal", epoch, {"epoch": epoch} | plain_point(point))

    def _call(self, verb: str, epoch: int, document: Mapping[str, Any]) -> Receipt:
        path = f"/cvars/v1/anchor/{self._vm}/{verb}"
        answer = self._client.channel_call(path, document)
        if answer.status == 401:  # the broker forgot this session
            try:
                self._client.reattest(epoch)
            except (AnchorLeased, AttestRefused) as error:
                raise AnchorFenced(f"the session ended: {error.message}", where=self._vm) from None
            answer = self._client.channel_call(path, document)
        if answer.status != 200:
            raise anchor_error(answer)
        return self._client.receipt(answer, vm_id=self._vm, epoch=epoch)
