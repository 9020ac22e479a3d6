"""Evidence as it arrives, and as the verifier takes it. Nothing in here raises to its caller for bad input.

`read_snp` and `read_tdx` take the wire forms of `attestation` 2.7; what cannot be read becomes `Unreadable`, which
`verify` turns into a rejected result with its rule. Limits (section 4) are checked before parsing.
"""

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from cvars.attest import strict_json
from cvars.attest.strict_json import JsonError

MAX_EVIDENCE: Final = 16 * 1024  # bytes of a report, a quote, a certificate table
MAX_EVENT_LOG: Final = 256 * 1024
MAX_COLLATERAL: Final = 256 * 1024
MAX_CERTIFICATES: Final = 16

Role: TypeAlias = Literal["ARK", "ASK", "VCEK", "VLEK", "CRL", "unknown"]


@dataclass(frozen=True, slots=True)
class Supplied:
    """A certificate (or revocation list) that came with the evidence, DER, and the role it was given."""

    role: Role
    data: bytes


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """A report with the certificates that came along. ``runtime`` is the JSON of an HCL envelope."""

    report: bytes
    certificates: tuple[Supplied, ...] = ()
    runtime: bytes | None = None
    form: str = "raw"
    tee: Literal["snp"] = "snp"


@dataclass(frozen=True, slots=True)
class TdxEvidence:
    """A quote, with collateral (nine-member JSON) and event log where they came along."""

    quote: bytes
    collateral: bytes | None = None
    event_log: bytes | None = None
    runtime: bytes | None = None
    form: str = "raw"
    tee: Literal["tdx"] = "tdx"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Evidence that could not be read: the rule and why."""

    tee: str
    rule: str
    detail: str


Evidence: TypeAlias = SnpEvidence | TdxEvidence | Unreadable


class FormError(ValueError):
    """Raised inside this package's readers: the wire form is violated."""


def decode_base64(value: Any, limit: int, what: str) -> bytes:  # noqa: ANN401
    """Standard base64 with padding of at most ``limit`` bytes.

    Raises:
        FormError: not a string, too long, or not base64.
    """
    if not isinstance(value, str) or len(value) > limit * 4 // 3 + 4:
        raise FormError(f"{what} is not base64 of at most {limit} bytes")
    try:
        out = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FormError(f"{what} is not standard base64") from None
    if len(out) > limit:
        raise FormError(f"{what} has {len(out)} bytes, at most {limit}")
    return out


def read_snp(primary: Any, certificates: tuple[Supplied, ...] = ()) -> SnpEvidence | Unreadable:  # noqa: ANN401
    """Read SNP evidence: bytes (a report, an HCL envelope, or JSON text), base64 text, or a parsed JSON object.

    ``certificates`` were supplied beside the evidence and come after its own.
    """
    from cvars.attest.snp import hcl, table, trustee  # noqa: PLC0415 - they import this module

    try:
        if isinstance(primary, bytes):
            if primary[:4] == hcl.SIGNATURE:
                envelope = hcl.parse_envelope(primary)
                if envelope.tee != "snp":
                    raise FormError("the envelope holds no SNP report")
                return SnpEvidence(envelope.report, certificates, envelope.runtime, "hcl")
            if primary.lstrip()[:1] != b"{":
                return SnpEvidence(primary, certificates)
            primary = strict_json.loads(primary)
        if isinstance(primary, str):
            return read_snp(decode_base64(primary, MAX_EVIDENCE, "the report"), certificates)
        if not isinstance(primary, dict):
            raise FormError("SNP evidence is a JSON object")
        if "attestation_report" in primary:
            found = trustee.read_structured(primary)
        elif "snp-report" in primary:
            found = _read_coconut(primary, table.read_table)
        else:
            raise FormError("neither the structured nor the proxy form of SNP evidence")
    except (FormError, JsonError) as wrong:
        return Unreadable("snp", "SNP-FMT", str(wrong))
    return replace(found, certificates=(*found.certificates, *certificates))


def _read_coconut(primary: dict[str, Any], read_table: Any) -> SnpEvidence:  # noqa: ANN401
    """`{"snp-report": b64, "certs-buf": b64 or null}` (2.7, form 3)."""
    strict_json.members(primary, {"snp-report"}, {"certs-buf"})
    report = decode_base64(primary["snp-report"], MAX_EVIDENCE, "snp-report")
    supplied: tuple[Supplied, ...] = ()
    if primary.get("certs-buf") is not None:
        supplied = read_table(decode_base64(primary["certs-buf"], MAX_EVIDENCE, "certs-buf"))
    return SnpEvidence(report, supplied, form="coconut")


def read_tdx(primary: Any, collateral: bytes | None = None) -> TdxEvidence | Unreadable:  # noqa: ANN401
    """Read TDX evidence: bytes (a quote or JSON text), base64 text, or the object of Trustee clients.

    That object is `{"quote": b64, "cc_eventlog": b64 or null}`. A ``collateral`` member (the nine-member object,
    or its text) is taken as well: it is signed, so it may come from anywhere.
    """
    try:
        if isinstance(primary, bytes):
            if primary.lstrip()[:1] != b"{":
                return TdxEvidence(primary, collateral)
            primary = strict_json.loads(primary)
        if isinstance(primary, str):
            return TdxEvidence(decode_base64(primary, MAX_EVIDENCE, "the quote"), collateral)
        members = strict_json.members(primary, {"quote"}, {"cc_eventlog", "collateral"})
        quote = decode_base64(members["quote"], MAX_EVIDENCE, "quote")
        log = members.get("cc_eventlog")
        event_log = None if log in (None, "") else decode_base64(log, MAX_EVENT_LOG, "cc_eventlog")
        own = members.get("collateral")
        if own is not None:
            text = own if isinstance(own, str) else json.dumps(own)
            collateral = text.encode()
    except (FormError, JsonError) as wrong:
        return Unreadable("tdx", "TDX-FMT", str(wrong))
    return TdxEvidence(quote, collateral, event_log, form="trustee")
