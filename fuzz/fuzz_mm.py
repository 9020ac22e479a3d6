"""Fuzz the message boundary: a sequence of messages to one service, as a hostile guest sends them.

    python fuzz/fuzz_mm.py [CORPUS] [-max_total_time=600]     under atheris, where it is installed
    python fuzz/fuzz_mm.py --seconds 60                       else: mutations of valid messages

Every message is answered within its length or is a call error; what is stored can be loaded again.
"""

import sys
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.engine import instrumented, run

with instrumented():
    from cvars.mm.service import VariableService
    from cvars.variables import initial_state
    from cvars.variables.names import EVENT_END_OF_DXE, EVENT_EXIT_BOOT_SERVICES
    from cvars.variables.saved import restore, save
    from svsm_bridge.errors import CallError

from tests.mm.kit import POLICY, VARIABLE, entry, following, get, message, policy, put

A = UUID(int=0xA)
GUIDS = (VARIABLE, VARIABLE, VARIABLE, POLICY, EVENT_END_OF_DXE, EVENT_EXIT_BOOT_SERVICES)


def one_input(data: bytes) -> None:
    """Messages one after the other: a byte for the GUID, two for the length, then the message."""
    service = VariableService({}, commit=lambda _journal: None)
    at = 0
    while at + 3 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 3], "little")
        body = data[at + 3 : at + 3 + size]
        try:
            reply = service.handle(GUIDS[data[at] % len(GUIDS)], body)
        except CallError:
            reply = b""
        assert len(reply) <= len(body)
        at += 3 + size
    state = service.state
    initial_state(service.variables, profile=state.profile, limits=state.limits)
    assert restore(save(state)) == state


def framed(*messages: tuple[int, bytes]) -> bytes:
    """Messages as one input; each with the index of its GUID."""
    return b"".join(bytes([guid]) + len(body).to_bytes(2, "little") + body for guid, body in messages)


def corpus() -> list[bytes]:
    """A life of one variable, and of one policy."""
    return [
        framed(
            (0, put(A, "V", 7, b"1")), (0, get(A, "V", 4)), (0, put(A, "V", 0x47, b"2")), (0, put(A, "V", 7, b""))
        ),
        framed((0, following(A, "", 64)), (0, message(4, bytes(28))), (0, message(11, bytes(8))), (0, message(5))),
        framed((3, policy(3, entry(A, "V#", lock=1))), (4, b""), (0, put(A, "V1", 7, b"x")), (5, b"")),
        framed((3, policy(3, entry(A, "V", lock=3, state=(A, 1, "S")))), (3, policy(6, bytes(100)))),
    ]


if __name__ == "__main__":
    run(one_input, corpus())
