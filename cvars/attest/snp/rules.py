"""Is an SNP report authentic, and bound to this session? The rules of `attestation` 2.4 up to SNP-BIND, in order.

Each rule is one function over `Facts`; removing one from `RULES` makes exactly its own attacks pass, which the
tests do. Appraisal against a policy is `cvars.attest.snp.policy`.
"""

import hashlib
import hmac
from collections.abc import Collection
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cvars.attest.certificates import PSS_SHA384, issued, load_any, load_crl
from cvars.attest.der import DerError
from cvars.attest.evidence import SnpEvidence, Supplied
from cvars.attest.library import EmptyLibrary, Library
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
from cvars.attest.snp import claims
from cvars.attest.snp.facts import CrlMode, Facts, gather
from cvars.attest.snp.leaf import (
    AMD,
    CSP_ID,
    HWID,
    SPL,
    STRUCT_VERSION,
    VCEK_NAME,
    VLEK_NAME,
    line_named,
    line_of_product,
)
from cvars.attest.snp.leaf import FMC as FMC_OID
from cvars.attest.snp.leaf import PRODUCT as PRODUCT_OID
from cvars.attest.snp.report import KEY_KINDS, KNOWN_VERSIONS, SIGNED_BYTES, VCEK, VLEK, SnpReport, build_report

P384_ORDER: Final = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
SIM_CHIP: Final = b"SIM-"


def _format(facts: Facts) -> str:
    report = facts.report
    if report.version not in facts.versions:
        raise Refused(f"report version {report.version} is not known")
    if any(report.reserved_4c):
        raise Refused("reserved bytes 0x4C..0x4F are not zero")
    if any(report.reserved_330):
        raise Refused("reserved bytes after s (0x330..0x49F) are not zero")
    return f"report version {report.version}, 1184 bytes"


def _algorithm(facts: Facts) -> str:
    if facts.report.signature_algo != 1:
        raise Refused(f"SIGNATURE_ALGO is {facts.report.signature_algo}, not 1")
    return "ECDSA P-384 with SHA-384"


def _no_simulation(facts: Facts) -> str:
    """ROOT-4: in production mode nothing that is marked as simulated gets as far as a signature check."""
    if facts.roots.simulation:
        raise Skipped("simulation mode")
    if facts.report.chip_id.startswith(SIM_CHIP):
        raise Refused("CHIP_ID is of simulated hardware")
    for certificate in (facts.leaf, facts.intermediate, facts.root):
        if certificate is not None and certificate.simulated:
            raise Refused(f"{certificate.common_name} is marked as simulated hardware")
    return "no simulation mark"


def _key_kind(facts: Facts) -> str:
    report = facts.report
    kind = KEY_KINDS.get(report.signing_key, "reserved")
    if report.signing_key not in (VCEK, VLEK):
        raise Refused(f"SIGNING_KEY is {report.signing_key} ({kind})")
    if report.mask_chip_key:
        raise Refused("MASK_CHIP_KEY is set")
    if facts.leaf is None:
        other = KEY_KINDS[1 - report.signing_key] if 1 - report.signing_key in facts.supplied_kinds else "nothing"
        raise Refused(facts.unreadable or f"the report is signed with a {kind}, {other} was supplied")
    name, issuer = (VCEK_NAME, "SEV-") if report.signing_key == VCEK else (VLEK_NAME, "SEV-VLEK-")
    wanted, unwanted = (HWID, CSP_ID) if report.signing_key == VCEK else (CSP_ID, HWID)
    if facts.leaf.common_name in (VCEK_NAME, VLEK_NAME) and facts.leaf.common_name != name:
        raise Refused(f"the {kind} is named {facts.leaf.common_name}")
    if line_named(facts.leaf.issuer_common_name, issuer) is None:
        raise Refused(f"the {kind} is issued by {facts.leaf.issuer_common_name!r}")
    if unwanted in facts.leaf.extensions and wanted not in facts.leaf.extensions:
        raise Refused(f"the {kind} has the extensions of the other kind")
    if facts.intermediate is not None and line_named(facts.intermediate.common_name, issuer) is None:
        raise Refused(f"{facts.intermediate.common_name!r} in the place of the {kind}'s issuer")
    return f"signed with a {kind}"


def _product(facts: Facts) -> str:
    report, leaf = facts.report, facts.extensions
    if report.version >= 3 and report.line is None:
        raise Refused(f"CPUID family {report.cpuid_family:#x} model {report.cpuid_model:#x}: no pinned root")
    line = facts.line
    if facts.leaf_line != line:
        raise Refused(f"the report is of {line}, its certificate of {facts.leaf_line}")
    if leaf.product is not None and line_of_product(leaf.product) != line:
        raise Refused(f"the report is of {line}, its certificate's product is {leaf.product!r}")
    if report.version < 3 and report.masked and line == "Turin":
        raise Refused("version 2 with a masked chip id: the TCB layout cannot be told")
    return f"{line}" + ("" if report.version >= 3 else " (by the certificate: version 2 has no CPUID)")


def _one_line(facts: Facts) -> str:
    """ROOT-5: no chain across domains, no intermediate of one line for another."""
    if facts.pinned is None:
        raise Skipped("no pinned root closes the chain")
    if facts.pinned.line != facts.line:
        raise Refused(f"a chain of {facts.line} under the root of {facts.pinned.line}")
    assert facts.root is not None
    certificates = [facts.root, facts.intermediate, facts.leaf]
    if facts.pinned.domain == "simulated" and not all(c is None or c.simulated for c in certificates):
        raise Refused("an unmarked certificate under a simulated root")
    return f"one line, one domain: {facts.pinned.domain}"


def _chain(facts: Facts) -> str:
    leaf, intermediate, root = facts.leaf, facts.intermediate, facts.root
    assert leaf is not None
    if intermediate is None:
        raise Refused(f"no certificate of {leaf.issuer_common_name!r}")
    if root is None or facts.pinned is None:
        raise Refused(f"{intermediate.issuer_common_name!r} is not a pinned root")
    for child, parent in ((leaf, intermediate), (intermediate, root), (root, root)):
        if child.issuer != parent.subject:
            raise Refused(f"{child.common_name} names another issuer than {parent.common_name}")
        if child.algorithm not in PSS_SHA384:
            raise Refused(f"{child.common_name} is not signed with RSASSA-PSS, SHA-384, MGF1-SHA-384, salt 48")
        key = parent.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
            raise Refused(f"{parent.common_name} has no RSA-4096 key")
        if not parent.may_sign_certificates:
            raise Refused(f"{parent.common_name} may not sign certificates")
        if not issued(child, parent):
            raise Refused(f"{child.common_name}: the signature of {parent.common_name} does not verify")
    kind = "ASVK" if facts.report.signing_key == VLEK else "ASK"
    return (
        f"{KEY_KINDS[facts.report.signing_key].upper()} < {intermediate.common_name} ({kind})"
        f" < {root.common_name} (pinned, {facts.pinned.domain})"
    )


def _leaf(facts: Facts) -> str:
    leaf, found = facts.leaf, facts.extensions
    assert leaf is not None
    name = VCEK_NAME if facts.report.signing_key == VCEK else VLEK_NAME
    if leaf.common_name != name:
        raise Refused(f"subject common name is {leaf.common_name!r}, not {name}")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Refused("the key is not on P-384")
    if repeated := [oid for oid in leaf.repeated if oid.startswith(AMD)]:
        raise Refused(f"extension {repeated[0]} occurs more than once")
    if leaf.unknown_critical:
        raise Refused(f"unknown critical extension {leaf.unknown_critical[0]}")
    required = [STRUCT_VERSION, PRODUCT_OID, *SPL.values()]
    required += [FMC_OID] if facts.line == "Turin" else []
    required += [HWID] if facts.report.signing_key == VCEK else [CSP_ID]
    if missing := [oid for oid in required if oid not in leaf.extensions]:
        raise Refused(f"extension {missing[0]} is missing")
    if found.wrong:
        raise Refused(found.wrong)
    return f"{name}, P-384, extensions complete"


def _time(facts: Facts) -> str:
    for certificate in (facts.leaf, facts.intermediate, facts.root):
        assert certificate is not None
        if not certificate.valid_at(facts.at):
            raise Refused(
                f"{certificate.common_name} is valid {certificate.not_before:%Y-%m-%d}"
                f"..{certificate.not_after:%Y-%m-%d}, not at {facts.at:%Y-%m-%dT%H:%M:%SZ}"
            )
    return f"all valid at {facts.at:%Y-%m-%dT%H:%M:%SZ}"


def _revocation(facts: Facts) -> str:
    if facts.crl_mode == "ignore":
        raise Skipped("revocation is not looked at")
    if facts.crl_data is None:
        if facts.crl_mode == "require":
            raise Refused("no revocation list, and one is required")
        raise Skipped("no revocation list")
    try:
        crl = load_crl(facts.crl_data)
    except DerError as wrong:
        raise Refused(f"the revocation list cannot be read: {wrong}") from None
    root, intermediate, leaf = facts.root, facts.intermediate, facts.leaf
    assert root is not None
    assert intermediate is not None
    assert leaf is not None
    if crl.algorithm not in PSS_SHA384 or not crl.signed_by(root):
        raise Refused(f"the revocation list is not by {root.common_name}")
    if crl.unknown_critical:
        raise Refused("the revocation list has a critical extension that nobody here knows")
    if crl.next_update is None:
        raise Refused("the revocation list has no nextUpdate")
    if not crl.current_at(facts.at):
        raise Refused(f"the revocation list is for {crl.this_update:%Y-%m-%d}..{crl.next_update:%Y-%m-%d}")
    if intermediate.serial in crl.revoked:
        raise Refused(f"{intermediate.common_name} is revoked")
    if leaf.serial in crl.revoked:  # all genuine leaves have serial 0: then it names all of them
        raise Refused(f"{leaf.common_name} of {intermediate.common_name} is revoked")
    facts.crl = crl
    return f"revocation list of {crl.this_update:%Y-%m-%d}, nothing revoked"


def _signature(facts: Facts) -> str:
    report, leaf = facts.report, facts.leaf
    assert leaf is not None
    if any(report.signature_r[48:]) or any(report.signature_s[48:]):
        raise Refused("r or s has bits above 384")
    r, s = int.from_bytes(report.signature_r, "little"), int.from_bytes(report.signature_s, "little")
    if not 0 < r < P384_ORDER or not 0 < s < P384_ORDER:  # a high s is accepted: AMD's format has no low-s rule
        raise Refused("r or s is not within 1..n-1")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused("the leaf's key is not an EC key")
    try:
        key.verify(encode_dss_signature(r, s), report.raw[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise Refused("the signature over 0x000..0x29F does not verify") from None
    return f"ECDSA P-384 by {leaf.common_name}"


def _tcb_binding(facts: Facts) -> str:
    certified, reported = facts.extensions.tcb, facts.tcbs["reported"]
    if certified is None or certified != reported:
        raise Refused(f"REPORTED_TCB is {reported}, the certificate is for {certified}")
    return f"REPORTED_TCB {reported}"


def _hardware_id(facts: Facts) -> str:
    report, leaf = facts.report, facts.extensions
    if report.signing_key == VLEK:
        if leaf.hwid is not None:
            raise Refused("a VLEK with a hardware id")
        return f"VLEK of {leaf.csp_id}"
    if report.masked:
        raise Refused("CHIP_ID is masked, and the key is a VCEK")
    if leaf.hwid is None:
        raise Refused("the VCEK has no hardware id")
    turin = facts.line == "Turin"
    if turin and any(report.chip_id[8:]):
        raise Refused("CHIP_ID has more than 8 significant bytes")
    wanted = leaf.hwid[:8] if turin else leaf.hwid
    if turin and any(leaf.hwid[8:]):
        raise Refused("the VCEK's hardware id has more than 8 significant bytes")
    if wanted != (report.chip_id[:8] if turin else report.chip_id):
        raise Refused("CHIP_ID is not the VCEK's")
    return "CHIP_ID is the VCEK's"


def _tcb_order(facts: Facts) -> str:
    tcbs = facts.tcbs
    for low, high in (("reported", "committed"), ("committed", "current"), ("launch", "current")):
        if not tcbs[high].at_least(tcbs[low]):
            raise Refused(f"{low.upper()}_TCB {tcbs[low]} exceeds {high.upper()}_TCB {tcbs[high]}")
    return "reported <= committed <= current, launch <= current"


def _binding(facts: Facts) -> str:
    report = facts.report
    if facts.runtime is not None:  # an HCL envelope: the report is about the JSON beside it (2.7, form 4)
        wanted = hashlib.sha256(facts.runtime).digest() + bytes(32)
        if not hmac.compare_digest(wanted, report.report_data):
            raise Refused("REPORT_DATA is not the hash of the envelope's runtime data")
    if facts.report_data is None:
        raise Skipped("no report data was expected")
    if not hmac.compare_digest(facts.report_data, report.report_data):
        raise Refused("REPORT_DATA is not this session's")
    return "REPORT_DATA is this session's"


RULES: Final[tuple[Rule[Facts], ...]] = (
    Rule("SNP-FMT", Stage.AUTHENTIC, _format),
    Rule("SNP-ALG", Stage.AUTHENTIC, _algorithm),
    Rule("ROOT-4", Stage.AUTHENTIC, _no_simulation),
    Rule("SNP-KEYKIND", Stage.AUTHENTIC, _key_kind),
    Rule("SNP-PROD", Stage.AUTHENTIC, _product),
    Rule("ROOT-5", Stage.AUTHENTIC, _one_line),
    Rule("SNP-CHAIN", Stage.AUTHENTIC, _chain),
    Rule("SNP-LEAF", Stage.AUTHENTIC, _leaf),
    Rule("SNP-TIME", Stage.AUTHENTIC, _time),
    Rule("SNP-CRL", Stage.AUTHENTIC, _revocation),
    Rule("SNP-SIG", Stage.AUTHENTIC, _signature),
    Rule("SNP-TCBBIND", Stage.AUTHENTIC, _tcb_binding),
    Rule("SNP-HWID", Stage.AUTHENTIC, _hardware_id),
    Rule("SNP-TCBORDER", Stage.AUTHENTIC, _tcb_order),
    Rule("SNP-BIND", Stage.BOUND, _binding),
)


def verify_snp(
    evidence: SnpEvidence,
    *,
    roots: TrustRoots,
    at: datetime,
    report_data: bytes | None,
    library: Library,
    crl: CrlMode = "if-present",
    extra_versions: Collection[int] = (),
) -> AttestationResult:
    """Apply `RULES`. See `cvars.attest.verify`."""
    try:
        report = SnpReport.parse(evidence.report)
    except ValueError as wrong:
        return rejected("snp", "SNP-FMT", str(wrong))
    facts = gather(evidence, report, roots=roots, library=library, crl=crl, at=at)
    facts.report_data, facts.runtime = report_data, evidence.runtime
    facts.versions = KNOWN_VERSIONS | {v for v in extra_versions if v > max(KNOWN_VERSIONS)}
    checks = evaluate(RULES, facts, stop=True)
    domain = facts.pinned.domain if facts.pinned and genuine(checks) else None
    used = [
        CollateralItem(c.common_name, c.not_before, c.not_after)
        for c in (facts.leaf, facts.intermediate, facts.root)
        if c is not None
    ]
    if facts.crl is not None and facts.crl.next_update is not None:
        used.append(CollateralItem("CRL", facts.crl.this_update, facts.crl.next_update))
    return concluded(
        tee="snp",
        trust_domain=domain,
        claims=claims.snp_claims(report, facts.line, facts.leaf_fields, domain, used),
        checks=tuple(checks),
        collateral=tuple(used),
        parsed=report,
        facts=facts,
    )


_OF_A_CERTIFICATE: Final = ("ROOT-4", "SNP-KEYKIND", "SNP-PROD", "ROOT-5", "SNP-CHAIN", "SNP-LEAF", "SNP-TIME")


def verify_certificate(data: bytes, *, roots: TrustRoots, at: datetime) -> AttestationResult:
    """The rules about certificates alone, for a VCEK or VLEK without a report."""
    try:
        loaded = load_any(data)
    except DerError as wrong:
        return rejected("snp", "SNP-CHAIN", str(wrong))
    kind = VLEK if loaded and loaded[0].common_name == VLEK_NAME else VCEK
    stand_in = SnpReport.parse(build_report(version=2, flags=kind << 2, chip_id=b"\x01" * 64))
    evidence = SnpEvidence(stand_in.raw, (Supplied("unknown", data),))
    facts = gather(evidence, stand_in, roots=roots, library=EmptyLibrary(), crl="ignore", at=at)
    checks = evaluate([rule for rule in RULES if rule.id in _OF_A_CERTIFICATE], facts, stop=True)
    domain = facts.pinned.domain if facts.pinned and genuine(checks) else None
    return AttestationResult(tee="snp", trust_domain=domain, claims={"tee": "snp"}, checks=tuple(checks))
