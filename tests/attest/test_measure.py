"""Launch measurements against sev-snp-measure, and against values computed by hand here."""

import hashlib
import random
import struct
import zlib
from uuid import UUID

import pytest

from cvars.attest.measure import ovmf
from cvars.attest.measure.digest import LaunchDigest, PageType
from cvars.attest.measure.igvm import measure_igvm, parse_igvm
from cvars.attest.measure.mrtd import flash_mrtd
from cvars.attest.measure.ovmf import ImageError
from cvars.attest.measure.snp import Kernel, Machine, measure_firmware, measure_svsm
from cvars.attest.measure.tdvf import Kind, measure_tdvf
from cvars.attest.measure.vmsa import VCPU_TYPES, Vmm, cpu_signature

PAGE = 4096


def table(entries: dict[UUID, bytes]) -> bytes:
    """A GUIDed table, footer last."""
    body = b"".join(
        data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in reversed(list(entries.items()))
    )
    return body + struct.pack("<H", len(body) + 18) + ovmf.FOOTER.bytes_le


def flash_image(
    rng: random.Random, pages: int, entries: dict[UUID, bytes], *, sections=(), at: int = 2048
) -> bytes:
    """A random image with a table at its end and SEV metadata at ``at`` bytes before it."""
    image = bytearray(rng.randbytes(pages * PAGE))
    if sections:
        entries = entries | {ovmf.SEV_METADATA: struct.pack("<I", at)}
        meta = b"ASEV" + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
        meta += b"".join(struct.pack("<III", *one) for one in sections)
        image[-at : -at + len(meta)] = meta
    footer = table(entries)
    image[-32 - len(footer) : -32] = footer
    return bytes(image)


def random_sections(rng: random.Random, *, hashes: bool):
    kinds = [1, 2, 3, 4, 1] + ([0x10] if hashes else [])
    rng.shuffle(kinds)
    return [
        (0x800000 + n * 0x10000, PAGE if kind in (2, 3, 0x10) else PAGE * rng.randint(1, 5), kind)
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("seed", range(50))
def test_equals_sev_snp_measure_for_random_inputs(tmp_path, seed):
    guest = pytest.importorskip("sevsnpmeasure.guest")
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vmm_types import VMMType

    rng = random.Random(seed)
    with_kernel = rng.random() < 0.5
    entries = {
        ovmf.RESET_BLOCK: struct.pack("<I", 0x80B004),
        ovmf.HASH_TABLE: struct.pack("<II", 0x850000 + 16 * rng.randrange(200), 1024),
    }
    image = flash_image(rng, rng.randint(1, 6), entries, sections=random_sections(rng, hashes=True))
    (tmp_path / "ovmf.fd").write_bytes(image)
    kernel = Kernel(rng.randbytes(100), rng.choice([b"", rng.randbytes(50)]), rng.choice(["", "console=ttyS0"]))
    (tmp_path / "kernel").write_bytes(kernel.image)
    (tmp_path / "initrd").write_bytes(kernel.initrd)
    vcpus, name = rng.randint(1, 9), rng.choice(sorted(VCPU_TYPES))
    vmm, features = rng.choice(list(Vmm)), rng.choice([0x1, 0x21, rng.getrandbits(64)])
    theirs = guest.calc_launch_digest(
        SevMode.SEV_SNP,
        vcpus,
        VCPU_TYPES[name],
        str(tmp_path / "ovmf.fd"),
        str(tmp_path / "kernel") if with_kernel else "",
        str(tmp_path / "initrd") if with_kernel and kernel.initrd else "",
        kernel.cmdline,
        features,
        "",
        {Vmm.QEMU: VMMType.QEMU, Vmm.EC2: VMMType.ec2, Vmm.GCE: VMMType.gce}[vmm],
    )
    machine = Machine(vcpus, VCPU_TYPES[name], vmm, features)
    assert measure_firmware(image, machine, kernel=kernel if with_kernel else None) == theirs
    digest = LaunchDigest()
    digest.normal((1 << 32) - len(image), image)
    if not with_kernel:
        assert measure_firmware(image, machine, image_digest=digest.value) == theirs


@pytest.mark.parametrize("seed", range(10))
def test_svsm_mode_equals_sev_snp_measure(tmp_path, seed):
    guest = pytest.importorskip("sevsnpmeasure.guest")
    from sevsnpmeasure.sev_mode import SevMode

    rng = random.Random(seed)
    firmware = flash_image(rng, 4, {ovmf.RESET_BLOCK: struct.pack("<I", 0x80B004)})
    sections = random_sections(rng, hashes=False)
    svsm = flash_image(rng, 3, {ovmf.SVSM_INFO: struct.pack("<I", 0x1000 * rng.randrange(3))}, sections=sections)
    (tmp_path / "f").write_bytes(firmware)
    (tmp_path / "s").write_bytes(svsm)
    vcpus, variables = rng.randint(1, 4), PAGE * rng.randrange(3)
    theirs = guest.calc_launch_digest(
        SevMode.SEV_SNP_SVSM,
        vcpus,
        VCPU_TYPES["EPYC-Milan-v2"],
        str(tmp_path / "f"),
        "",
        "",
        "",
        1,
        svsm_file=str(tmp_path / "s"),
        ovmf_vars_size=variables,
    )
    machine = Machine(vcpus, VCPU_TYPES["EPYC-Milan-v2"])
    assert measure_svsm(firmware, svsm, machine, variables_bytes=variables) == theirs


def test_vcpu_types_are_those_of_sev_snp_measure():
    theirs = pytest.importorskip("sevsnpmeasure.vcpu_types").CPU_SIGS
    assert theirs == VCPU_TYPES
    assert cpu_signature(25, 17, 0) == 0xA10F10


def test_the_digest_of_one_page_by_hand():
    page = bytes(range(256)) * 16
    info = bytes(48) + hashlib.sha384(page).digest() + struct.pack("<HBBBBBBQ", 0x70, 1, 0, 0, 0, 0, 0, 0x1000)
    digest = LaunchDigest()
    digest.page(PageType.NORMAL, 0x1000, page)
    assert digest.value == hashlib.sha384(info).digest()
    digest.page(PageType.SECRETS, 0x2000)
    info = hashlib.sha384(info).digest() + bytes(48) + struct.pack("<HBBBBBBQ", 0x70, 5, 0, 0, 0, 0, 0, 0x2000)
    assert digest.value == hashlib.sha384(info).digest()


# --- IGVM ------------------------------------------------------------------------------------------


def variable(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def igvm_file(headers: list[tuple[int, bytes]], data: bytes = b"", version: int = 1) -> bytes:
    """Headers may hold file offsets relative to the data: they were made with `offset`."""
    fixed_size = 24 if version == 1 else 32
    body = b"".join(variable(kind, raw) for kind, raw in headers)
    total = fixed_size + len(body) + len(data)
    tail = b"" if version == 1 else struct.pack("<II", 0, 4096)
    fixed = b"IGVM" + struct.pack("<IIIII", version, fixed_size, len(body), total, 0) + tail
    crc = zlib.crc32(fixed + body)
    return fixed[:20] + struct.pack("<I", crc) + fixed[24:] + body + data


PLATFORM = (0x1, struct.pack("<IBBHQ", 1, 2, 2, 1, 0))
OTHER = (0x1, struct.pack("<IBBHQ", 2, 0, 3, 1, 0))


def page_data(gpa, offset, *, flags=0, kind=0, mask=1):
    return 0x302, struct.pack("<QIIIHH", gpa, mask, offset, flags, kind, 0)


def sample_igvm(version=1, cr0=0x31):
    headers = [
        PLATFORM,
        OTHER,
        (0x301, struct.pack("<QII", 2 * PAGE, 0, 0)),
        page_data(0x1000, 0),
        page_data(0x9000, 0, mask=2),
        page_data(0x2000, 0, kind=1),
        page_data(0x3000, 0, kind=2),
        page_data(0x4000, 0, kind=3),
        (0x304, struct.pack("<QIIHH", 0xFFFFFFFFF000, 1, 1, 0, 0)),
        (0x303, struct.pack("<QII", 0x5000, 1, 0)),
        page_data(0x7000, 2),
        page_data(0x8000, 0, flags=2),
        page_data(0x200000, 0, flags=1),
        page_data(0x600000, 0, flags=4),
    ]
    size = (24 if version == 1 else 32) + sum(len(variable(*one)) for one in headers)
    vmsa = bytearray(PAGE)
    vmsa[0x158:0x160] = struct.pack("<Q", cr0)
    page = bytes(range(256)) * 16
    fixed = [
        (kind, raw[:12] + struct.pack("<I", size + (raw[12] - 1) * PAGE) + raw[16:])
        if kind in (0x302, 0x304) and raw[12]
        else (kind, raw)
        for kind, raw in headers
    ]
    return igvm_file(fixed, bytes(vmsa) + page, version), bytes(vmsa), page


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("native_zero", [False, True])
def test_an_igvm_file_is_measured_in_file_order_and_kvm_measures_the_vmsa_last(version, native_zero):
    image, vmsa, page = sample_igvm(version)
    assert len(parse_igvm(image).headers) == 14
    for kvm in (True, False):
        want = LaunchDigest()

        def empty(gpa, want=want):
            want.page(PageType.ZERO, gpa) if native_zero else want.page(PageType.NORMAL, gpa, bytes(PAGE))

        empty(0x1000)
        want.page(PageType.SECRETS, 0x2000)
        want.page(PageType.CPUID, 0x3000)
        want.page(PageType.CPUID, 0x4000)
        if not kvm:
            want.page(PageType.VMSA, 0xFFFFFFFFF000, vmsa)
        want.page(PageType.UNMEASURED, 0x5000)
        want.page(PageType.UNMEASURED, 0x6000)
        want.page(PageType.NORMAL, 0x7000, page)
        want.page(PageType.UNMEASURED, 0x8000)
        for n in range(512):
            empty(0x200000 + n * PAGE)
        if kvm:
            want.vmsa(vmsa)
        assert measure_igvm(image, kvm=kvm, native_zero=native_zero) == want.value


def test_kvm_overrides_cr0_of_an_igvm_context():
    assert measure_igvm(sample_igvm(cr0=0x10)[0]) == measure_igvm(sample_igvm(cr0=0x31)[0])
    assert measure_igvm(sample_igvm(cr0=0x10)[0], kvm=False) != measure_igvm(sample_igvm(cr0=0x31)[0], kvm=False)


def test_bad_igvm_files_are_refused():
    image, *_ = sample_igvm()
    two = igvm_file([PLATFORM] + 2 * [(0x304, struct.pack("<QIIHH", 0, 1, 0, 0, 0))])
    huge = igvm_file(
        [PLATFORM, (0x301, struct.pack("<QII", 1 << 62, 0, 0)), (0x303, struct.pack("<QII", 0, 1, 0))]
    )
    bad = [
        b"",
        image[:-1],
        image + b"\0",
        b"IGVN" + image[4:],
        image[:30] + bytes([image[30] ^ 1]) + image[31:],
        igvm_file([OTHER]),
        two,
        huge,
        igvm_file([PLATFORM, page_data(0x1000, 0x7FFFFFFF)]),
        igvm_file([PLATFORM, page_data(0x1001, 0)]),
        igvm_file([PLATFORM, page_data(0x1000, 0, kind=9)]),
        igvm_file([PLATFORM, (0x302, b"short")]),
        igvm_file([PLATFORM, *[page_data(0, 0, flags=1)] * 600]),
    ]
    for one in bad:
        with pytest.raises(ImageError):
            measure_igvm(one)


# --- TDVF ------------------------------------------------------------------------------------------


def tdvf_image(rng, sections, *, at=2048):
    image = bytearray(rng.randbytes(4 * PAGE))
    meta = b"TDVF" + struct.pack("<III", 16 + 32 * len(sections), 1, len(sections))
    meta += b"".join(struct.pack("<IIQQII", *one) for one in sections)
    image[-at : -at + len(meta)] = meta
    footer = table({ovmf.TDX_METADATA: struct.pack("<I", at)})
    image[-32 - len(footer) : -32] = footer
    return bytes(image)


def test_mrtd_of_a_tdvf_image_by_hand(rng):
    sections = [
        (0, 2 * PAGE, 0xFFFFC000, 2 * PAGE, Kind.BFV, 1),
        (2 * PAGE, PAGE, 0xFFFFE000, PAGE, Kind.CFV, 0),
        (0, 0, 0x809000, 2 * PAGE, Kind.TD_HOB, 0),
        (0, 0, 0x900000, PAGE, Kind.PERM_MEM, 2),
    ]
    image = tdvf_image(rng, sections)
    sha = hashlib.sha384()
    for page in range(2):
        gpa = 0xFFFFC000 + page * PAGE
        sha.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + struct.pack("<Q", gpa) + bytes(104))
        for chunk in range(16):
            at = page * PAGE + chunk * 256
            sha.update(b"MR.EXTEND".ljust(16, b"\0") + struct.pack("<Q", gpa + chunk * 256) + bytes(104))
            sha.update(image[at : at + 256])
    for gpa in (0xFFFFE000, 0x809000, 0x80A000):
        sha.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + struct.pack("<Q", gpa) + bytes(104))
    assert measure_tdvf(image) == sha.digest()
    assert flash_mrtd(image) != measure_tdvf(image)


def test_bad_images_are_refused(rng):
    with pytest.raises(ImageError):
        measure_tdvf(rng.randbytes(4 * PAGE))
    for section in (
        (0, PAGE, 0xFFFFC001, PAGE, 0, 1),
        (0, PAGE, 0xFFFFC000, 1 << 60, 0, 1),
        (4 * PAGE, PAGE, 0xFFFFC000, PAGE, 0, 1),
        (0, 2 * PAGE, 0xFFFFC000, PAGE, 0, 1),
        (0, PAGE, 0xFFFFC000, PAGE, 77, 1),
        (0, PAGE, 0x809000, PAGE, Kind.TD_HOB, 0),
    ):
        with pytest.raises(ImageError):
            measure_tdvf(tdvf_image(rng, [section]))
    for data in (b"", bytes(100), flash_image(rng, 1, {}, sections=[(0, 1, 1)])):
        with pytest.raises(ImageError):
            measure_firmware(data, Machine())
    with pytest.raises(ImageError, match="reset block"):
        measure_firmware(flash_image(rng, 1, {}), Machine(vcpus=2))
    with pytest.raises(ImageError, match="hashes"):
        measure_firmware(flash_image(rng, 1, {}), Machine(), kernel=Kernel(b"k"))
    with pytest.raises(ImageError, match="vCPUs"):
        Machine(vcpus=0)
