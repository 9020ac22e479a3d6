"""Is a TDX quote authentic, current and bound? The rules of `attestation` 3.2 up to TDX-RELAUNCH, and TDX-BIND.

What the quote alone can show comes first (stage authentic), what needs collateral after it. SGX quotes run through
the same rules for diagnostics, but TDX-HDR refuses them. Appraisal is `cvars.attest.tdx.policy`.
"""

import hashlib
import hmac
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cvars.attest.certificates import (
    ECDSA_SHA256,
    Certificate,
    issued,
    load_crl,
    load_p256,
)
from cvars.attest.der import DerError
from cvars.attest.evidence import MAX_EVENT_LOG, TdxEvidence
from cvars.attest.library import Library
from cvars.attest.result import (
    AttestationResult,
    CollateralItem,
    Refused,
    Rule,
    Skipped,
    Stage,
    concluded,
    evaluate,
    genuine,
    rejected,
)
from cvars.attest.roots import TrustRoots
from cvars.attest.tdx import eventlog
from cvars.attest.tdx.claims import tdx_claims
from cvars.attest.tdx.facts import Facts, gather, issuer_chain
from cvars.attest.tdx.pck import CA_KINDS
from cvars.attest.tdx.quote import (
    ECDSA_P256,
    INTEL_QE,
    TEE_TDX,
    QuoteError,
    parse_quote,
)
from cvars.attest.tdx.tcb import (
    COMPONENTS,
    Level,
    Status,
    match_level,
    match_svn,
    worst,
)

SIM_FMSPC: Final = b"\x51\xa0"
SIM_PPID: Final = b"SIM-"
TCB_SIGNING: Final = "Intel SGX TCB Signing"
_RELAUNCH: Final = {
    "UpToDate": "TDRelaunchAdvised",
    "ConfigurationNeeded": "TDRelaunchAdvisedConfigurationNeeded",
}


def _format(facts: Facts) -> str:
    if any(facts.quote.trailing):
        raise Refused("bytes after the signature data are not zero")
    return f"quote version {facts.quote.version}, {len(facts.quote.raw)} bytes"


def _header(facts: Facts) -> str:
    quote = facts.quote
    if quote.attestation_key_type != ECDSA_P256:
        raise Refused(f"attestation key type {quote.attestation_key_type}, not {ECDSA_P256}")
    if quote.qe_vendor_id != INTEL_QE:
        raise Refused("QE vendor id is not Intel's")
    if quote.sgx:
        raise Refused("tee type is SGX", stage=Stage.POLICY)
    if quote.tee_type != TEE_TDX:
        raise Refused(f"TEE type {quote.tee_type:#x}, not {TEE_TDX:#x}")
    return "ECDSA P-256, TDX, Intel's quoting enclave"


def _no_simulation(facts: Facts) -> str:
    """ROOT-4: in production mode nothing that is marked as simulated gets as far as a signature check."""
    if facts.roots.simulation:
        raise Skipped("simulation mode")
    if any(certificate.simulated for certificate in facts.chain):
        raise Refused("a certificate of the PCK chain is marked as simulated hardware")
    pck = facts.pck
    if pck is not None and (pck.fmspc.startswith(SIM_FMSPC) or pck.ppid.startswith(SIM_PPID)):
        raise Refused("FMSPC or PPID is of simulated hardware")
    return "no simulation mark"


def _pck(facts: Facts) -> str:
    if facts.unreadable or len(facts.chain) != 3:
        raise Refused(facts.unreadable or f"a PCK chain of {len(facts.chain)} certificates")
    leaf, authority, root = facts.chain
    if facts.pinned is None or facts.pinned.line != "Intel":
        raise Refused(f"{root.common_name!r} is not a pinned root")
    if authority.common_name not in CA_KINDS:
        raise Refused(f"{authority.common_name!r} is no PCK authority")
    for child, parent in ((leaf, authority), (authority, root), (root, root)):
        _link(child, parent)
    for certificate in facts.chain:
        if not certificate.valid_at(facts.at):
            raise Refused(f"{certificate.common_name} is not valid at {facts.at:%Y-%m-%dT%H:%M:%SZ}")
    if facts.pinned.domain == "simulated" and not all(c.simulated for c in facts.chain):
        raise Refused("ROOT-5: an unmarked certificate under a simulated root")
    return f"PCK < {authority.common_name} < {root.common_name} (pinned, {facts.pinned.domain})"


def _link(child: Certificate, parent: Certificate) -> None:
    if child.issuer != parent.subject:
        raise Refused(f"{child.common_name} names another issuer than {parent.common_name}")
    if child.algorithm not in ECDSA_SHA256:
        raise Refused(f"{child.common_name} is not signed with ECDSA and SHA-256")
    if not parent.may_sign_certificates:
        raise Refused(f"{parent.common_name} may not sign certificates")
    if load_p256(parent.spki) is None:
        raise Refused(f"{parent.common_name} has no P-256 key")
    if child.unknown_critical:
        raise Refused(f"{child.common_name} has an unknown critical extension")
    if not issued(child, parent):
        raise Refused(f"{child.common_name}: the signature of {parent.common_name} does not verify")


def raw_signature_by(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    """Whether ``signature`` (r || s, 64 bytes, big-endian) over ``signed`` is ``key``'s (P-256, SHA-256)."""
    if len(signature) != 64:
        return False
    pair = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(pair, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _p256(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    key = load_p256(certificate.spki)
    if key is None:
        raise Refused(f"{certificate.common_name} has no P-256 key")
    return key


def _qe_signature(facts: Facts) -> str:
    quote = facts.quote
    if not facts.chain or not raw_signature_by(_p256(facts.chain[0]), quote.qe_signature, quote.qe_report_raw):
        raise Refused("the PCK did not sign this QE report")
    return "QE report by the PCK"


def _qe_hash(facts: Facts) -> str:
    quote = facts.quote
    wanted = hashlib.sha256(quote.attestation_key + quote.auth_data).digest() + bytes(32)
    if quote.qe_report.report_data != wanted:
        raise Refused("the QE report is not about this attestation key and auth data")
    return "QE report holds the attestation key"


def _signature(facts: Facts) -> str:
    quote = facts.quote
    x, y = (int.from_bytes(quote.attestation_key[at : at + 32], "big") for at in (0, 32))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise Refused("the attestation key is not a point of P-256") from None
    if not raw_signature_by(key, quote.signature, quote.signed):
        raise Refused("the attestation key did not sign this quote")
    return "ECDSA P-256 by the attestation key"


def _revocation(facts: Facts) -> str:
    collateral = facts.collateral
    if collateral is None:
        raise Skipped("no collateral")
    leaf, authority, root = facts.chain
    crls = []
    for name, data, by in (("root", collateral.root_ca_crl, root), ("PCK", collateral.pck_crl, authority)):
        if not data:
            raise Refused(f"no {name} revocation list")
        try:
            crl = load_crl(data)
        except DerError as wrong:
            raise Refused(f"the {name} revocation list cannot be read: {wrong}") from None
        if crl.algorithm not in ECDSA_SHA256 or not crl.signed_by(by):
            raise Refused(f"the {name} revocation list is not by {by.common_name}")
        if crl.unknown_critical or not crl.current_at(facts.at):
            raise Refused(f"the {name} revocation list is not current at {facts.at:%Y-%m-%dT%H:%M:%SZ}")
        crls.append(crl)
    facts.crls = tuple(crls)
    for certificate, crl in ((authority, crls[0]), (leaf, crls[1])):
        if certificate.serial in crl.revoked:
            raise Refused(f"{certificate.common_name} is revoked", stage=Stage.AUTHENTIC)
    for chain in (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain):
        for signer in issuer_chain(chain)[:1]:
            if signer.serial in crls[0].revoked:
                raise Refused(f"{signer.common_name} is revoked")
    return "root and PCK lists current, nothing revoked"


def _collateral(facts: Facts) -> str:
    collateral = facts.collateral
    if collateral is None:
        raise Refused(facts.collateral_missing or "missing")
    root = facts.chain[2]
    issuers = issuer_chain(collateral.pck_crl_issuer_chain)
    if len(issuers) != 2 or issuers[0].spki != facts.chain[1].spki or issuers[1].spki != root.spki:
        raise Refused("pck_crl_issuer_chain is not the PCK's authority under the same root")
    checked: dict[bytes, Certificate] = {}
    for name, pem, signature, signed in (
        ("tcb_info", collateral.tcb_info_issuer_chain, collateral.tcb_info_signature, collateral.tcb_info),
        (
            "qe_identity",
            collateral.qe_identity_issuer_chain,
            collateral.qe_identity_signature,
            collateral.qe_identity,
        ),
    ):
        if not signed or not pem:
            raise Refused(f"no {name}")
        signer = checked.get(pem) or _signer(name, pem, root)
        checked[pem] = signer
        if not raw_signature_by(_p256(signer), signature, signed):
            raise Refused(f"{name}: the signature over the received bytes does not verify")
    assert facts.info
    assert facts.identity
    return "tcb_info, qe_identity, lists and their chains"


def _signer(name: str, pem: bytes, root: Certificate) -> Certificate:
    """The signing certificate, under the same pinned root as the PCK."""
    chain = issuer_chain(pem)
    if len(chain) != 2:
        raise Refused(f"{name}_issuer_chain is not a signing certificate and a root")
    if chain[1].spki != root.spki:  # ROOT-5: a chain may not cross domains
        raise Refused(f"{name} is signed under another root than the quote")
    if chain[0].common_name != TCB_SIGNING:
        raise Refused(f"{name} is signed by {chain[0].common_name!r}")
    _link(chain[0], chain[1])
    _link(chain[1], chain[1])
    return chain[0]


def _collateral_time(facts: Facts) -> str:
    for name, document in (("tcb_info", facts.info), ("qe_identity", facts.identity)):
        if not document.issued <= facts.at < document.next_update:
            raise Refused(
                f"{name} is for {document.issued:%Y-%m-%dT%H:%M:%SZ}..{document.next_update:%Y-%m-%dT%H:%M:%SZ}"
            )
    for certificate in facts.signers:
        if not certificate.valid_at(facts.at):
            raise Refused(f"{certificate.common_name} is not valid at {facts.at:%Y-%m-%dT%H:%M:%SZ}")
    return "current"


def _qe_identity(facts: Facts) -> str:
    identity, report = facts.identity, facts.quote.qe_report
    wanted = "QE" if facts.quote.sgx else "TD_QE"
    if identity.id != wanted or identity.version != 2:
        raise Refused(f"identity {identity.id!r} version {identity.version}, not {wanted} version 2")
    if identity.mr_signer != report.mr_signer:
        raise Refused("MRSIGNER is not the quoting enclave's")
    if identity.isv_prod_id != report.isv_prod_id:
        raise Refused(f"ISVPRODID {report.isv_prod_id}, not {identity.isv_prod_id}")
    if report.misc_select & identity.misc_mask != identity.misc_select & identity.misc_mask:
        raise Refused("MISCSELECT is not the quoting enclave's")
    mask = identity.attributes_mask
    if _masked(report.attributes, mask) != _masked(identity.attributes, mask):
        raise Refused("ATTRIBUTES are not the quoting enclave's")
    if report.debug:
        raise Refused("the quoting enclave is a debug enclave")
    level = match_svn(identity.levels, report.isv_svn)
    if level is None:
        raise Refused(f"ISVSVN {report.isv_svn} is below all levels")
    facts.qe_status = level.status
    return f"{identity.id}, ISVSVN {report.isv_svn}: {level.status.status}"


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))


def _fmspc(facts: Facts) -> str:
    info, pck = facts.info, facts.platform_fields
    wanted = "SGX" if facts.quote.sgx else "TDX"
    if info.id != wanted or info.version != 3:
        raise Refused(f"tcb info {info.id!r} version {info.version}, not {wanted} version 3")
    if info.fmspc != pck.fmspc or info.pce_id != pck.pce_id:
        raise Refused(f"tcb info of {info.fmspc.hex()}/{info.pce_id.hex()}, the PCK is of {pck.fmspc.hex()}")
    return f"FMSPC {pck.fmspc.hex()}"


def _seam(facts: Facts) -> str:
    td = facts.td
    identity = facts.info.module_for(td.module_version)
    if identity is None:
        raise Refused(f"no identity for a TDX module of major version {td.module_version}")
    if td.mr_signer_seam != identity.mr_signer:
        raise Refused("MRSIGNERSEAM is not the module's")
    if td.seam_attributes & identity.mask != identity.attributes & identity.mask:
        raise Refused("SEAMATTRIBUTES are not the module's")
    return identity.id or "TDX module 1.0"


def _tcb(facts: Facts) -> str:
    td = None if facts.quote.sgx else facts.td.tee_tcb_svn
    level = _match(facts, td)
    if level is None:
        raise Refused("no matching level: this platform is not supported (which is not OutOfDate)")
    facts.level, facts.platform = level, level.status
    facts.final = level.status
    return f"platform: {level.status.status}, {level.status.date:%Y-%m-%d}"


def _complete_components(facts: Facts) -> None:
    for level in facts.info.levels:
        tdx = COMPONENTS if not facts.quote.sgx else len(level.tdx)
        if len(level.sgx) != COMPONENTS or len(level.tdx) != tdx:
            raise Refused(f"a level with {len(level.sgx)} and {len(level.tdx)} components, not {COMPONENTS}")


def _match(facts: Facts, td: bytes | None) -> Level | None:
    pck = facts.platform_fields
    _complete_components(facts)
    return match_level(facts.info.levels, sgx=pck.components, pce_svn=pck.pce_svn, tdx=td)


def _module(facts: Facts) -> str:
    td = facts.td
    if td.module_version == 0:
        raise Skipped("module identity has no levels of its own before major version 1")
    status = _module_status(facts, td.tee_tcb_svn)
    if status is None:
        raise Refused(f"module SVN {td.tee_tcb_svn[0]} is below all levels")
    facts.module = status
    return f"module: {status.status}, {status.date:%Y-%m-%d}"


def _module_status(facts: Facts, tee_tcb_svn: bytes) -> Status | None:
    identity = facts.info.module_for(tee_tcb_svn[1])
    level = match_svn(identity.levels, tee_tcb_svn[0]) if identity else None
    return level.status if level else None


def _merge(facts: Facts) -> str:
    parts = [part for part in (facts.platform, facts.module, facts.qe_status) if part is not None]
    facts.final = worst(parts)
    return f"{facts.final.status}" + (
        f", {len(facts.final.advisories)} advisories" if facts.final.advisories else ""
    )


def _relaunch(facts: Facts) -> str:
    """Body 1.5: what the module is now may be better than what it was when the TD was launched."""
    current = facts.td.tee_tcb_svn2
    if current is None:
        raise Skipped("TD report 1.0")
    level = _match(facts, current)
    if level is None:
        raise Refused("no matching level for TEE_TCB_SVN2")
    now = [level.status]
    if current[1] > 0:
        module = _module_status(facts, current)
        if module is None:
            raise Refused(f"module SVN {current[0]} of TEE_TCB_SVN2 is below all levels")
        now.append(module)
    if facts.platform is None:
        raise Refused("no TCB level at launch")
    launch = worst([part for part in (facts.platform, facts.module) if part is not None])
    today = worst(now)
    if launch.status == "OutOfDate" and today.status in _RELAUNCH:
        launch = Status(_RELAUNCH[today.status], launch.date, launch.advisories)
    elif launch.status == "OutOfDateConfigurationNeeded" and today.status in _RELAUNCH:
        launch = Status("TDRelaunchAdvisedConfigurationNeeded", launch.date, launch.advisories)
    elif today.rank > launch.rank:
        launch = worst([launch, today])
    facts.final = worst([part for part in (launch, facts.qe_status) if part is not None])
    return f"now {today.status}: {facts.final.status}"


def _event_log(facts: Facts) -> str:
    if facts.event_log is None:
        raise Skipped("no event log")
    if len(facts.event_log) > MAX_EVENT_LOG:
        raise Refused(f"event log of {len(facts.event_log)} bytes, at most {MAX_EVENT_LOG}")
    td = facts.td
    try:
        replayed = eventlog.replay(eventlog.parse(facts.event_log))
    except eventlog.EventLogError as wrong:
        raise Refused(f"event log: {wrong}") from None
    for index, (found, wanted) in enumerate(zip(replayed, td.rtmr, strict=True)):
        if found != wanted:
            raise Refused(f"the event log replays to another RTMR{index}")
    return "the event log replays to the RTMRs"


def _binding(facts: Facts) -> str:
    if facts.report_data is None:
        raise Skipped("no report data was expected")
    if not hmac.compare_digest(facts.report_data, facts.quote.body.report_data):
        raise Refused("REPORTDATA is not this session's")
    return "REPORTDATA is this session's"


RULES: Final[tuple[Rule[Facts], ...]] = (
    Rule("TDX-FMT", Stage.AUTHENTIC, _format),
    Rule("TDX-HDR", Stage.AUTHENTIC, _header),
    Rule("ROOT-4", Stage.AUTHENTIC, _no_simulation),
    Rule("TDX-PCK", Stage.AUTHENTIC, _pck),
    Rule("TDX-QESIG", Stage.AUTHENTIC, _qe_signature),
    Rule("TDX-QEHASH", Stage.AUTHENTIC, _qe_hash),
    Rule("TDX-SIG", Stage.AUTHENTIC, _signature),
    Rule("TDX-CRL", Stage.COLLATERAL, _revocation),
    Rule("TDX-COLL", Stage.COLLATERAL, _collateral),
    Rule("TDX-COLLTIME", Stage.COLLATERAL, _collateral_time),
    Rule("TDX-QEID", Stage.COLLATERAL, _qe_identity),
    Rule("TDX-FMSPC", Stage.COLLATERAL, _fmspc),
    Rule("TDX-SEAM", Stage.COLLATERAL, _seam),
    Rule("TDX-TCB", Stage.COLLATERAL, _tcb),
    Rule("TDX-MODULE", Stage.COLLATERAL, _module),
    Rule("TDX-MERGE", Stage.COLLATERAL, _merge),
    Rule("TDX-RELAUNCH", Stage.COLLATERAL, _relaunch),
    Rule("TDX-RTMR", Stage.COLLATERAL, _event_log),
    Rule("TDX-BIND", Stage.BOUND, _binding),
)


def verify_tdx(
    evidence: TdxEvidence,
    *,
    roots: TrustRoots,
    at: datetime,
    report_data: bytes | None,
    library: Library,
) -> AttestationResult:
    """Apply `RULES`. See `cvars.attest.verify`."""
    try:
        quote = parse_quote(evidence.quote)
    except QuoteError as wrong:
        return rejected("tdx", wrong.rule, wrong.detail)
    facts = Facts(quote, roots, at, report_data, evidence.event_log)
    gather(facts, evidence, library)
    checks = evaluate(RULES, facts, stop=True)
    domain = facts.pinned.domain if facts.pinned and genuine(checks) else None
    used = [
        CollateralItem(c.common_name, c.not_before, c.not_after)
        for c in dict.fromkeys((*facts.chain, *facts.signers))
    ]
    used += [
        CollateralItem(f"CRL of {crl.issuer_common_name}", crl.this_update, crl.next_update)
        for crl in facts.crls
        if crl.next_update is not None
    ]
    for name, document in (("tcb_info", facts.tcb_info), ("qe_identity", facts.qe_identity)):
        if document is not None:
            used.append(CollateralItem(name, document.issued, document.next_update))
    return concluded(
        tee="sgx" if quote.sgx else "tdx",
        trust_domain=domain,
        claims=tdx_claims(facts, domain, used),
        checks=tuple(checks),
        collateral=tuple(used),
        parsed=quote,
        facts=facts,
    )
