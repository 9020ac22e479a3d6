"""One connection of the socket transport: reads messages, answers them, runs its own calls.

The thread that has read a CALL executes it, with no hand-over. When a call takes longer than a few
milliseconds, the server's supervisor gives the reader role to a fresh thread, so that calls of other vCPUs
and machine messages of the same connection go on (S61), and answers BUSY at the deadline (S62).
"""

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final

from svsm_bridge.abi import GHCB_RUN_VMPL_RESPONSE, Outcome, Registers
from svsm_bridge.errors import GuestMustStop, NeverResumed, SvsmResult
from svsm_bridge.service import incident
from svsm_bridge.transports import feature_messages, machine_messages, tdx, wire
from svsm_bridge.transports.channel import Channel, Message, PeerGone
from svsm_bridge.transports.guest_slot import Execution, GuestSlot
from svsm_bridge.transports.wire import CLOSING, Code, Kind, Role, TransportError

if TYPE_CHECKING:
    from svsm_bridge.transports.socket import SocketServer

#: who may send what; PAGE_QUERY, TRACE and HELLO are for anybody
_ROLE_OF: Final = {
    Kind.MEM_ADD: Role.MACHINE,
    Kind.MEM_DEL: Role.MACHINE,
    Kind.VCPU_ADD: Role.MACHINE,
    Kind.PAGE_STATE: Role.MACHINE,
    Kind.RESET: Role.MACHINE,
    Kind.SCHEDULE: Role.MACHINE,
    Kind.CALL: Role.GUEST,
    Kind.TDVMCALL: Role.GUEST,
}


class Connection:
    """The server's end of one socket. ``epoch`` numbers the holders of the reader role."""

    def __init__(self, server: "SocketServer", channel: Channel) -> None:
        self.server = server
        self.channel = channel
        self.slot: GuestSlot | None = None
        self.roles = Role(0)
        self.features = 0
        self.tracer: feature_messages.Tracer | None = None
        self.epoch = 0
        self._role = Lock()
        self._inline: Execution | None = None
        self._waiting = 0
        self._ended = False

    # --- reading -----------------------------------------------------------------------------------

    def read_loop(self, epoch: int) -> None:
        """Serve messages for as long as this thread holds the reader role."""
        try:
            while self._serve_one(epoch):
                pass
        except PeerGone:
            pass
        except TransportError as error:  # a header that is not one of ours
            self._error(error.tag, 0, error)
        except GuestMustStop as stop:
            self.server.fatal(self.slot, stop)
        except Exception as error:
            incident("connection", error)
            self._error(0, 0, TransportError(Code.INTERNAL, "internal error"))
        with self._role:
            last = self.epoch == epoch and not self._ended
            self._ended |= last
        if last:
            self.server.gone(self)

    def _serve_one(self, epoch: int) -> bool:
        message = self.channel.receive()
        if message is None:
            return False
        try:
            return self._answer(message, epoch)
        except TransportError as error:
            self._error(message.tag, message.kind, error)
            return error.code not in CLOSING
        except (PeerGone, GuestMustStop):
            raise
        except Exception as error:
            name = incident(f"message of type {message.kind}", error)
            self._error(message.tag, message.kind, TransportError(Code.INTERNAL, f"internal error {name}"))
            return True
        finally:
            if message.fds:
                message.close_fds()

    def _error(self, tag: int, kind: int, error: TransportError) -> None:
        text = error.text.encode()[: wire.ERROR_TEXT_LIMIT]
        payload = wire.error.pack(error.code, error.detail & 0xFFFFFFFF) + text
        with suppress(PeerGone):
            self.channel.send(kind, wire.FLAG_REPLY | wire.FLAG_ERROR, tag, payload)

    def _answer(self, message: Message, epoch: int) -> bool:
        kind = message.kind
        if message.flags:
            raise TransportError(Code.RESERVED, f"flags {message.flags:#x} in a request")
        if kind not in wire.REQUEST_BYTES:
            raise TransportError(Code.ORDER, f"no message has type {kind}")
        want = wire.REQUEST_BYTES[kind]
        if want is not None and len(message.payload) != want:
            raise TransportError(Code.LENGTH, f"{len(message.payload)} bytes, type {kind} has {want}")
        if len(message.fds) != (kind == Kind.MEM_ADD):
            raise TransportError(
                Code.FD, f"{len(message.fds)} file descriptors with type {kind}", len(message.fds)
            )
        slot = self.slot
        if kind == Kind.HELLO:
            if slot is not None:
                raise TransportError(Code.ORDER, "a second HELLO")
            self.server.hello(self, message)
            return True
        if slot is None:
            raise TransportError(Code.ORDER, "HELLO comes first")
        role = _ROLE_OF.get(Kind(kind))
        if role is not None and not self.roles & role:
            raise TransportError(Code.ROLE, f"type {kind} needs the role {role.name}", int(role))
        feature_messages.require_negotiated(self, Kind(kind))
        if kind == Kind.CALL:
            return self._call(slot, message, epoch)
        if kind == Kind.TDVMCALL:
            return self._tdvmcall(slot, message, epoch)
        if kind in feature_messages.NEEDS:
            reply = feature_messages.answer(self, slot, message)
        else:
            reply = machine_messages.answer(slot, message)
        self.channel.send(kind, wire.FLAG_REPLY, message.tag, reply)
        return True

    # --- calls -------------------------------------------------------------------------------------

    def _call(self, slot: GuestSlot, message: Message, epoch: int) -> bool:
        fields = wire.call.unpack(message.payload)
        apic_id, vmpl, reserved, exit_code = fields[:4]
        if reserved != b"\0\0\0" or fields[22]:
            raise TransportError(Code.RESERVED, "reserved bytes of CALL are not zero")
        vcpu = slot.machine.vcpus.get(apic_id)
        if vcpu is None:
            raise TransportError(Code.UNKNOWN_VCPU, f"no vCPU with APIC id {apic_id}", apic_id)
        if vmpl != vcpu.vmpl:  # a claim is compared, never believed (S14)
            raise TransportError(Code.ROLE, f"caller claims VMPL{vmpl}, the VMSA says VMPL{vcpu.vmpl}", vmpl)
        regs = Registers(*fields[4:22])
        asked = fields[4:22]

        def enter(execution: Execution) -> bytes:
            outcome = slot.dispatcher.enter(vcpu, regs, exit_code=exit_code, turn=execution)
            return _call_reply(apic_id, outcome, regs.values(), execution)

        def busy() -> bytes:
            return _call_reply(apic_id, Outcome.SERVED, (int(SvsmResult.BUSY), *asked[1:]), execution=None)

        return self.execute(slot, message, epoch, apic_id, enter=enter, busy=busy)

    def _tdvmcall(self, slot: GuestSlot, message: Message, epoch: int) -> bool:
        apic_id, l2, *regs = wire.tdvmcall.unpack(message.payload)
        vcpu = slot.machine.vcpus.get(apic_id)
        if vcpu is None:
            raise TransportError(Code.UNKNOWN_VCPU, f"no vCPU with APIC id {apic_id}", apic_id)
        if l2 != vcpu.vmpl:
            raise TransportError(Code.ROLE, f"caller claims L2 number {l2}, it is {vcpu.vmpl}", l2)
        asked = list(regs)

        def enter(execution: Execution) -> bytes:
            slot.tdx.tdcall(vcpu, l2, regs, turn=execution)
            return wire.tdvmcall.pack(apic_id, l2, *regs)

        def busy() -> bytes:
            asked[10 if asked[0] == tdx.VMCALL else 0] = tdx.RETRY
            return wire.tdvmcall.pack(apic_id, l2, *asked)

        return self.execute(slot, message, epoch, apic_id, enter=enter, busy=busy)

    def execute(
        self,
        slot: GuestSlot,
        message: Message,
        epoch: int,
        apic_id: int,
        *,
        enter: Callable[[Execution], bytes],
        busy: Callable[[], bytes],
    ) -> bool:
        """Run one call on this thread; true while the thread still holds the reader role."""
        with self._role:
            if self._waiting >= wire.QUEUE_LIMIT:
                raise PeerGone(f"more than {wire.QUEUE_LIMIT} calls are waiting")
        slot.begin(apic_id)
        execution = Execution(self, epoch, apic_id, message, busy)
        with self._role:
            self._inline = execution
            self._waiting += 1
        self.server.busy.add(execution)
        mine = False
        try:
            try:
                reply = enter(execution)
            finally:
                mine = execution.finish()
                if mine:
                    slot.answered(apic_id)
            if mine:
                self.channel.send(message.kind, wire.FLAG_REPLY, message.tag, reply)
        except NeverResumed:
            pass  # a schedule's hypervisor lets the caller wait for ever
        finally:
            self.server.busy.discard(execution)
            slot.ended()
            with self._role:
                self._waiting -= 1
                if self._inline is execution:
                    self._inline = None
        return self.epoch == epoch

    def hand_over(self, execution: Execution) -> int | None:
        """Give the reader role away while ``execution`` runs on; the new epoch, or None if it is over."""
        with self._role:
            if self._inline is not execution or self.epoch != execution.epoch or self._ended:
                return None
            self._inline = None
            self.epoch += 1
            return self.epoch

    def answer_busy(self, execution: Execution) -> None:
        """The deadline passed and nothing has happened: BUSY, with the registers as they came (S62)."""
        slot = self.slot
        if slot is None or not execution.expire():
            return
        slot.give_up(execution.vcpu)
        with suppress(PeerGone):
            self.channel.send(execution.kind, wire.FLAG_REPLY, execution.tag, execution.busy())

    def shut(self) -> None:
        """End the connection from outside."""
        self.channel.shut()


def _call_reply(apic_id: int, outcome: Outcome, regs: tuple[int, ...], execution: Execution | None) -> bytes:
    spent = int((time.monotonic() - execution.started) * 1e9) if execution is not None else 0
    return wire.call_reply.pack(apic_id, outcome, GHCB_RUN_VMPL_RESPONSE, *regs, spent)
