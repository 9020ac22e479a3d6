"""Attestation: B49..B56, S30..S34, C8..C11, C16, C17, C19."""

import hashlib
import random
import struct
import threading
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsm_bridge import manifests
from svsm_bridge.abi import EXTENSION_GUID, PAGE, SVSM_BASE, UEFI_MM_GUID, VTPM_GUID
from svsm_bridge.adversary import good_vmsa
from svsm_bridge.manifests import (
    BadManifest,
    BootOutcome,
    BootPhase,
    Claims,
    KeySource,
    RollbackProtection,
    SecureBootMode,
    extension_manifest,
    manifest_source,
    parse_extension,
    parse_services_table,
    parse_uefi_mm,
    secure_boot_digest,
    services_table,
    uefi_mm_manifest,
)
from svsm_bridge.protocols.attestation import OPERATION, SINGLE, CertificatesTooBig, table_end
from svsm_bridge.service import Service
from tests.bridge.support import (
    BIG,
    BUSY,
    CA0,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    LOW_END,
    OTHER,
    SCRATCH,
    SUCCESS,
    UNSUPPORTED_CALL,
    UNSUPPORTED_PROTOCOL,
    WRITE,
    Box,
    Notebook,
    Untouched,
    note,
)

REPORT, MANIFEST, CERTIFICATES = BIG, BIG + 0x10000, BIG + 0x20000
NONCE = bytes(range(64))
UNTOUCHED = (1 << 64) - 1

CLAIMS = Claims(
    persistent=True,
    secure_boot=True,
    db_updatable=True,
    policy_locked=True,
    mor_locked=True,
    factory_state=True,
    simulated=True,
    store_format=1,
    rollback_protection=RollbackProtection.CRITICAL,
    key_source=KeySource.BROKER,
    secure_boot_mode=SecureBootMode.USER,
    boot_phase=BootPhase.RUNTIME,
    window_ms=0,
    epoch=7,
    counter=1234567890123,
    vm_identity=b"\1" * 32,
    key_release_id=b"\2" * 32,
    tee_key_thumbprint=b"\3" * 32,
    secure_boot_digest=b"\4" * 32,
    boot_outcome=BootOutcome.REPAIRED,
    commits_repaired=3,
)


class Reports:
    """A report source with a certificate table, or without one, or broken."""

    def __init__(self, table=b""):
        self.table = table
        self.asked = []
        self.broken = False

    def report(self, report_data):
        if self.broken:
            raise OSError("no report")
        self.asked.append(report_data)
        return b"RPRT" + bytes(0x4C) + report_data + bytes(0x4A0 - 0x50 - 64)

    def certificates(self):
        return self.table


def certificate_table(*sizes):
    """As the host lays it out: entries, a zero entry, data."""
    at = 24 * (len(sizes) + 1)
    entries, data = b"", b""
    for n, size in enumerate(sizes):
        entries += UUID(int=n + 1).bytes_le + struct.pack("<II", at + len(data), size)
        data += bytes([n + 1]) * size
    return entries + bytes(24) + data


def attest_box(profile="default", *, table=b"", claims=CLAIMS, source=None, reports=None):
    reports = reports or Reports(table)
    service = Service(
        Notebook(),
        manifests=source or manifest_source(lambda: claims),
        reports=reports,
        turn_s=0.02,
    )
    box = Box(profile, service=service, handler=service.handler)
    box.reports = reports
    return box


@pytest.fixture
def abox(profile):
    made = attest_box(profile, table=certificate_table(900, 1100))
    yield made
    assert made.audit.violations == []


def operation(
    *, report=REPORT, report_size=PAGE, nonce=OTHER, nonce_size=64, manifest=MANIFEST, manifest_size=PAGE,
    certificates=CERTIFICATES, certificates_size=0x4000, reserved=(0, b"\0" * 6, 0, 0), single=None,
):  # fmt: skip
    raw = OPERATION.build(
        {
            "report_gpa": report, "report_size": report_size, "reserved0": reserved[0],
            "nonce_gpa": nonce, "nonce_size": nonce_size, "reserved1": reserved[1],
            "manifest_gpa": manifest, "manifest_size": manifest_size, "reserved2": reserved[2],
            "certificate_gpa": certificates, "certificate_size": certificates_size, "reserved3": reserved[3],
        }
    )  # fmt: skip
    if single is not None:
        raw += single[0].bytes_le + struct.pack("<II", single[1], single[2] if len(single) > 2 else 0)
    return raw


def attest(box, *, at=SCRATCH, nonce_bytes=NONCE, raw=None, **fields):
    """Linux: RDX = R8 = -1 before the call; RAX and the sizes afterwards."""
    if nonce_bytes:
        box.poke(OTHER, nonce_bytes)
    raw = operation(**fields) if raw is None else raw
    box.poke(at, raw)
    number = int(len(raw) > 0x40)
    rax, regs = box.call(1, number, rcx=at, rdx=UNTOUCHED, r8=UNTOUCHED)
    return rax, (regs.rcx, regs.rdx, regs.r8)


def early(profile, at=SCRATCH):
    """RCX, RDX, R8 after an early error (C17)."""
    return (0, 0, 0) if profile == "linux-svsm" else (at, UNTOUCHED, UNTOUCHED)


def test_layout_sizes():
    assert (OPERATION.sizeof(), SINGLE.sizeof()) == (0x40, 0x58)
    assert manifests.EXTENSION.sizeof() == 0xA8
    assert (manifests.TABLE.sizeof(), manifests.TABLE_ENTRY.sizeof()) == (24, 24)


@pytest.mark.rule("C10")
def test_B49_a_size_query_and_one_byte_short(abox, profile):
    table = len(certificate_table(900, 1100))
    rdx = 0x4000 if profile == "coconut" else table  # C10
    size = 24 + 2 * 24 + 8 + 0xA8 + 16
    with Untouched(abox, but=[(CA0, 1), (SCRATCH, 0x58), (OTHER, 64)]):
        rax, sizes = attest(abox, report_size=0, manifest_size=0, certificates_size=0)
        assert (rax, sizes) == (INVALID_PARAMETER, (size, 0, 0x4A0))
        rax, sizes = attest(
            abox, report=0, report_size=0, manifest=0, manifest_size=0, certificates_size=PAGE // 2
        )
        assert (rax, sizes) == (INVALID_PARAMETER, (size, rdx, 0x4A0))
        for short in ("report", "manifest", "certificates"):
            exact = {"report_size": 0x4A0, "manifest_size": size, "certificates_size": rdx}
            exact[f"{short}_size"] -= 1
            assert attest(abox, **exact) == (INVALID_PARAMETER, (size, rdx, 0x4A0))
    exact = {"report_size": 0x4A0, "manifest_size": size, "certificates_size": rdx}
    assert attest(abox, **exact) == (SUCCESS, (size, rdx, 0x4A0))


def test_B50_the_linux_sequence(profile):
    """4 KiB, 4 KiB and 16 KiB; early errors leave -1; it grows its buffers and tries again, at most 3 times."""
    box = attest_box(
        profile,
        table=certificate_table(9000),
        source=lambda guid, version: bytes(9000) if (guid, version) == (UEFI_MM_GUID, 0) else None,
    )
    assert attest(box, report=REPORT + 1)[1] == early(profile)
    rooms = {"report_size": PAGE, "manifest_size": PAGE, "certificates_size": 0x1000}
    for _tries in range(3):
        rax, sizes = attest(box, **rooms)
        if rax != INVALID_PARAMETER:
            break
        assert UNTOUCHED not in sizes
        rooms = {
            "report_size": max(PAGE, sizes[2]), "manifest_size": max(PAGE, sizes[0]),
            "certificates_size": max(0x1000, sizes[1]),
        }  # fmt: skip
    assert rax == SUCCESS


@pytest.mark.parametrize("size", [0, 1, 63, 65, 4096, 0xFFFF])
def test_B51_C19_nonce_sizes(abox, profile, size):
    any_length = profile == "linux-svsm" and 0 < size <= PAGE
    rax, sizes = attest(abox, nonce_bytes=bytes(min(size, PAGE)), nonce_size=size, certificates_size=0)
    assert rax == (SUCCESS if any_length else INVALID_PARAMETER)
    if any_length:
        manifest = abox.peek(MANIFEST, sizes[0])
        assert abox.reports.asked[-1] == hashlib.sha512(bytes(size) + manifest).digest()
    else:
        assert sizes == early(profile)


@pytest.mark.parametrize("where", [OTHER + PAGE - 63, SVSM_BASE, LOW_END, (1 << 64) - 64])
def test_B51_nonces_that_cannot_be_read(abox, profile, where):
    with Untouched(abox, but=[(CA0, 1), (SCRATCH, 0x58)]):
        rax, sizes = attest(abox, nonce_bytes=b"", nonce=where)
    assert (rax, sizes) == (INVALID_PARAMETER, early(profile))


@pytest.mark.rule("S22", "P01")
@pytest.mark.parametrize("shift", [-63, -1, 0, 8, 0x3F, 0x57])
def test_B51_a_nonce_that_overlaps_its_operation(abox, profile, shift):
    """Found by B65: the operation's bytes would be fetched again as the nonce."""
    raw = operation(nonce=SCRATCH + 0x100 + shift, single=(UEFI_MM_GUID, 0))
    assert attest(abox, at=SCRATCH + 0x100, raw=raw) == (INVALID_PARAMETER, early(profile, SCRATCH + 0x100))
    for beside in (SCRATCH + 0x100 - 64, SCRATCH + 0x158):
        assert (
            attest(abox, at=SCRATCH + 0x100, raw=operation(nonce=beside, single=(UEFI_MM_GUID, 0)))[0] == SUCCESS
        )


@pytest.mark.rule("S20")
def test_B51_a_nonce_in_a_vmsa_page(abox, profile):
    """The guest VMPL may read its VMSA; the service takes no input from there."""
    abox.poke(BIG + 0x100000, good_vmsa(2, 1))
    assert abox.call(0, 2, rcx=BIG + 0x100000, rdx=BIG + 0x101000, r8=2)[0] == SUCCESS
    assert attest(abox, nonce_bytes=b"", nonce=BIG + 0x100000) == (INVALID_PARAMETER, early(profile))


@pytest.mark.rule("C17")
def test_B51_each_reserved_byte(abox, profile):
    good = operation(single=(UEFI_MM_GUID, 0))
    spots = [*range(0xC, 0x10), *range(0x1A, 0x20), *range(0x2C, 0x30), *range(0x3C, 0x40), *range(0x54, 0x58)]
    for spot in spots:
        raw = bytearray(good)
        raw[spot] = 1
        assert attest(abox, raw=bytes(raw)) == (INVALID_PARAMETER, early(profile))
    assert attest(abox, raw=good)[0] == SUCCESS


@pytest.mark.parametrize("at", [SCRATCH + 1, SCRATCH + 4, SCRATCH + PAGE - 0x38])
def test_B51_C8_where_the_operation_lies(abox, profile, at):
    rax, _ = attest(abox, at=at)
    assert rax == (SUCCESS if profile == "coconut" else INVALID_PARAMETER)


@pytest.mark.parametrize("at", [SVSM_BASE, LOW_END - 0x20, 0, (1 << 64) - 8])
def test_B51_an_operation_that_cannot_be_read(abox, profile, at):
    rax, regs = abox.call(1, 0, rcx=at, rdx=UNTOUCHED, r8=UNTOUCHED)
    assert (rax, (regs.rcx, regs.rdx, regs.r8)) == (INVALID_PARAMETER, early(profile, at))


@pytest.mark.rule("S30", "S31")
def test_B52_the_report_binds_nonce_and_manifest(abox, profile):
    rax, (manifest_size, certificates_size, report_size) = attest(abox)
    assert (rax, report_size) == (SUCCESS, 0x4A0)
    manifest = abox.peek(MANIFEST, manifest_size)
    report = abox.peek(REPORT, report_size)
    assert report[0x50:0x90] == hashlib.sha512(NONCE + manifest).digest()
    flipped = bytes([manifest[0] ^ 1]) + manifest[1:]
    assert report[0x50:0x90] != hashlib.sha512(NONCE + flipped).digest()
    table = certificate_table(900, 1100)
    assert abox.peek(CERTIFICATES, len(table)) == table
    assert certificates_size == (0x4000 if profile == "coconut" else len(table))
    assert abox.peek(MANIFEST + manifest_size, 16) == bytes(16)


@pytest.mark.rule("S33")
def test_B53_the_services_table(abox):
    _, (size, _, _) = attest(abox)
    table = abox.peek(MANIFEST, size)
    services = parse_services_table(table)
    assert list(services) == [UEFI_MM_GUID, EXTENSION_GUID]
    assert parse_uefi_mm(services[UEFI_MM_GUID]) == 7
    assert parse_extension(services[EXTENSION_GUID]) == CLAIMS
    assert table[:16] == UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb").bytes_le
    assert struct.unpack_from("<II", table, 16) == (len(table), 2)
    assert struct.unpack_from("<II", table, 40) == (72, 8)
    assert struct.unpack_from("<II", table, 64) == (80, 0xA8 + 16)


def test_B53_no_services(profile):
    box = attest_box(profile, source=lambda guid, version: None)
    rax, (size, _, _) = attest(box)
    assert (rax, size) == (SUCCESS, 24)
    assert parse_services_table(box.peek(MANIFEST, 24)) == {}


@given(raw=st.binary(max_size=300))
def test_B53_our_reader_never_crashes(raw):
    for head in (b"", UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb").bytes_le):
        try:
            parse_services_table(head + raw)
        except BadManifest:
            continue


def test_B53_a_mutated_table_is_read_or_refused():
    rng = random.Random(1)
    good = services_table([(UEFI_MM_GUID, uefi_mm_manifest(CLAIMS)), (EXTENSION_GUID, extension_manifest(CLAIMS))])
    refused = 0
    for _ in range(4000):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            for raw in parse_services_table(bytes(bad)).values():
                parse_extension(raw)
        except BadManifest:
            refused += 1
    assert refused > 1000
    with pytest.raises(BadManifest, match="twice"):
        parse_services_table(services_table([(UEFI_MM_GUID, b"1"), (UEFI_MM_GUID, b"2")]))
    with pytest.raises(BadManifest):
        parse_services_table(good + b"\0")
    with pytest.raises(BadManifest, match="behind"):
        parse_services_table(good[:16] + struct.pack("<I", len(good) + 1) + good[20:] + b"\0")
    unknown = services_table([(UUID(int=9), b"later"), (UEFI_MM_GUID, bytes(8))])
    assert parse_services_table(unknown)[UUID(int=9)] == b"later"


@pytest.mark.rule("C9")
def test_B54_single_services(abox, profile):
    assert attest(abox, single=(UEFI_MM_GUID, 0))[1][0] == 8
    assert abox.peek(MANIFEST, 8) == struct.pack("<II", 0, 7)
    for service, version in ((UEFI_MM_GUID, 1), (EXTENSION_GUID, 0), (EXTENSION_GUID, 2)):
        assert attest(abox, single=(service, version)) == (INVALID_PARAMETER, early(profile))
    for service in (UUID(int=5), VTPM_GUID):
        rax, sizes = attest(abox, single=(service, 0))
        if profile == "linux-svsm":
            assert (rax, sizes[0], sizes[2]) == (SUCCESS, 0, 0x4A0)
        else:
            assert (rax, sizes) == (UNSUPPORTED_PROTOCOL, early(profile))
    rax, sizes = attest(abox, single=(EXTENSION_GUID, 1))
    assert rax == SUCCESS
    assert parse_extension(abox.peek(MANIFEST, sizes[0])) == CLAIMS


def test_B54_tlvs():
    more = extension_manifest(CLAIMS, more=[(2, b"later"), (0x7FFF, b"")])
    assert parse_extension(more) == CLAIMS
    with pytest.raises(BadManifest, match="critical"):
        parse_extension(extension_manifest(CLAIMS, more=[(0x8000, b"")]))
    with pytest.raises(BadManifest):
        parse_extension(extension_manifest(CLAIMS)[:-1])
    with pytest.raises(BadManifest):
        parse_extension(extension_manifest(CLAIMS) + b"\0")
    with pytest.raises(BadManifest, match="boot result"):
        parse_extension(extension_manifest(CLAIMS, more=[(1, b"short")]))
    cut = extension_manifest(CLAIMS, more=[(2, b"later")])
    for size in range(0xA8 + 1, len(cut)):
        if size == 0xA8 + 16:
            continue
        with pytest.raises(BadManifest):
            parse_extension(cut[:4] + struct.pack("<I", size) + cut[8:size])


@given(raw=st.binary(max_size=260))
def test_B54_any_bytes_are_read_or_refused(raw):
    for candidate in (raw, struct.pack("<II", 1, max(len(raw), 8)) + raw[8:]):
        for parse in (parse_extension, parse_uefi_mm):
            try:
                parse(candidate)
            except BadManifest:
                continue


@pytest.mark.rule("P37")
def test_B55_flags_tell_the_truth():
    off = Claims(persistent=False, secure_boot=False, db_updatable=True)
    assert uefi_mm_manifest(off) == bytes(8)  # bit 2 only with bit 1; a PK alone proves nothing
    assert parse_extension(extension_manifest(off)).db_updatable is False
    assert parse_uefi_mm(uefi_mm_manifest(CLAIMS)) == 7
    with pytest.raises(BadManifest):
        parse_uefi_mm(struct.pack("<II", 0, 4))
    for mode in RollbackProtection:
        claims = Claims(persistent=True, secure_boot=False, db_updatable=False, rollback_protection=mode)
        assert parse_extension(extension_manifest(claims)).rollback_protection is mode
    absent, empty = secure_boot_digest(None, None, None, None), secure_boot_digest(b"", b"", b"", b"")
    assert absent != empty
    assert absent == hashlib.sha256(b"\xff" * 32).digest()
    assert secure_boot_digest(b"p", b"k", b"d", b"x") != secure_boot_digest(b"pk", b"", b"d", b"x")


@pytest.mark.rule("S32")
def test_B55_manifests_are_taken_under_the_store_lock():
    held = []
    box = attest_box(source=lambda guid, version: held.append(box.service.lock.locked()) or None)
    attest(box)
    assert held
    assert all(held)


@pytest.mark.parametrize(
    "overlap",
    [{"manifest": REPORT}, {"certificates": REPORT}, {"certificates": MANIFEST, "manifest_size": 1},
     {"report": MANIFEST - PAGE, "report_size": PAGE + 1}],
)  # fmt: skip
def test_B56_overlapping_buffers(abox, profile, overlap):
    assert attest(abox, **overlap) == (INVALID_PARAMETER, early(profile))


@pytest.mark.rule("C16")
@pytest.mark.parametrize("name", ["report", "manifest", "certificates"])
def test_B56_misaligned_and_bad_buffers(abox, profile, name):
    base = {"report": REPORT, "manifest": MANIFEST, "certificates": CERTIFICATES}[name]
    want = INVALID_ADDRESS if profile == "linux-svsm" else INVALID_PARAMETER
    for shift in (1, 8, 0x800):
        assert attest(abox, **{name: base + shift}) == (want, early(profile))
    for bad in (SVSM_BASE, LOW_END, CA0, 1 << 51, (1 << 64) - PAGE):
        assert attest(abox, **{name: bad}) == (INVALID_ADDRESS, early(profile))
    abox.memory.rmp.rmpadjust(base, vmpl=2, perm=1)  # readable only
    assert attest(abox, **{name: base})[0] == INVALID_ADDRESS


def test_B56_certificate_buffers(abox, profile):
    assert attest(abox, certificates_size=0x4001) == (INVALID_PARAMETER, early(profile))
    abox.reports.table = b""
    assert attest(abox)[1][1] == 0
    abox.reports.table = bytes(64)
    assert attest(abox)[1][1] == 0
    abox.reports.table = certificate_table(0x5000)  # more than any buffer takes: the host says how much
    rax, sizes = attest(abox)
    assert (rax, sizes[1]) == (INVALID_PARAMETER, 0x6000)
    assert UNTOUCHED not in sizes

    def too_big():
        raise CertificatesTooBig(9)

    abox.reports.certificates = too_big
    rax, sizes = attest(abox)
    assert (rax, sizes[1], sizes[2]) == (INVALID_PARAMETER, 9 * PAGE, 0x4A0)


@given(table=st.binary(max_size=200))
def test_B56_the_table_s_end_is_found_in_any_bytes(table):
    end = table_end(table)
    assert 0 <= end <= len(table)
    if not any(table[:24]):
        assert end == 0


def test_B56_the_table_s_end():
    table = certificate_table(10, 20)
    assert table_end(table + b"junk") == len(table)
    assert table_end(UUID(int=1).bytes_le + struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24)) == 48


@pytest.mark.rule("C11")
def test_S34_a_report_source_that_fails(abox, profile):
    abox.reports.broken = True
    want = 0x80001000 if profile == "linux-svsm" else INVALID_REQUEST
    assert attest(abox) == (want, early(profile))
    abox.reports.broken = False
    abox.reports.report = lambda report_data: b"short"
    assert attest(abox) == (want, early(profile))
    abox.service.reports = None
    assert attest(abox) == (want, early(profile))


def test_S34_a_slow_report_source_makes_others_wait_not_hang():
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Reports):
        def report(self, report_data):
            inside.set()
            go_on.wait(10)
            return super().report(report_data)

    box = attest_box(reports=Slow())
    thread = threading.Thread(target=attest, args=(box,), kwargs={"certificates_size": 0})
    thread.start()
    assert inside.wait(10)
    box.poke(box.ap.ca, b"\1")
    box.poke(
        SCRATCH + PAGE, operation(nonce=OTHER, report=BIG + 0x40000, manifest=BIG + 0x50000, certificates_size=0)
    )
    assert box.call(1, 0, rcx=SCRATCH + PAGE, vcpu=box.ap)[0] == BUSY
    assert box.mm(note(WRITE, b"k", b"v"), vcpu=box.ap)[0] == SUCCESS  # the store is free meanwhile
    go_on.set()
    thread.join(10)


@pytest.mark.rule("C3")
@pytest.mark.parametrize("number", [2, 3, 0xFFFFFFFF])
def test_C3_unknown_calls(abox, profile, number):
    want = UNSUPPORTED_PROTOCOL if profile == "coconut" else UNSUPPORTED_CALL
    rax, regs = abox.call(1, number, rcx=1, rdx=2, r8=3)
    assert (rax, regs.rcx, regs.rdx, regs.r8) == (want, 1, 2, 3)
