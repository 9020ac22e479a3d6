"""TDVMCALL, SCHEDULE and TRACE of the socket transport. The last two only in a server started for tests (S65)."""

from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

from svsm_bridge.adversary import BadSchedule, from_json
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import Message, PeerGone
from svsm_bridge.transports.guest_slot import GuestSlot
from svsm_bridge.transports.wire import Code, Feature, Kind, TransportError
from svsm_bridge.watch import READS, RIGHTS, Access

if TYPE_CHECKING:
    from svsm_bridge.transports.connection import Connection

NEEDS: Final = {Kind.TDVMCALL: Feature.TDX, Kind.SCHEDULE: Feature.ADVERSARIAL, Kind.TRACE: Feature.TRACE}


def require_negotiated(connection: "Connection", kind: Kind) -> None:
    """A message of an optional feature needs that feature.

    Raises:
        TransportError: it was not negotiated (4).
    """
    feature = NEEDS.get(kind)
    if feature is not None and not connection.features & feature:
        raise TransportError(Code.ROLE, f"feature {feature.name} was not negotiated", int(feature))


def answer(connection: "Connection", slot: GuestSlot, message: Message) -> bytes:
    """SCHEDULE and TRACE; the payload of the reply.

    Raises:
        TransportError: not understood (9).
    """
    if message.kind == Kind.SCHEDULE:
        try:
            schedule = from_json(slot.machine, slot.dispatcher, message.payload.decode("utf-8", "strict"))
        except (BadSchedule, UnicodeDecodeError) as error:
            raise TransportError(Code.RESERVED, f"SCHEDULE: {error}") from error
        slot.replace_schedule(schedule)
        return b""
    on, reserved = wire.switch.unpack(message.payload)
    if on > 1 or reserved:
        raise TransportError(Code.RESERVED, "TRACE is 0 or 1")
    if connection.tracer is not None:
        slot.machine.unwatch(connection.tracer)
        connection.tracer = None
    if on:
        connection.tracer = Tracer(connection)
        slot.machine.watch(connection.tracer)
    return b""


class Tracer:
    """Sends every access as an unsolicited TRACE reply with tag 0."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._sequence = count()

    def before(self, access: Access) -> None:
        """Nothing yet."""

    def after(self, access: Access, *, ok: bool) -> None:
        """One record."""
        op = 0 if access.op in READS else 2 if access.op == RIGHTS else 1
        record = wire.trace_record.pack(
            next(self._sequence), access.gpa, access.size, access.vcpu & 0xFFFF, op, 0 if ok else 1
        )
        with suppress(PeerGone):
            self._connection.channel.send(Kind.TRACE, wire.FLAG_REPLY, 0, record)
