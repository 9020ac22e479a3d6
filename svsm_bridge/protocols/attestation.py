"""Protocol 1, attestation: what this SVSM serves, bound into a report of the platform.

Source: AMD 58019 "Attestation protocol"; svsm-calls 3.2, S30..S34. Sizes in bytes.
"""

import hashlib
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from uuid import UUID

from construct import Bytes, Int16ul, Int32ul, Int64ul, Struct

from svsm_bridge.abi import PAGE, Outputs, guid
from svsm_bridge.dispatcher import Call, Handler, Refused
from svsm_bridge.errors import (
    Busy,
    CallError,
    GuestMustStop,
    InvalidAddress,
    InvalidParameter,
    SvsmResult,
    UnsupportedProtocol,
)
from svsm_bridge.manifests import SERVICES, services_table
from svsm_bridge.pages import R, W
from svsm_bridge.service import Service, incident

OPERATION: Final = Struct(
    "report_gpa" / Int64ul,  # +0x00
    "report_size" / Int32ul,
    "reserved0" / Int32ul,
    "nonce_gpa" / Int64ul,  # +0x10
    "nonce_size" / Int16ul,
    "reserved1" / Bytes(6),
    "manifest_gpa" / Int64ul,  # +0x20
    "manifest_size" / Int32ul,
    "reserved2" / Int32ul,
    "certificate_gpa" / Int64ul,  # +0x30
    "certificate_size" / Int32ul,
    "reserved3" / Int32ul,
)
SINGLE: Final = Struct(
    "operation" / OPERATION,  # +0x00
    "guid" / Bytes(16),  # +0x40
    "manifest_version" / Int32ul,
    "reserved" / Int32ul,
)
_operation: Final = struct.Struct("<QI4sQH6sQI4sQI4s")
_single: Final = struct.Struct("<16sI4s")

REPORT_BYTES: Final = 0x4A0
NONCE_BYTES: Final = 64
CERTIFICATES_LIMIT: Final = 0x4000
_PARAMETER: Final = int(SvsmResult.INVALID_PARAMETER)


class CertificatesTooBig(Exception):
    """The host says that its certificate table needs ``pages`` pages (S31)."""

    def __init__(self, pages: int) -> None:
        super().__init__(f"the certificate table has {pages} pages")
        self.pages = pages


@dataclass(frozen=True, slots=True)
class Wanted:
    """One operation, checked: where outputs go, and what is asked for. ``single`` None: all services."""

    report: tuple[int, int]
    manifest: tuple[int, int]
    certificates: tuple[int, int]
    nonce: bytes
    single: tuple[UUID, int] | None


def attest_services(call: Call) -> Outputs:
    """Call 0: RCX -> operation of 0x40 bytes; the manifest is the table of all services."""
    return _attest(call, single=False)


def attest_single_service(call: Call) -> Outputs:
    """Call 1: RCX -> operation of 0x58 bytes, which names one service and a manifest version."""
    return _attest(call, single=True)


def _attest(call: Call, *, single: bool) -> Outputs:
    try:
        wanted = _checked(call, single=single)
        manifest = take_manifest(call, wanted.single)
        report = take_report(call, wanted.nonce, manifest)
    except (CallError, GuestMustStop) as error:
        if call.profile.c17_zero_outputs_on_error and isinstance(error, CallError) and not isinstance(error, Busy):
            raise Refused(error.result, str(error), (0, 0, 0)) from error
        raise
    certificates, size = b"", 0
    too_big = False
    if wanted.certificates[1]:
        certificates, size, too_big = _certificates(call)
    outputs: Outputs = (len(manifest), size, len(report))
    rooms = ((wanted.report, len(report)), (wanted.manifest, len(manifest)), (wanted.certificates, size))
    if too_big or any(room[1] < need for room, need in rooms):
        raise Refused(_PARAMETER, "a buffer is too small", outputs)
    call.turn.begin_effect()
    pieces = ((wanted.report, report), (wanted.manifest, manifest), (wanted.certificates, certificates))
    try:
        for (gpa, _), data in pieces:
            if data:
                call.memory.check(gpa, len(data), vmpl=call.vmpl, need=W)
        for (gpa, _), data in pieces:
            if data:
                call.write(gpa, data)
    except InvalidAddress as error:
        raise Refused(int(SvsmResult.INVALID_ADDRESS), str(error), outputs) from error
    return outputs


def _checked(call: Call, *, single: bool) -> Wanted:
    """All checks before anything is built, in the order of svsm-calls 3.2."""
    gpa = call.regs.rcx
    size = _operation.size + (_single.size if single else 0)
    if not call.profile.c8_operation_anywhere and (gpa % 8 or gpa % PAGE + size > PAGE):
        raise InvalidParameter(f"operation at {gpa:#x} is misaligned or crosses a page")
    raw = _read(call, gpa, size, "operation")
    f = _operation.unpack_from(raw)
    chosen = _single.unpack_from(raw, _operation.size) if single else None
    if any(any(f[n]) for n in (2, 5, 8, 11)) or (chosen is not None and any(chosen[2])):
        raise InvalidParameter("reserved bytes are not zero")
    nonce_gpa, nonce_size = f[3], f[4]
    if nonce_size != NONCE_BYTES and not (call.profile.c19_nonce_any_length and nonce_size):
        raise InvalidParameter(f"nonce of {nonce_size} bytes")
    if nonce_gpa % PAGE + nonce_size > PAGE:
        raise InvalidParameter("the nonce crosses a page")
    if nonce_gpa < gpa + size and gpa < nonce_gpa + nonce_size:  # its bytes would be read twice (S22)
        raise InvalidParameter("the nonce overlaps the operation")
    nonce = _read(call, nonce_gpa, nonce_size, "nonce")
    wanted = None
    if chosen is not None:
        wanted = (guid(chosen[0]), chosen[1])
        require_offered(call, *wanted)
    report, manifest, certificates = (f[0], f[1]), (f[6], f[7]), (f[9], f[10])
    ranges = (report, manifest, certificates) if certificates[1] else (report, manifest)
    if certificates[1] > CERTIFICATES_LIMIT:
        raise InvalidParameter(f"certificate buffer of {certificates[1]:#x} bytes")
    if any(at % PAGE for at, _ in ranges):
        raise Refused(call.profile.c16_misaligned_buffer, "a buffer is not page aligned")
    used = [(at, room) for at, room in ranges if room]  # a size of 0 asks for the size needed
    for at, room in used:
        call.memory.check(at, room, vmpl=call.vmpl, need=R | W)
    used.sort()
    if any(a + room > b for (a, room), (b, _) in pairwise(used)):
        raise InvalidParameter("two buffers overlap")
    return Wanted(report, manifest, certificates, nonce, wanted)


def _read(call: Call, gpa: int, size: int, what: str) -> bytes:
    try:
        return call.read(gpa, size)
    except InvalidAddress as error:
        raise InvalidParameter(f"the {what} is not readable") from error


def require_offered(call: Call, service: UUID, version: int) -> None:
    """The service is known and has a manifest of that version.

    Raises:
        UnsupportedProtocol: unknown service (C9).
        InvalidParameter: known, but not in that version.
    """
    offered = dict(SERVICES)
    source = call.machine.service.manifests
    served = call.machine.service
    with Held(call, served):
        if service not in offered or source is None or source(service, offered[service]) is None:
            if call.profile.c9_unknown_service_is_empty:
                return
            raise UnsupportedProtocol(f"service {service} is not known")
        if source(service, version) is None:
            raise InvalidParameter(f"service {service} has no manifest of version {version}")


class Held:
    """The store lock for a manifest, with the patience of S42."""

    def __init__(self, call: Call, service: Service) -> None:
        self._call = call
        self._service = service

    def __enter__(self) -> None:
        machine = self._call.machine
        self._service.take_turn(self._service.lock, self._call.vcpu.patience, machine.call_deadline_s)

    def __exit__(self, *_: object) -> None:
        self._service.lock.release()


def take_manifest(call: Call, single: tuple[UUID, int] | None) -> bytes:
    """The manifest bytes, one snapshot under the store lock (S32)."""
    service = call.machine.service
    source = service.manifests
    with Held(call, service):
        if single is not None:
            return (source(*single) if source is not None else None) or b""
        if source is None:
            return services_table([])
        found = [(name, source(name, version)) for name, version in SERVICES]
        return services_table([(name, manifest) for name, manifest in found if manifest is not None])


def take_report(call: Call, nonce: bytes, manifest: bytes) -> bytes:
    """A report for VMPL 0 over SHA-512(nonce || manifest) (S30).

    Raises:
        Refused: the source failed (S34, C11).
        Busy: it is still at work for another call.
    """
    return raw_report(call, hashlib.sha512(nonce + manifest).digest(), REPORT_BYTES)


def raw_report(call: Call, report_data: bytes, size: int) -> bytes:
    """A report over ``report_data``, exactly ``size`` bytes."""
    service = call.machine.service
    if service.reports is None:
        raise Refused(call.profile.c11_report_failed, "no report source")
    service.take_turn(service.report_lock, call.vcpu.patience, call.machine.call_deadline_s)
    try:
        report = service.reports.report(report_data)
        if len(report) != size:
            raise ValueError(f"report of {len(report)} bytes")
    except GuestMustStop:
        raise
    except Exception as error:
        raise Refused(call.profile.c11_report_failed, incident("report source", error)) from error
    finally:
        service.report_lock.release()
    return report


def _certificates(call: Call) -> tuple[bytes, int, bool]:
    """The host's table: bytes to write, RDX, and whether the host calls every buffer too small (S31)."""
    source = call.machine.service.reports
    assert source is not None
    try:
        table = source.certificates()
    except CertificatesTooBig as too_big:
        return b"", min(too_big.pages, 1 << 19) * PAGE, True
    except Exception as error:
        incident("certificates", error)
        return b"", 0, False
    if len(table) > CERTIFICATES_LIMIT:
        return b"", -(-len(table) // PAGE) * PAGE, True
    end = table_end(table)
    if not end:
        return b"", 0, False
    if call.profile.c10_certificates_full_size:
        return table.ljust(CERTIFICATES_LIMIT, b"\0"), CERTIFICATES_LIMIT, False
    return table[:end], end, False


def table_end(table: bytes) -> int:
    """End of the last entry of a certificate table (GUID, u32 offset, u32 length, ..., zeros), 0 without one.

    Host data: walked once and bounded, only to find its end; certificates are never parsed here.
    """
    end = at = 0
    while at + 24 <= len(table):
        entry = table[at : at + 24]
        at += 24
        if not any(entry):
            break
        offset, length = struct.unpack_from("<II", entry, 16)
        end = max(end, offset + length)
    return min(max(end, at if end else 0), len(table))


CALLS: Final[dict[int, Handler]] = {0: attest_services, 1: attest_single_service}
