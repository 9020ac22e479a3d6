"""The guest's end of the socket transport, in Python. `clients/c` has the same in C."""

import itertools
import mmap
import os
import socket
from pathlib import Path
from typing import Final, NamedTuple

from svsm_bridge.abi import VMGEXIT, Outcome, Registers
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.transports import wire
from svsm_bridge.transports.channel import Channel, PeerGone
from svsm_bridge.transports.guest import CA_GPA, RAM_BASE, RAM_BYTES, GuestSide
from svsm_bridge.transports.wire import Kind, TransportError

__all__ = ["CallReply", "GuestClient", "Hello", "PageInfo", "ServerGone", "TransportError"]

CLIENT_NAME: Final = b"svsm_bridge python"


class ServerGone(Exception):
    """The server went away or stayed silent for twice its deadline: the VM is dead (S62, S63)."""


class Hello(NamedTuple):
    """What the server said of itself."""

    version: int
    roles: int
    features: int
    svsm_base: int
    svsm_size: int
    boot_ca: int
    core_version: int
    guest_vmpl: int
    session: int
    deadline_ms: int
    payload_limit: int


class CallReply(NamedTuple):
    """What a CALL came to. ``duration_ns`` as the server measured it."""

    outcome: Outcome
    ghcb_msr: int
    regs: Registers
    duration_ns: int


class PageInfo(NamedTuple):
    """PAGE_QUERY: ``bits`` 0 assigned, 1 validated, 2 VMSA, 3 2M, 4 CA; rights of VMPL0..3."""

    kind: int
    bits: int
    perm: bytes


class GuestClient(GuestSide):
    """One connection. ``start`` makes a whole guest out of it: RAM, boot vCPU, calling area."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.wait_s = 2 * wire.CALL_DEADLINE_S
        self.guest_vmpl = 2
        self._tags = itertools.count(1)
        super().__init__(mmap.mmap(-1, mmap.PAGESIZE))

    @classmethod
    def connect(cls, path: Path | str) -> "GuestClient":
        """Connect; HELLO comes next.

        Raises:
            ServerGone: nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise ServerGone(f"{path}: {error.strerror}") from error
        return cls(Channel(sock))

    @classmethod
    def start(cls, path: Path | str, *, ram_bytes: int = RAM_BYTES, guest_vmpl: int = 2) -> "GuestClient":
        """Boot a guest: connect, HELLO, one range of private RAM, boot vCPU 0 with its calling area."""
        client = cls.connect(path)
        try:
            client.hello(guest_vmpl=guest_vmpl)
            fd = sealed_memfd(ram_bytes)
            try:
                client.mem_add(fd, RAM_BASE, ram_bytes)
                client.ram = mmap.mmap(fd, ram_bytes, mmap.MAP_SHARED)
            finally:
                os.close(fd)
            client.vcpu_add(0, ca=CA_GPA)
        except BaseException:
            client.close()
            raise
        return client

    # --- messages ----------------------------------------------------------------------------------

    def ask(self, kind: int, payload: bytes, fds: tuple[int, ...] = ()) -> bytes:
        """Send one request and wait for its reply.

        Raises:
            TransportError: the server's error reply.
            ServerGone: no reply within twice the deadline.
        """
        tag = self.post(kind, payload, fds)
        while True:
            answered, reply = self.take()
            if answered == tag:
                if isinstance(reply, TransportError):
                    raise reply
                return reply

    def post(self, kind: int, payload: bytes, fds: tuple[int, ...] = ()) -> int:
        """Send a request and do not wait; its tag."""
        tag = next(self._tags) & 0xFFFFFFFF
        try:
            self.channel.send(kind, 0, tag, payload, fds)
        except PeerGone as gone:
            raise ServerGone(str(gone)) from gone
        return tag

    def take(self) -> tuple[int, bytes | TransportError]:
        """The next reply, whichever request it answers (S61): tag, and payload or error."""
        try:
            message = self.channel.receive(wait_s=self.wait_s)
        except (PeerGone, TransportError) as gone:
            raise ServerGone(str(gone)) from gone
        if message is None:
            raise ServerGone("the server closed the connection")
        message.close_fds()
        if message.flags & wire.FLAG_ERROR:
            code, detail = wire.error.unpack(message.payload[: wire.error.size])
            text = message.payload[wire.error.size :].decode("utf-8", "replace")
            return message.tag, TransportError(code, text, detail, tag=message.tag)
        return message.tag, message.payload

    def hello(
        self,
        *,
        roles: int = 3,
        features: int = 0,
        guest_vmpl: int = 2,
        apic_ids: int = 64,
        versions: tuple[int, int] = (1, 1),
    ) -> Hello:
        """Negotiate. ``roles``: bit 0 guest, bit 1 machine; ``guest_vmpl`` is 0 without the machine role."""
        request = wire.hello.pack(*versions, roles, features, guest_vmpl, apic_ids, bytes(8), CLIENT_NAME)
        f = wire.hello_reply.unpack(self.ask(Kind.HELLO, request))
        self.wait_s = 2 * f[11] / 1000
        self.guest_vmpl = f[8]
        return Hello(f[0], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[10], f[11], f[12])

    def mem_add(self, fd: int, gpa: int, size: int, *, offset: int = 0, kind: int = 1, state: int = 1) -> None:
        """Give the server a sealed memfd as guest memory (S60)."""
        self.ask(Kind.MEM_ADD, wire.mem_add.pack(gpa, size, offset, kind, state), (fd,))

    def mem_del(self, gpa: int, size: int) -> None:
        """Take a range away."""
        self.ask(Kind.MEM_DEL, wire.mem_del.pack(gpa, size))

    def vcpu_add(self, apic_id: int, *, ca: int = 0, sev_features: int = 1) -> None:
        """Add a vCPU; ``ca`` 0 for one that CREATE_VCPU will bring up."""
        self.ask(Kind.VCPU_ADD, wire.vcpu_add.pack(apic_id, 0, ca, sev_features))

    def page_state(self, gpa: int, size: int, op: int, *, source: int = 0) -> None:
        """Act as the hypervisor on pages (`wire.PageOp`)."""
        self.ask(Kind.PAGE_STATE, wire.page_state.pack(gpa, size, op, 0, source))

    def page_query(self, gpa: int) -> PageInfo:
        """How the server sees a page."""
        kind, bits, perm, _ = wire.page_query_reply.unpack(self.ask(Kind.PAGE_QUERY, wire.page_query.pack(gpa)))
        return PageInfo(kind, bits, perm)

    def call_payload(
        self, vcpu: int, regs: Registers, *, vmpl: int | None = None, exit_code: int = VMGEXIT
    ) -> bytes:
        """The payload of a CALL."""
        level = self.guest_vmpl if vmpl is None else vmpl
        return wire.call.pack(vcpu, level, bytes(3), exit_code, *regs.values(), 0)

    def enter_raw(
        self, vcpu: int, regs: Registers, *, vmpl: int | None = None, exit_code: int = VMGEXIT
    ) -> CallReply:
        """CALL, with everything that the server answers."""
        f = wire.call_reply.unpack(
            self.ask(Kind.CALL, self.call_payload(vcpu, regs, vmpl=vmpl, exit_code=exit_code))
        )
        return CallReply(Outcome(f[1]), f[2], Registers(*f[3:21]), f[21])

    # --- the guest ---------------------------------------------------------------------------------

    def enter(self, vcpu: int, regs: Registers) -> Outcome:
        """VMGEXIT."""
        reply = self.enter_raw(vcpu, regs)
        for name in ("rax", "rcx", "rdx", "r8"):
            setattr(regs, name, getattr(reply.regs, name))
        return reply.outcome

    def reset(self) -> None:
        """Platform reset."""
        self.ask(Kind.RESET, wire.reset.pack(1, 0))

    def close(self) -> None:
        """Power off."""
        self.channel.shut()
        self.channel.close()
        self.ram.close()
