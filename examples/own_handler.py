"""Serve your own message handler to a guest: in this process, then over the Unix socket.

    python examples/own_handler.py

A handler gets the bytes of one MM message and gives bytes back; the bridge does the rest: registers, guest
memory, page rights, one copy, one request at a time. `clients/c` has the guest's side in C.
"""

import tempfile
from pathlib import Path
from uuid import UUID

from svsm_bridge.abi import MM_HEADER
from svsm_bridge.errors import InvalidRequest
from svsm_bridge.transports.client import GuestClient
from svsm_bridge.transports.guest import GuestSide
from svsm_bridge.transports.inproc import InProcessGuest
from svsm_bridge.transports.socket import SocketServer, listen

GREETING = UUID("5c1f54a6-6b4f-4bd3-9c5e-6b1c6f0f9a11")


class Greeter:
    """Answers every message with itself in capitals."""

    def handle(self, header_guid: UUID, message: bytes) -> bytes:
        """One message; an unknown GUID is an error of the call (R4)."""
        if header_guid != GREETING:
            raise InvalidRequest(f"no such service: {header_guid}")
        return message.upper()

    def reset(self) -> None:
        """Nothing to forget."""


def greet(guest: GuestSide) -> str:
    """Ask which protocols there are, then send a greeting."""
    assert guest.query_protocol(4) == 1 << 32 | 1
    text = b"hello from the guest"
    reply = guest.mm_request(MM_HEADER.pack(GREETING.bytes_le, len(text)) + text)
    return reply[MM_HEADER.size :].decode()


def main() -> None:
    """Both ways."""
    direct = InProcessGuest(Greeter())
    print("in process:", greet(direct))  # noqa: T201
    direct.close()
    with tempfile.TemporaryDirectory() as folder:
        server = SocketServer(listen(Path(folder) / "run" / "svsm.sock"), Greeter())
        thread = server.start()
        guest = GuestClient.start(Path(folder) / "run" / "svsm.sock")
        print("by socket: ", greet(guest))  # noqa: T201
        guest.close()
        server.stop()
        thread.join()


if __name__ == "__main__":
    main()
