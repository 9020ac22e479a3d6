"""The structured JSON of Trustee clients, rebuilt to the signed bytes. Source: `attestation` 2.7, form 2."""

from typing import Any, Final

from cvars.attest.evidence import MAX_CERTIFICATES, FormError, Role, SnpEvidence, Supplied
from cvars.attest.snp.products import Tcb, line_of_cpuid
from cvars.attest.snp.report import build_report
from cvars.attest.strict_json import array, integer, members, octets

_U8: Final = 0xFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_BYTES: Final = {
    "family_id": 16,
    "image_id": 16,
    "report_data": 64,
    "measurement": 48,
    "host_data": 32,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "report_id": 32,
    "report_id_ma": 32,
    "chip_id": 64,
}
_INTEGERS: Final = {
    "version": ("version", _U32),
    "guest_svn": ("guest_svn", _U32),
    "policy": ("policy", _U64),
    "vmpl": ("vmpl", _U32),
    "sig_algo": ("signature_algo", _U32),
    "plat_info": ("platform_info", _U64),
    "key_info": ("flags", _U32),
}
_CPUID: Final = {
    "cpuid_fam_id": "cpuid_family",
    "cpuid_mod_id": "cpuid_model",
    "cpuid_step": "cpuid_stepping",
}
_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
_VERSIONS: Final = {"current": "current_version", "committed": "committed_version"}
_MIT: Final = ("launch_mit_vector", "current_mit_vector")
_REQUIRED: Final = {*_BYTES, *_INTEGERS, *_TCBS, *_VERSIONS, "signature"}
_CERT_TYPES: Final[dict[str, Role]] = {"ARK": "ARK", "ASK": "ASK", "VCEK": "VCEK", "VLEK": "VLEK", "CRL": "CRL"}
_MAX_CERTIFICATE: Final = 8192


def read_structured(value: dict[str, Any]) -> SnpEvidence:
    """Rebuild the 1184 bytes; what is not mentioned is zero.

    Raises:
        JsonError: a member is missing, unknown, of the wrong length or out of range.
        FormError: more certificates than `MAX_CERTIFICATES`, or of an unknown kind.
    """
    members(value, {"attestation_report"}, {"cert_chain"})
    report = members(value["attestation_report"], _REQUIRED, {*_CPUID, *_MIT})
    version = integer(report["version"], 0, _U32, "version")
    fields: dict[str, Any] = {
        field: integer(report[name], 0, top, name) for name, (field, top) in _INTEGERS.items()
    }
    fields |= {name: octets(report[name], size, name) for name, size in _BYTES.items()}
    cpuid = {field: _optional(report, name, _U8, present=version >= 3) for name, field in _CPUID.items()}
    fields |= cpuid
    turin = line_of_cpuid(cpuid["cpuid_family"], cpuid["cpuid_model"]) == "Turin" or cpuid["cpuid_family"] >= 0x1A
    fields |= {name: _tcb(report[name], name, turin=turin) for name in _TCBS}
    fields |= {field: _version(report[name], name) for name, field in _VERSIONS.items()}
    fields |= {name: _optional(report, name, _U64, present=version >= 5) for name in _MIT}
    signature = members(report["signature"], {"r", "s"})
    fields["signature_r"] = octets(signature["r"], 72, "r")
    fields["signature_s"] = octets(signature["s"], 72, "s")
    return SnpEvidence(build_report(**fields), _certificates(value.get("cert_chain")), form="structured")


def _optional(report: dict[str, Any], name: str, top: int, *, present: bool) -> int:
    """A member that a report has from some version on; null and absent are the same before it."""
    value = report.get(name)
    if value is None:
        if present:
            raise FormError(f"missing: {name}")
        return 0
    if not present and value != 0:
        raise FormError(f"{name} in a report whose version has none")
    return integer(value, 0, top, name)


def _tcb(value: Any, what: str, *, turin: bool) -> bytes:  # noqa: ANN401
    parts = members(value, {"bootloader", "tee", "snp", "microcode"}, {"fmc"})
    fmc = parts.get("fmc")
    if turin and fmc is None:
        raise FormError(f"{what} without fmc")
    if not turin and fmc not in (None, 0):
        raise FormError(f"{what} with fmc, which this processor does not have")
    numbers = {
        name: integer(parts[name], 0, _U8, f"{what}.{name}") for name in ("bootloader", "tee", "snp", "microcode")
    }
    return Tcb(**numbers, fmc=integer(fmc, 0, _U8, f"{what}.fmc") if turin else None).to_bytes()


def _version(value: Any, what: str) -> bytes:  # noqa: ANN401
    parts = members(value, {"major", "minor", "build"})
    return bytes((*(integer(parts[name], 0, _U8, f"{what}.{name}") for name in ("build", "minor", "major")), 0))


def _certificates(value: Any) -> tuple[Supplied, ...]:  # noqa: ANN401
    if value is None:
        return ()
    if len(array(value, "cert_chain")) > MAX_CERTIFICATES:
        raise FormError(f"cert_chain with more than {MAX_CERTIFICATES} certificates")
    out = []
    for entry in value:
        parts = members(entry, {"cert_type", "data"})
        kind = parts["cert_type"]
        if not isinstance(kind, str) or kind not in _CERT_TYPES:
            raise FormError("cert_chain holds a certificate of an unknown kind")
        data = array(parts["data"], "data")
        if not 0 < len(data) <= _MAX_CERTIFICATE:
            raise FormError(f"certificate of {len(data)} bytes")
        out.append(Supplied(_CERT_TYPES[kind], octets(data, len(data), "data")))
    if len({one.role for one in out}) != len(out):
        raise FormError("cert_chain names a kind twice")
    return tuple(out)


def write_structured(report: bytes, certificates: tuple[Supplied, ...] = ()) -> dict[str, Any]:
    """The structured form of ``report``, as a current client sends it."""
    from cvars.attest.snp.report import SnpReport  # noqa: PLC0415 - only simulated clients need it

    parsed = SnpReport.parse(report)
    turin = parsed.cpuid_family >= 0x1A
    tcb = {
        name: {"fmc": None} | Tcb.parse(getattr(parsed, name), "Turin" if turin else "Milan").as_json()
        for name in _TCBS
    }
    versions = {
        name: dict(zip(("build", "minor", "major"), getattr(parsed, field)[:3], strict=True))
        for name, field in _VERSIONS.items()
    }
    out: dict[str, Any] = {name: getattr(parsed, field) for name, (field, _) in _INTEGERS.items()}
    out |= {name: list(getattr(parsed, name)) for name in _BYTES} | tcb | versions
    out |= {name: getattr(parsed, field) if parsed.version >= 3 else None for name, field in _CPUID.items()}
    if parsed.version >= 5:
        out |= {name: getattr(parsed, name) for name in _MIT}
    out["signature"] = {"r": list(parsed.signature_r), "s": list(parsed.signature_s)}
    chain = [{"cert_type": one.role, "data": list(one.data)} for one in certificates]
    return {"attestation_report": out, "cert_chain": chain}
