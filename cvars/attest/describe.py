"""Evidence, field by field, by the names of the specifications. Nothing is verified here."""

from typing import Any, Final

from cvars.attest.certificates import Certificate, read_pem
from cvars.attest.certificates import load_certificate as load
from cvars.attest.der import DerError
from cvars.attest.evidence import Evidence, SnpEvidence, TdxEvidence
from cvars.attest.snp.products import line_of_cpuid
from cvars.attest.snp.report import ATTESTATION_REPORT, KEY_KINDS, PLATFORM_BITS, POLICY_BITS, SnpReport
from cvars.attest.tdx.pck import read_pck
from cvars.attest.tdx.quote import ATTRIBUTE_BITS, Quote, QuoteError, SgxReport, parse_quote

_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
_VERSIONS: Final = ("current_version", "committed_version")


def describe(evidence: Evidence) -> dict[str, Any] | None:
    """Fields by name, in the order of the layout; None when the evidence cannot be split."""
    if isinstance(evidence, SnpEvidence):
        try:
            return _snp(SnpReport.parse(evidence.report)) | {"form": evidence.form}
        except ValueError:
            return None
    if isinstance(evidence, TdxEvidence):
        try:
            return _tdx(parse_quote(evidence.quote)) | {"form": evidence.form}
        except QuoteError:
            return None
    return None


def _bits(value: int, names: dict[str, int]) -> str:
    on = [name for name, bit in names.items() if value >> bit & 1]
    return f"{value:#x}" + (f" ({', '.join(on)})" if on else "")


def _snp(report: SnpReport) -> dict[str, Any]:
    line = report.line or line_of_cpuid(report.cpuid_family, report.cpuid_model)
    out: dict[str, Any] = {}
    for field in ATTESTATION_REPORT.subcons:
        name, value = field.name, getattr(report, field.name)
        if name in _TCBS:
            layout = line or "Milan"
            tcb = report.tcbs(layout)[name.removesuffix("_tcb")].as_json()
            out[name] = " ".join(f"{part}={number}" for part, number in tcb.items())
        elif name in _VERSIONS:
            out[name] = f"{value[2]}.{value[1]}.{value[0]}"
        elif name == "policy":
            out[name] = _bits(value, POLICY_BITS) + f" ABI {report.abi[0]}.{report.abi[1]}"
        elif name == "platform_info":
            out[name] = _bits(value, PLATFORM_BITS)
        elif name == "flags":
            kind = KEY_KINDS.get(report.signing_key, "reserved")
            out[name] = f"{value:#x} (SIGNING_KEY {kind}" + (", AUTHOR_KEY_EN)" if report.author_key_en else ")")
        else:
            out[name] = value.hex() if isinstance(value, bytes) else value
    out["product"] = line or "by the certificate"
    return out


def _tdx(quote: Quote) -> dict[str, Any]:
    out: dict[str, Any] = {
        "version": quote.version,
        "attestation_key_type": quote.attestation_key_type,
        "tee_type": f"{quote.tee_type:#x}",
        "qe_vendor_id": quote.qe_vendor_id.hex(),
        "user_data": quote.user_data.hex(),
        "body_type": quote.body_type,
    }
    for name in type(quote.body).__dataclass_fields__:
        value = getattr(quote.body, name)
        if name == "td_attributes":
            out[name] = _bits(value, ATTRIBUTE_BITS)
        elif name == "rtmr":
            out |= {f"rtmr{index}": register.hex() for index, register in enumerate(value)}
        elif isinstance(value, bytes):
            out[name] = value.hex()
        elif value is not None:
            out[name] = f"{value:#x}"
    qe: SgxReport = quote.qe_report
    out |= {
        "qe.mr_signer": qe.mr_signer.hex(),
        "qe.isv_prod_id": qe.isv_prod_id,
        "qe.isv_svn": qe.isv_svn,
        "qe.auth_data": quote.auth_data.hex(),
        "trailing_bytes": len(quote.trailing),
    }
    return out | _pck(quote)


def _pck(quote: Quote) -> dict[str, Any]:
    try:
        chain: list[Certificate] = [load(one) for one in read_pem(quote.pck_chain, limit=4)]
        fields = read_pck(chain[0])
    except (DerError, IndexError) as wrong:
        return {"pck": f"cannot be read: {wrong}"}
    return {
        "pck.chain": " < ".join(one.common_name for one in chain),
        "pck.fmspc": fields.fmspc.hex(),
        "pck.pce_id": fields.pce_id.hex(),
        "pck.pce_svn": fields.pce_svn,
        "pck.components": " ".join(map(str, fields.components)),
        "pck.ppid": fields.ppid.hex(),
    }
