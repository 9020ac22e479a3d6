"""The HCL envelope of a paravisor-based cloud guest. Source: `attestation` 2.7, form 4."""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from construct import Int32ul, Struct

from cvars.attest.evidence import MAX_EVIDENCE, FormError
from cvars.attest.snp.report import REPORT_BYTES

SIGNATURE: Final = b"HCLA"
REPORT_AT: Final = 0x20
RUNTIME_AT: Final = 0x4C0
TD_REPORT_BYTES: Final = 1024
REPORT_TYPES: Final[dict[int, Literal["snp", "tdx"]]] = {2: "snp", 4: "tdx"}
SHA256: Final = 1

HCL_HEADER: Final = Struct(
    "signature" / Int32ul,  # 0x00, "HCLA"
    "version" / Int32ul,  # 0x04, 1 or 2
    "report_size" / Int32ul,  # 0x08
    "request_type" / Int32ul,  # 0x0C
    "status" / Int32ul,  # 0x10
    "reserved" / Int32ul[3],  # 0x14
)  # 0x20 bytes
RUNTIME_HEADER: Final = Struct(
    "data_size" / Int32ul,  # 0x00, of this header and what follows
    "version" / Int32ul,  # 0x04
    "report_type" / Int32ul,  # 0x08: 2 SNP, 4 TDX
    "hash_type" / Int32ul,  # 0x0C: 1 SHA-256
    "variable_data_size" / Int32ul,  # 0x10
)  # 0x14 bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A report, and the JSON whose SHA-256 its report data carries."""

    tee: Literal["snp", "tdx"]
    report: bytes
    runtime: bytes

    @property
    def report_data(self) -> bytes:
        """What the report data must be: SHA-256 of the JSON bytes, rest zero."""
        return hashlib.sha256(self.runtime).digest() + bytes(32)


def parse_envelope(data: bytes) -> Envelope:
    """Take the envelope apart.

    Raises:
        FormError: sizes or types do not fit.
    """
    if len(data) > MAX_EVIDENCE or len(data) < RUNTIME_AT + RUNTIME_HEADER.sizeof():
        raise FormError(f"HCL envelope of {len(data)} bytes")
    header = HCL_HEADER.parse(data[:REPORT_AT])
    if data[:4] != SIGNATURE or header.version not in (1, 2):
        raise FormError("not an HCL envelope of version 1 or 2")
    runtime = RUNTIME_HEADER.parse(data[RUNTIME_AT : RUNTIME_AT + RUNTIME_HEADER.sizeof()])
    if runtime.report_type not in REPORT_TYPES or runtime.hash_type != SHA256:
        raise FormError(f"HCL report type {runtime.report_type}, hash type {runtime.hash_type}")
    start = RUNTIME_AT + RUNTIME_HEADER.sizeof()
    end = start + runtime.variable_data_size
    if end > len(data) or runtime.data_size != RUNTIME_HEADER.sizeof() + runtime.variable_data_size:
        raise FormError("HCL runtime data ends outside, or its two sizes disagree")
    if any(data[end:]):
        raise FormError("bytes after the HCL runtime data")
    tee = REPORT_TYPES[runtime.report_type]
    size = REPORT_BYTES if tee == "snp" else TD_REPORT_BYTES
    return Envelope(tee, data[REPORT_AT : REPORT_AT + size], data[start:end])
