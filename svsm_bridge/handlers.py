"""What a protocol handler looks like from this side of the boundary."""

from typing import Protocol
from uuid import UUID


class MmHandler(Protocol):
    """Serves the messages of protocol 4 and of the register device.

    A handler is called by one thread at a time (S43).
    """

    def handle(self, header_guid: UUID, message: bytes) -> bytes:
        """Answer one MM message.

        ``message`` is the private copy of the ``MessageLength`` bytes behind the 24-byte header. The reply
        replaces it from its first byte and is never longer (R10); an empty reply writes nothing.

        Raises:
            CallError: the message was not executed; the guest reads the result from RAX (R4, R5).
        """
        ...

    def reset(self) -> None:
        """Platform reset (R20): volatile state is dropped, the boot phase starts again."""
        ...
