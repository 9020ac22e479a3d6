"""Fuzz images: IGVM, TDVF, flash firmware."""

import contextlib
import struct
import sys
import zlib
from uuid import UUID

from fuzz_attest_common import run

from cvars.attest.measure.igvm import measure_igvm, parse_igvm
from cvars.attest.measure.ovmf import FOOTER, SEV_METADATA, TDX_METADATA, ImageError
from cvars.attest.measure.snp import Machine, measure_firmware
from cvars.attest.measure.tdvf import measure_tdvf


def igvm(*headers: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<II", kind, len(raw)) + raw + bytes(-len(raw) % 8) for kind, raw in headers)
    fixed = b"IGVM" + struct.pack("<IIIII", 1, 24, len(body), 24 + len(body), 0)
    return fixed[:20] + struct.pack("<I", zlib.crc32(fixed + body)) + body


def repaired(data: bytes) -> bytes:
    """``data`` with sizes and checksum made right, so that what is behind them is reached."""
    if len(data) < 24 or data[:4] != b"IGVM":
        return data
    out = bytearray(data)
    out[4:20] = struct.pack("<IIII", 1, 24, len(data) - 24, len(data))
    out[20:24] = bytes(4)
    out[20:24] = struct.pack("<I", zlib.crc32(out))
    return bytes(out)


def flash(guid: UUID, payload: bytes) -> bytes:
    image = bytearray(4096)
    image[-1024 : -1024 + len(payload)] = payload
    entry = struct.pack("<I", 1024) + struct.pack("<H", 22) + guid.bytes_le
    table = entry + struct.pack("<H", len(entry) + 18) + FOOTER.bytes_le
    image[-32 - len(table) : -32] = table
    return bytes(image)


def target(data: bytes) -> None:
    for one in (data, repaired(data)):
        for measure in (parse_igvm, measure_igvm, measure_tdvf):
            with contextlib.suppress(ImageError):
                measure(one)
        with contextlib.suppress(ImageError):
            measure_firmware(one, Machine(vcpus=2))


if __name__ == "__main__":
    platform = (1, struct.pack("<IBBHQ", 1, 2, 2, 1, 0))
    page = (0x302, struct.pack("<QIIIHH", 0x1000, 1, 0, 0, 0, 0))
    area = (0x301, struct.pack("<QII", 4096, 0, 0))
    insert = (0x303, struct.pack("<QII", 0x2000, 1, 0))
    context = (0x304, struct.pack("<QIIHH", 0xFFFFFFFFF000, 1, 0, 0, 0))
    sev = b"ASEV" + struct.pack("<III", 28, 1, 1) + struct.pack("<III", 0x800000, 4096, 1)
    tdvf = b"TDVF" + struct.pack("<III", 48, 1, 1) + struct.pack("<IIQQII", 0, 4096, 0xFFFFF000, 4096, 0, 1)
    images = [igvm(platform, page, area, insert, context), flash(SEV_METADATA, sev), flash(TDX_METADATA, tdvf)]
    sys.exit(run(target, images))
