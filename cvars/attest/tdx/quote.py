"""TDX quotes of version 4 and 5, and SGX quotes of version 3 for diagnostics. `attestation` 3.1.

Little-endian but for the raw ECDSA values. Offsets are in bytes. Sizes are checked before anything is sliced.
"""

from dataclasses import dataclass
from struct import Struct as PackedStruct
from typing import Final

from construct import Bytes, Int16ul, Int32ul, Int64ul, Struct

MAX_QUOTE: Final = 16 * 1024
INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TEE_TDX: Final = 0x81
TEE_SGX: Final = 0
ECDSA_P256: Final = 2
BODY_SGX: Final = 1
BODY_TD10: Final = 2
BODY_TD15: Final = 3
TYPE_PEM_CHAIN: Final = 5
TYPE_QE_REPORT: Final = 6

QUOTE_HEADER: Final = Struct(
    "version" / Int16ul,  # 0x00: 3 (SGX), 4, 5
    "attestation_key_type" / Int16ul,  # 0x02: 2 = ECDSA P-256
    "tee_type" / Int32ul,  # 0x04: 0x81 = TDX
    "reserved" / Bytes(4),  # 0x08: QE SVN and PCE SVN in version 3
    "qe_vendor_id" / Bytes(16),  # 0x0C
    "user_data" / Bytes(20),  # 0x1C
)  # 0x30 bytes
HEADER_BYTES: Final = 48
_HEADER: Final = PackedStruct("<HHI4s16s20s")  # the same layout for speed (D7); a test holds the two together
BODY_HEAD: Final = PackedStruct("<HI")  # version 5: body type, body size

TD_REPORT: Final = Struct(
    "tee_tcb_svn" / Bytes(16),  # 0x000
    "mr_seam" / Bytes(48),  # 0x010
    "mr_signer_seam" / Bytes(48),  # 0x040
    "seam_attributes" / Int64ul,  # 0x070
    "td_attributes" / Int64ul,  # 0x078
    "xfam" / Int64ul,  # 0x080
    "mr_td" / Bytes(48),  # 0x088
    "mr_config_id" / Bytes(48),  # 0x0B8
    "mr_owner" / Bytes(48),  # 0x0E8
    "mr_owner_config" / Bytes(48),  # 0x118
    "rtmr" / Bytes(48)[4],  # 0x148
    "report_data" / Bytes(64),  # 0x208
)  # 0x248 bytes
TD_REPORT_15_TAIL: Final = Struct(
    "tee_tcb_svn2" / Bytes(16),  # 0x248
    "mr_service_td" / Bytes(48),  # 0x258
)  # 0x288 bytes in all
TD10_BYTES: Final = 584
TD15_BYTES: Final = 648
_TD10: Final = PackedStruct("<16s48s48sQQQ48s48s48s48s48s48s48s48s64s")

SGX_REPORT: Final = Struct(
    "cpu_svn" / Bytes(16),  # 0x000
    "misc_select" / Int32ul,  # 0x010
    "reserved1" / Bytes(28),  # 0x014
    "attributes" / Bytes(16),  # 0x030
    "mr_enclave" / Bytes(32),  # 0x040
    "reserved2" / Bytes(32),  # 0x060
    "mr_signer" / Bytes(32),  # 0x080
    "reserved3" / Bytes(96),  # 0x0A0
    "isv_prod_id" / Int16ul,  # 0x100
    "isv_svn" / Int16ul,  # 0x102
    "reserved4" / Bytes(60),  # 0x104
    "report_data" / Bytes(64),  # 0x140
)  # 0x180 bytes
SGX_BYTES: Final = 384
_SGX: Final = PackedStruct("<16sI28s16s32s32s32s96sHH60s64s")

ATTRIBUTE_BITS: Final = {
    "debug": 0,
    "lass": 27,
    "sept_ve_disable": 28,
    "migratable": 29,
    "pks": 30,
    "key_locker": 31,
    "perfmon": 63,
}


class QuoteError(ValueError):
    """The bytes are not a quote: ``rule`` is TDX-FMT or TDX-HDR."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TdReport:
    """The TD report body, 1.0 or 1.5 (then the last two are there)."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: int
    td_attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None

    @staticmethod
    def parse(body: bytes) -> "TdReport":
        """Split 584 or 648 bytes."""
        fields = _TD10.unpack(body[:TD10_BYTES])
        tail = (body[584:600], body[600:648]) if len(body) == TD15_BYTES else ()
        return TdReport(*fields[:10], fields[10:14], fields[14], *tail)  # type: ignore[call-arg]

    def to_bytes(self) -> bytes:
        """The body again."""
        fields = {name: getattr(self, name) for name in TdReport.__dataclass_fields__}
        out = bytes(TD_REPORT.build(fields))
        if self.tee_tcb_svn2 is not None:
            out += TD_REPORT_15_TAIL.build(fields)
        return out

    def attribute(self, name: str) -> bool:
        """One bit of td_attributes."""
        return bool(self.td_attributes >> ATTRIBUTE_BITS[name] & 1)

    @property
    def module_version(self) -> int:
        """Major version of the TDX module: tee_tcb_svn[1]."""
        return self.tee_tcb_svn[1]


@dataclass(frozen=True, slots=True)
class SgxReport:
    """An enclave report: the quoting enclave's, and the body of an SGX quote."""

    cpu_svn: bytes
    misc_select: int
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes

    @staticmethod
    def parse(body: bytes) -> "SgxReport":
        """Split 384 bytes."""
        f = _SGX.unpack(body)
        return SgxReport(f[0], f[1], f[3], f[4], f[6], f[8], f[9], f[11])

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG."""
        return bool(self.attributes[0] & 2)


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote, split. The attestation key signed ``signed``; ``trailing`` follows the signature data."""

    raw: bytes
    version: int
    attestation_key_type: int
    tee_type: int
    reserved: bytes
    qe_vendor_id: bytes
    user_data: bytes
    body_type: int | None
    body: TdReport | SgxReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report_raw: bytes
    qe_report: SgxReport
    qe_signature: bytes
    auth_data: bytes
    pck_chain: bytes
    trailing: bytes

    @property
    def sgx(self) -> bool:
        """An SGX quote: for diagnostics only."""
        return isinstance(self.body, SgxReport)


class _Reader:
    """Takes slices and never reads past the end."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def take(self, size: int, what: str) -> bytes:
        if size > self.end - self.at:
            raise QuoteError("TDX-FMT", f"{what} of {size} bytes ends outside")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")


def parse_quote(raw: bytes) -> Quote:
    """Split a quote.

    Raises:
        QuoteError: a length does not fit (TDX-FMT), or a version or body nobody here knows (TDX-HDR).
    """
    if len(raw) > MAX_QUOTE:
        raise QuoteError("TDX-FMT", f"{len(raw)} bytes, at most {MAX_QUOTE}")
    reader = _Reader(raw, 0, len(raw))
    version, key_type, tee_type, reserved, vendor, user_data = _HEADER.unpack(reader.take(HEADER_BYTES, "header"))
    if version not in (3, 4, 5):
        raise QuoteError("TDX-HDR", f"quote version {version}")
    body_type, body_raw = _body(reader, version, tee_type)
    sgx = len(body_raw) == SGX_BYTES
    signed = raw[: reader.at]
    size = reader.number(4, "signature data length")
    inner = _Reader(raw, reader.at, reader.at + len(reader.take(size, "signature data")))
    trailing = raw[reader.at :]
    signature, key = inner.take(64, "signature"), inner.take(64, "attestation key")
    if version >= 4:
        kind, size = inner.number(2, "certification type"), inner.number(4, "certification size")
        if kind != TYPE_QE_REPORT:
            raise QuoteError("TDX-FMT", f"certification data of type {kind}, not {TYPE_QE_REPORT}")
        if size != inner.end - inner.at:
            raise QuoteError("TDX-FMT", f"certification data of {size} bytes in {inner.end - inner.at}")
    qe_raw, qe_signature = inner.take(SGX_BYTES, "QE report"), inner.take(64, "QE report signature")
    auth_data = inner.take(inner.number(2, "QE auth data length"), "QE auth data")
    kind, size = inner.number(2, "certification type"), inner.number(4, "certification size")
    if kind != TYPE_PEM_CHAIN:
        raise QuoteError("TDX-FMT", f"certification data of type {kind}, not {TYPE_PEM_CHAIN}")
    if size != inner.end - inner.at:
        raise QuoteError("TDX-FMT", f"certificate chain of {size} bytes in {inner.end - inner.at}")
    return Quote(
        raw=raw,
        version=version,
        attestation_key_type=key_type,
        tee_type=tee_type,
        reserved=reserved,
        qe_vendor_id=vendor,
        user_data=user_data,
        body_type=body_type,
        body=SgxReport.parse(body_raw) if sgx else TdReport.parse(body_raw),
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report_raw=qe_raw,
        qe_report=SgxReport.parse(qe_raw),
        qe_signature=qe_signature,
        auth_data=auth_data,
        pck_chain=inner.take(size, "certificate chain"),
        trailing=trailing,
    )


def _body(reader: _Reader, version: int, tee_type: int) -> tuple[int | None, bytes]:
    """Type (version 5 only) and bytes of the body."""
    sizes = {BODY_SGX: SGX_BYTES, BODY_TD10: TD10_BYTES, BODY_TD15: TD15_BYTES}
    if version == 5:
        kind, size = BODY_HEAD.unpack(reader.take(BODY_HEAD.size, "body type and size"))
        if kind not in sizes:
            raise QuoteError("TDX-HDR", f"body type {kind}")
        if size != sizes[kind]:
            raise QuoteError("TDX-FMT", f"body of type {kind} with {size} bytes")
        return kind, reader.take(size, "body")
    size = SGX_BYTES if tee_type == TEE_SGX or version == 3 else TD10_BYTES
    return None, reader.take(size, "body")


def build_quote(signed: bytes, signature_data: bytes, padding: int = 0) -> bytes:
    """A quote from its signed part and signature data."""
    return signed + len(signature_data).to_bytes(4, "little") + signature_data + bytes(padding)


def build_signature_data(
    *,
    signature: bytes,
    key: bytes,
    qe_report: bytes,
    qe_signature: bytes,
    auth_data: bytes,
    pck_chain: bytes,
) -> bytes:
    """The signature data of a version 4 or 5 quote."""
    inner = qe_report + qe_signature + len(auth_data).to_bytes(2, "little") + auth_data
    inner += TYPE_PEM_CHAIN.to_bytes(2, "little") + len(pck_chain).to_bytes(4, "little") + pck_chain
    return signature + key + TYPE_QE_REPORT.to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
