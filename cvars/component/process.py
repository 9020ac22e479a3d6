"""The trusted component as an operating-system process: opens what boot needs, serves, and ends cleanly.

This is where files, sockets, clocks and randomness enter.
"""

import errno
import fcntl
import os
import secrets
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvars import __version__
from cvars.component.boot import Component, Settings, Surroundings, boot
from cvars.component.hardware import SimulatedHardware, simulated_hardware
from cvars.errors import AnchorFenced, BadInput, OutsideFailure, StoreError, UsageMistake
from cvars.formats.pcap import CaptureWriter
from cvars.release.client import BrokerClient
from cvars.release.encoding import Malformed
from cvars.release.initdata import InitData, parse
from cvars.release.transport import http_transport
from cvars.store import FileMedium
from cvars.trace import ComponentStarted, ComponentStopped, JsonLines, Trace, silent
from svsm_bridge.errors import GuestMustStop
from svsm_bridge.service import ReportSource
from svsm_bridge.transports.socket import SocketServer, listen

PCAP_MAGIC: Final = b"\xd4\xc3\xb2\xa1"
_PATIENCE: Final = 500  # hundredths of a second


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. ``listen`` is the path of the Unix socket."""

    tee: str
    store: Path
    broker: str
    init_data: Path
    listen: Path
    hardware: Path
    on_rollback: str = "repair"
    takeover: bool = False
    pcap: Path | None = None
    redact: bool = False
    trace: Path | None = None
    skip_checks: frozenset[str] = frozenset()


class Stop:
    """Says that it is over; safe to set in a signal handler, which must take no lock."""

    def __init__(self) -> None:
        self._is_set = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """It is over."""
        self._is_set = True
        with suppress(BlockingIOError):
            os.write(self._write, b"x")

    def wait(self, seconds: float) -> bool:
        """Whether it is over, at the latest after ``seconds``."""
        if not self._is_set:
            select.select([self._read], [], [], seconds)
        return self._is_set


class Server:
    """A booted component behind its socket, until ``over`` is set or it must stop itself."""

    def __init__(
        self,
        component: Component,
        listener: socket.socket,
        over: "Stop",
        *,
        reports: ReportSource | None,
        capture: CaptureWriter | None,
    ) -> None:
        self._component = component
        self._over = over
        self._fatal: BaseException | None = None
        self._server = SocketServer(
            listener,
            component,
            reports=reports,
            manifests=component.manifests,
            capture=capture,
            on_fatal=self._must_stop,
        )

    def run(self) -> None:
        """Serve until ``over``. Raises the ``StoreError`` that made it stop by itself."""
        wait_s = 0.0
        server = self._server.start()
        while not self._over.wait(wait_s):
            try:
                wait_s = self._component.tick()
            except GuestMustStop as error:
                self._must_stop(error)
        self._server.stop()
        server.join(10)
        if self._fatal is not None:
            cause = self._fatal.__cause__
            raise cause if isinstance(cause, StoreError) else AnchorFenced(str(self._fatal))

    def _must_stop(self, error: BaseException) -> None:
        self._fatal = error
        self._over.set()


def serve(options: Options, ready: Callable[[Component], None]) -> None:
    """Boot and serve until SIGTERM or SIGINT; ``ready`` is called once guests can connect.

    Raises:
        CvarsError: why the guest was not started, or had to stop. Nothing half-made is left behind.
    """
    over = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):  # during the boot as well: a lease that was taken is given back
        signal.signal(number, lambda *_: over.set())
    with ExitStack() as stack:
        init_data = _read_init_data(options.init_data)
        trace = stack.enter_context(open_trace(options.trace))
        vm_id, simulated = init_data.vm_id or "", SimulatedHardware.simulated
        trace(ComponentStarted(tee=options.tee, vm_id=vm_id, pid=os.getpid(), simulated=simulated))
        blob = stack.enter_context(_locked(options.store))
        hardware = simulated_hardware(options.tee, options.hardware, init_data)
        listener = stack.enter_context(_listener(options.listen))
        capture = stack.enter_context(_capture(options.pcap, redact=options.redact, store=options.store))
        broker = BrokerClient(
            http_transport(options.broker),
            pins=init_data.broker_keys,
            evidence=hardware,
            random=secrets.token_bytes,
            clock=time.time,
            trace=trace,
            freshness=init_data.freshness,
        )
        settings = Settings(
            on_rollback=options.on_rollback,
            takeover=options.takeover,
            engine=f"cvars {__version__}",
            skip_checks=options.skip_checks,
        )
        clean = False
        try:
            around = Surroundings(
                FileMedium(blob), broker, secrets.token_bytes, time.monotonic, trace, hardware.simulated
            )
            component = boot(init_data, settings, around)
            with ExitStack() as booted:
                booted.callback(component.close)  # whatever happens from here on, the lease is given back
                server = Server(component, listener, over, reports=hardware.reports, capture=capture)
                ready(component)
                server.run()
            clean = True
        finally:
            trace(ComponentStopped(clean=clean))


def _read_init_data(path: Path) -> InitData:
    try:
        return parse(sys.stdin.read() if str(path) == "-" else path.read_text())
    except FileNotFoundError:
        raise UsageMistake(f"no such init-data file: {path}", hint="cvars guest init writes one") from None
    except (Malformed, UnicodeDecodeError) as error:
        raise BadInput(str(error), where=str(path)) from error
    except OSError as error:
        raise OutsideFailure(f"init-data cannot be read: {error.strerror}", where=str(path)) from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The blob, opened for reading and writing and locked against a second component of this host."""
    try:
        blob = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageMistake(
            f"no such store: {path}", hint=f"make a blank one: cvars store create {path} --size 1M"
        ) from None
    except OSError as error:
        raise OutsideFailure(f"the store cannot be opened: {error.strerror}", where=str(path)) from error
    try:
        mode = os.fstat(blob).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageMistake("a store is a file or a block device", where=str(path))
        try:
            fcntl.flock(blob, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutsideFailure("the store is locked by a running guest", where=str(path)) from None
        yield blob
    finally:
        os.close(blob)


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    """A Unix socket, mode 0600, in a folder that only we may enter (svsm-calls 6).

    One that a killed component left behind is replaced; another component's is left alone, then and at the end.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(path.parent):
            if path.is_socket() and not _answers(path):
                path.unlink()
            listener = listen(path)
            mine = path.lstat()
    except OSError as error:
        raise OutsideFailure(
            f"cannot listen: {error.strerror or error}",
            where=f"unix:{path}",
            hint="name another path in a private folder (mode 0700): --listen unix:PATH",
        ) from error
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError), _alone_in(path.parent):
            if os.path.samestat(path.lstat(), mine):
                path.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Between two that start at once: who looks for a dead socket there is the only one who does.

    Raises:
        OSError: the folder cannot be opened, or somebody holds it for longer than a start takes.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_PATIENCE):
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            raise BlockingIOError(errno.EAGAIN, f"another process holds {folder}")
        yield
    finally:
        os.close(held)


def _answers(path: Path) -> bool:
    """Whether anybody may be behind the socket: only a refused connection says that nobody is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


@contextmanager
def _capture(path: Path | None, *, redact: bool, store: Path) -> Iterator[CaptureWriter | None]:
    """The capture; it holds variable values, so only its owner may read it. Never written over the store."""
    if path is None:
        yield None
        return
    if path.exists() and (not path.is_file() or path.samefile(store)):
        raise UsageMistake(f"{path} is no place for a capture: it is left alone", hint="name a file of its own")
    if path.is_file() and path.stat().st_size and path.read_bytes()[:4] != PCAP_MAGIC:
        raise UsageMistake(f"{path} is there and is no capture: it is left alone", hint="name another file")
    try:
        out = os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb", buffering=0
        )
    except OSError as error:
        raise OutsideFailure(f"the capture cannot be written: {error.strerror}", where=str(path)) from error
    with out:
        yield CaptureWriter(out, clock=time.time, redact=redact)


@contextmanager
def open_trace(path: Path | None) -> Iterator[Trace]:
    """Where events go: lines of JSON, appended to a file of mode 0600, or nowhere. Raises ``OutsideFailure``."""
    if path is None:
        yield silent
        return
    try:
        out = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a")
    except OSError as error:
        raise OutsideFailure(f"the trace cannot be written: {error.strerror}", where=str(path)) from error
    with out:
        yield JsonLines(out, clock=time.time)
