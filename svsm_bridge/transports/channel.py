"""Whole messages over a Unix stream socket, with file descriptors and deadlines (S64).

A message is read completely before anybody looks at it; file descriptors that nobody expects are closed.
"""

import array
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from svsm_bridge.transports import wire
from svsm_bridge.transports.wire import Code, TransportError

FDS_PER_MESSAGE: Final = 8  # one is the most that any message may carry; the kernel closes what is beyond
_ANCILLARY: Final = socket.CMSG_SPACE(FDS_PER_MESSAGE * array.array("i").itemsize)


class PeerGone(Exception):
    """The other side closed the connection, or was silent in the middle of a message for too long."""


@dataclass(slots=True)
class Message:
    """One message; whoever takes it owns ``fds`` and closes them."""

    kind: int
    flags: int
    tag: int
    payload: bytes
    fds: list[int]

    def close_fds(self) -> None:
        """Close what came with it."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Channel:
    """Reads by one thread at a time, writes by any."""

    def __init__(self, sock: socket.socket, *, partial_s: float = wire.PARTIAL_S) -> None:
        sock.setblocking(True)
        self.sock = sock
        self.partial_s = partial_s
        self._write = Lock()

    def receive(self, *, wait_s: float | None = None) -> Message | None:
        """The next message, or None at an orderly end between two messages.

        ``wait_s`` limits the wait for the first byte as well.

        Raises:
            PeerGone: cut in the middle, or a partial message older than ``partial_s``.
            TransportError: the header is not one of ours (codes 1, 2, 9).
        """
        if wait_s is not None and not self._readable(wait_s):
            raise PeerGone("no answer in time")
        try:
            head, ancillary, _, _ = self.sock.recvmsg(wire.header.size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise PeerGone(str(error)) from error
        fds: list[int] = []
        if ancillary:
            fds = _descriptors(ancillary)
        if not head:
            _close(fds)
            return None
        try:
            deadline = 0.0
            if len(head) < wire.header.size:
                deadline = time.monotonic() + self.partial_s
                head += self._rest(wire.header.size - len(head), deadline)
            magic, kind, message_flags, length, tag = wire.header.unpack(head)
            if magic != wire.MAGIC:
                raise TransportError(Code.MAGIC, "not this protocol")
            if length > wire.PAYLOAD_LIMIT:
                raise TransportError(Code.LENGTH, f"payload of {length} bytes", tag=tag)
            payload = b""
            if length:
                try:
                    payload = self.sock.recv(length, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise PeerGone(str(error)) from error
                else:
                    if not payload:
                        raise PeerGone("cut in the middle of a message")
                if len(payload) < length:
                    deadline = deadline or time.monotonic() + self.partial_s
                    payload += self._rest(length - len(payload), deadline)
        except BaseException:
            _close(fds)
            raise
        return Message(kind, message_flags, tag, payload, fds)

    def _readable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(max(seconds, 0) * 1000))

    def hung_up(self) -> bool:
        """The peer has closed its end, whether or not somebody has read so far."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _rest(self, size: int, deadline: float) -> bytes:
        got = bytearray()
        while len(got) < size:
            if not self._readable(deadline - time.monotonic()):
                raise PeerGone("a message stayed incomplete for too long")
            try:
                more = self.sock.recv(size - len(got), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerGone(str(error)) from error
            if not more:
                raise PeerGone("cut in the middle of a message")
            got += more
        return bytes(got)

    def send(self, kind: int, flags: int, tag: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one whole message; a peer that does not take it within ``partial_s`` is gone.

        Raises:
            PeerGone: it could not be sent.
        """
        self.send_raw(wire.header.pack(wire.MAGIC, kind, flags, len(payload), tag) + payload, fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes that are one message already."""
        with self._write:
            try:
                if fds:
                    rights = array.array("i", fds)
                    sent = self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                else:
                    try:
                        sent = self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    except BlockingIOError:
                        sent = 0
                if sent < len(data):
                    self._send_rest(data[sent:])
            except OSError as error:
                raise PeerGone(str(error)) from error

    def _send_rest(self, data: bytes) -> None:
        deadline = time.monotonic() + self.partial_s
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        while data:
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise PeerGone("the peer does not read its replies")
            try:
                data = data[self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue

    def shut(self) -> None:
        """End the connection; a blocked reader wakes up."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Give the socket back."""
        self.sock.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            some = array.array("i")
            some.frombytes(data[: len(data) - len(data) % some.itemsize])
            fds += some
    return fds


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
