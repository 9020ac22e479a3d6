"""One guest of the socket server: its machine, its connections, and its calls in flight."""

import time
from collections.abc import Callable
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final

from svsm_bridge.adversary import Schedule
from svsm_bridge.dispatcher import Dispatcher
from svsm_bridge.errors import Busy
from svsm_bridge.machine import Machine
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import Message
from svsm_bridge.transports.tdx import TdxFrontEnd
from svsm_bridge.transports.wire import Code, Role, TransportError

if TYPE_CHECKING:
    from svsm_bridge.transports.connection import Connection

VCPU_LIMIT: Final = 4096


class Execution:
    """One CALL between its request and its reply: whoever claims it first answers it (S62).

    ``epoch`` is the reader role of the connection under which it was read; ``busy`` makes the reply for a
    call that is told to come again.
    """

    __slots__ = ("_lock", "_state", "busy", "connection", "epoch", "kind", "started", "tag", "told", "vcpu")

    _WAITING, _EFFECTIVE, _ANSWERED = range(3)

    def __init__(
        self, connection: "Connection", epoch: int, vcpu: int, message: Message, busy: Callable[[], bytes]
    ) -> None:
        self.connection = connection
        self.epoch = epoch
        self.vcpu = vcpu
        self.tag = message.tag
        self.kind = message.kind
        self.busy = busy
        self.started = time.monotonic()
        self.told = False
        self._lock = Lock()
        self._state = self._WAITING

    def begin_effect(self) -> None:
        """The call is about to change something; from here on it is finished (S62)."""
        with self._lock:
            if self._state == self._ANSWERED:
                raise Busy("the deadline has passed")
            self._state = self._EFFECTIVE

    def finish(self) -> bool:
        """Claim the answer for the call itself."""
        with self._lock:
            mine = self._state != self._ANSWERED
            self._state = self._ANSWERED
            return mine

    def expire(self) -> bool:
        """Claim the answer for BUSY: only while the call has had no effect."""
        with self._lock:
            mine = self._state == self._WAITING
            if mine:
                self._state = self._ANSWERED
            return mine


class GuestSlot:
    """A machine as connections share it. It lives until its last machine-role connection is gone (S63)."""

    def __init__(self, session: int, machine: Machine, dispatcher: Dispatcher, apic_ids: int) -> None:
        self.session = session
        self.machine = machine
        self.dispatcher = dispatcher
        self.apic_ids = apic_ids
        self.tdx = TdxFrontEnd(machine)
        self.connections: set[Connection] = set()
        self.changed = Condition()
        self.off = False
        self.bytes_added = 0
        self._machine_roles = 0
        self._in_flight: set[int] = set()
        self._executions = 0
        self._schedule: Schedule | None = None

    def join(self, connection: "Connection", *, machine_role: bool) -> None:
        """Another connection belongs to this guest.

        Raises:
            TransportError: the guest is being powered off (12).
        """
        with self.changed:
            if self.off:
                raise TransportError(Code.ORDER, "the machine is being powered off")
            self.connections.add(connection)
            self._machine_roles += machine_role

    def leave(self, connection: "Connection", *, machine_role: bool) -> bool:
        """A connection is gone; true when it was the last with the machine role."""
        with self.changed:
            self.connections.discard(connection)
            self._machine_roles -= machine_role
            if self._machine_roles or self.off:
                return False
            self.off = True
            return True

    def ending(self) -> bool:
        """Powered off, or about to be: every machine-role connection has been closed by its peer."""
        with self.changed:
            machines = [c for c in self.connections if c.roles & Role.MACHINE]
            return self.off or all(connection.channel.hung_up() for connection in machines)

    def begin(self, vcpu: int) -> None:
        """A call of ``vcpu`` starts.

        Raises:
            TransportError: it has one in flight (7), or there is no such vCPU (8).
        """
        with self.changed:
            if self.off:
                raise TransportError(Code.ORDER, "the machine is being powered off")
            if vcpu not in self.machine.vcpus:
                raise TransportError(Code.UNKNOWN_VCPU, f"no vCPU with APIC id {vcpu}", vcpu)
            if vcpu in self._in_flight:
                raise TransportError(Code.IN_FLIGHT, f"vCPU {vcpu} has a call in flight", vcpu)
            self._in_flight.add(vcpu)
            self._executions += 1

    def answered(self, vcpu: int) -> None:
        """The caller of ``vcpu`` has its answer: it may call again."""
        with self.changed:
            self._in_flight.discard(vcpu)

    def give_up(self, vcpu: int) -> None:
        """The caller was told BUSY at its deadline: it may enter again, and the old call changes nothing."""
        self.machine.vcpus[vcpu].inside = None
        self.answered(vcpu)

    def ended(self) -> None:
        """The server has left the call, answered or not."""
        with self.changed:
            self._executions -= 1
            if not self._executions:
                self.changed.notify_all()

    def replace_schedule(self, schedule: Schedule | None) -> None:
        """Arm ``schedule`` instead of the one before it."""
        with self.changed:
            before, self._schedule = self._schedule, schedule
        if before is not None:
            before.__exit__()
        if schedule is not None:
            schedule.__enter__()

    def in_flight(self) -> int:
        """How many calls are waiting for their answers."""
        with self.changed:
            return len(self._in_flight)

    def drain(self) -> None:
        """Wait until no call uses the guest's memory any more."""
        with self.changed:
            self.changed.wait_for(lambda: not self._executions)

    def add_range(self, size: int) -> None:
        """Account for ``size`` more bytes of guest memory.

        Raises:
            TransportError: more than 16 GiB or 64 ranges (10).
        """
        with self.changed:
            if len(self.machine.memory.rmp.regions) >= wire.RANGES_LIMIT:
                raise TransportError(Code.LIMIT, f"more than {wire.RANGES_LIMIT} ranges")
            if self.bytes_added + size > wire.MEMORY_LIMIT:
                raise TransportError(Code.LIMIT, f"more than {wire.MEMORY_LIMIT >> 30} GiB")
            self.bytes_added += size

    def drop_range(self, size: int) -> None:
        """``size`` bytes are gone again."""
        with self.changed:
            self.bytes_added -= size
