"""The cross-process transport's server: Unix socket, shared memory, one guest or many (section 6).

For programs of any language that act as guest and as hypervisor. Test and development only: a production
process refuses this transport (S65).
"""

import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Final, TypeAlias, cast

from svsm_bridge.abi import U64
from svsm_bridge.dispatcher import CallTrace, Dispatcher
from svsm_bridge.handlers import MmHandler
from svsm_bridge.machine import Machine
from svsm_bridge.profile import DEFAULT, BridgeProfile
from svsm_bridge.service import CaptureSink, ManifestSource, ReportSource, Service, incident
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import Channel, Message
from svsm_bridge.transports.connection import Connection
from svsm_bridge.transports.guest_slot import VCPU_LIMIT, Execution, GuestSlot
from svsm_bridge.transports.wire import Code, Feature, Role, TransportError

#: after how long a running call stops being the only thing its connection does
HAND_OVER_S: Final = 0.005
TICK_S: Final = 0.005
CONNECTION_LIMIT: Final = 4096

Served: TypeAlias = MmHandler | Service
#: makes the service of one more guest
Factory: TypeAlias = Callable[[], Served]


def listen(path: Path, *, backlog: int = 128) -> socket.socket:
    """A listening socket at ``path``: mode 0600, in a folder of mode 0700 that is made when absent.

    Raises:
        OSError: the folder is somebody else's or open to others, or the path is taken.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user (mode 0700)")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


class SocketServer:
    """Serves guests on ``listener``.

    With one handler (or ``Service``) there is one guest: the first machine-role connection boots it, later
    connections join it, the last machine-role connection gone is power off, and the next one is a new boot.
    With a factory every machine-role connection is a guest of its own, and a connection without that role has
    none to join.

    ``on_fatal`` hears why a guest had to stop (``GuestMustStop``). ``test_features`` allows adversarial
    schedules and traces (S65).
    """

    def __init__(
        self,
        listener: socket.socket,
        served: Served | Factory,
        profile: BridgeProfile = DEFAULT,
        *,
        reports: ReportSource | None = None,
        manifests: ManifestSource | None = None,
        capture: CaptureSink | None = None,
        on_call: CallTrace | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
        deadline_s: float = wire.CALL_DEADLINE_S,
        partial_s: float = wire.PARTIAL_S,
        production: bool = False,
        test_features: bool = False,
    ) -> None:
        if production:
            raise ValueError("the socket transport is not offered in production mode")  # S65
        self.listener = listener
        self.profile = profile
        self.deadline_s = deadline_s
        self.partial_s = partial_s
        self.features = Feature.TDX | (Feature.ADVERSARIAL | Feature.TRACE if test_features else Feature(0))
        self.busy: set[Execution] = set()
        self._reports = reports
        self._manifests = manifests
        self._capture = capture
        self._on_call = on_call
        self._on_fatal = on_fatal
        self._factory: Factory | None = None
        self._only: Service | None = None
        if isinstance(served, Service):
            self._only = served
        elif hasattr(served, "handle") and not isinstance(served, type):
            self._only = self._service(cast("MmHandler", served))
        else:
            self._factory = served
        self._slot: GuestSlot | None = None
        self._changed = Condition()
        self._connections: set[Connection] = set()
        self._sessions = itertools.count(1)
        self._stopped = Event()

    def _service(self, served: Served) -> Service:
        if isinstance(served, Service):
            return served
        return Service(served, manifests=self._manifests, reports=self._reports, capture=self._capture)

    # --- life --------------------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Accept connections until ``stop``; the listener is closed at the end."""
        supervisor = Thread(target=self._supervise, name="svsm-supervisor", daemon=True)
        supervisor.start()
        try:
            while not self._stopped.is_set():
                try:
                    peer, _ = self.listener.accept()
                except OSError as error:
                    if self._stopped.is_set():
                        break
                    incident("accept", error)  # out of descriptors, most often: wait for some to come back
                    self._stopped.wait(0.1)
                    continue
                try:
                    self._accept(peer)
                except OSError as error:
                    incident("accept", error)
                    peer.close()
        finally:
            self.stop()
            self.listener.close()
            supervisor.join()

    def start(self) -> Thread:
        """Serve on a thread of its own."""
        thread = Thread(target=self.serve_forever, name="svsm-server", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Close all connections and accept no more; calls in their commit run to their end."""
        self._stopped.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.shut()

    def wait_closed(self, timeout_s: float = 10.0) -> bool:
        """Wait until the last connection has been given back."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._connections and self._slot is None, timeout_s)

    def _accept(self, peer: socket.socket) -> None:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", credentials)[1]
        if uid != os.geteuid():  # S65: nobody else's guest
            peer.close()
            return
        connection = Connection(self, Channel(peer, partial_s=self.partial_s))
        with self._changed:
            full = len(self._connections) >= CONNECTION_LIMIT or self._stopped.is_set()
            if not full:
                self._connections.add(connection)
        if full:
            peer.close()
            return
        try:
            self._read_on(connection, 0)
        except RuntimeError as error:  # no more threads
            incident("connection", error)
            self.gone(connection)

    def _read_on(self, connection: Connection, epoch: int) -> None:
        Thread(target=connection.read_loop, args=(epoch,), name=f"svsm-reader-{epoch}", daemon=True).start()

    def _supervise(self) -> None:
        """Watch the calls under way: hand the reader role over after a moment, answer BUSY at the deadline."""
        while not self._stopped.wait(TICK_S):
            if not self.busy:
                continue
            now = time.monotonic()
            for execution in list(self.busy):
                waited = now - execution.started
                if waited < HAND_OVER_S:
                    continue
                try:
                    self._attend(execution, late=waited >= self.deadline_s)
                except RuntimeError as error:  # no more threads: the next tick tries again
                    incident("supervisor", error)

    def _attend(self, execution: Execution, *, late: bool) -> None:
        connection = execution.connection
        epoch = connection.hand_over(execution)
        if epoch is not None:
            self._read_on(connection, epoch)
        if late and not execution.told:
            Thread(target=connection.answer_busy, args=(execution,), daemon=True).start()
            execution.told = True  # once: a call that has begun its effect is finished, whatever it takes

    # --- guests ------------------------------------------------------------------------------------

    def hello(self, connection: Connection, message: Message) -> None:
        """Negotiate, and find or boot the guest of ``connection``."""
        asked = wire.hello.unpack(message.payload)
        lowest, highest, roles, features, vmpl, apic_ids, reserved, _ = asked
        if not lowest <= wire.VERSION <= highest:
            raise TransportError(
                Code.VERSION, f"versions {lowest}..{highest}, this is {wire.VERSION}", wire.VERSION
            )
        if any(reserved) or roles & ~3:
            raise TransportError(Code.RESERVED, "reserved bytes of HELLO are not zero")
        machine_role = bool(roles & Role.MACHINE)
        if not roles or (machine_role and not 1 <= vmpl <= 3):
            raise TransportError(Code.ROLE, f"roles {roles}, guest VMPL {vmpl}", vmpl)
        if not machine_role and vmpl:
            raise TransportError(Code.RESERVED, "only the machine role states the guest VMPL")
        if machine_role and not 1 <= apic_ids <= VCPU_LIMIT:
            raise TransportError(Code.LIMIT, f"{apic_ids} APIC ids, 1..{VCPU_LIMIT} are served", VCPU_LIMIT)
        connection.features = features & self.features
        connection.roles = Role(roles)
        slot = self._join(connection, machine_role=machine_role, vmpl=vmpl, apic_ids=apic_ids)
        connection.slot = slot
        machine = slot.machine
        boot = machine.vcpus.get(0) or next(iter(machine.vcpus.values()), None)
        reply = wire.hello_reply.pack(
            wire.VERSION, wire.PAGE_SHIFT, roles, connection.features, machine.memory.svsm_base,
            machine.memory.svsm_size, (boot.ca or 0) if boot else 0, 1, machine.guest_vmpl, bytes(3), slot.session,
            min(int(self.deadline_s * 1000), U64 >> 32), wire.PAYLOAD_LIMIT,
        )  # fmt: skip
        connection.channel.send(message.kind, wire.FLAG_REPLY, message.tag, reply)

    def _join(self, connection: Connection, *, machine_role: bool, vmpl: int, apic_ids: int) -> GuestSlot:
        with self._changed:
            self._changed.wait_for(lambda: self._slot is None or not self._slot.ending(), self.deadline_s * 2)
            slot = self._slot
            if slot is None or self._factory is not None:
                if not machine_role:
                    raise TransportError(Code.ORDER, "no machine has been started")
                slot = self._boot(vmpl, apic_ids)
                if self._factory is None:
                    self._slot = slot
            elif machine_role and (vmpl, apic_ids) != (slot.machine.guest_vmpl, slot.apic_ids):
                raise TransportError(Code.ROLE, "the machine was started with another VMPL or vCPU count", vmpl)
            slot.join(connection, machine_role=machine_role)
            return slot

    def _boot(self, vmpl: int, apic_ids: int) -> GuestSlot:
        service = self._only if self._factory is None else self._service(self._factory())
        assert service is not None
        service.reset()
        machine = Machine(service, profile=self.profile, guest_vmpl=vmpl, call_deadline_s=self.deadline_s)
        dispatcher = Dispatcher(machine, on_call=self._on_call)
        return GuestSlot(next(self._sessions), machine, dispatcher, apic_ids)

    def gone(self, connection: Connection) -> None:
        """A connection has ended: the last one with the machine role powers its guest off (S63)."""
        connection.shut()
        slot = connection.slot
        if slot is not None and connection.tracer is not None:
            slot.machine.unwatch(connection.tracer)
        if slot is not None and slot.leave(connection, machine_role=bool(connection.roles & Role.MACHINE)):
            for other in list(slot.connections):
                other.shut()
            slot.drain()  # a commit under way stands
            try:
                slot.machine.service.power_off()
            except Exception as error:
                incident("power off", error)
            slot.machine.close()
            with self._changed:
                if self._slot is slot:
                    self._slot = None
        connection.channel.close()
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def fatal(self, slot: GuestSlot | None, why: BaseException) -> None:
        """A guest must stop: close its connections, and say so. A server of one guest ends."""
        if slot is not None:
            for connection in list(slot.connections):
                connection.shut()
        if self._on_fatal is not None:
            self._on_fatal(why)
        if self._factory is None:
            self.stop()
