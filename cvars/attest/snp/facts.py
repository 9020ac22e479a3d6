"""What the SNP rules look at: the report, and each supplied certificate in its place. Nothing is believed here."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from cvars.attest.certificates import Certificate, Crl, issued, load_any
from cvars.attest.der import DerError
from cvars.attest.evidence import MAX_CERTIFICATES, SnpEvidence
from cvars.attest.library import Library
from cvars.attest.result import (
    Refused,
)
from cvars.attest.roots import Root, TrustRoots
from cvars.attest.snp.leaf import (
    VCEK_NAME,
    VLEK_NAME,
    Leaf,
    line_named,
    line_of_product,
    read_leaf,
)
from cvars.attest.snp.products import Line, Tcb
from cvars.attest.snp.report import KNOWN_VERSIONS, VCEK, VLEK, SnpReport

CrlMode: TypeAlias = Literal["require", "if-present", "ignore"]


@dataclass(slots=True)
class Facts:
    """What the rules look at. Filled by `gather` from the evidence alone; no rule has run yet."""

    report: SnpReport
    roots: TrustRoots
    at: datetime
    report_data: bytes | None
    versions: frozenset[int]
    crl_mode: CrlMode
    supplied_kinds: frozenset[int]
    leaf: Certificate | None = None
    leaf_fields: Leaf | None = None
    intermediate: Certificate | None = None
    root: Certificate | None = None
    pinned: Root | None = None
    crl_data: bytes | None = None
    unreadable: str = ""
    runtime: bytes | None = None
    crl: Crl | None = field(default=None)

    @property
    def line(self) -> Line | None:
        """By CPUID; in version 2 by the leaf's issuer."""
        if self.report.version >= 3:
            return self.report.line
        return self.leaf_line

    @property
    def leaf_line(self) -> Line | None:
        """The line in the leaf's issuer name."""
        if self.leaf is None:
            return None
        prefix = "SEV-VLEK-" if self.report.signing_key == VLEK else "SEV-"
        return line_named(self.leaf.issuer_common_name, prefix)

    @property
    def tcbs(self) -> dict[str, Tcb]:
        """The report's TCB versions in its line's layout (Milan's when the line is unknown)."""
        return self.report.tcbs(self.line or "Milan")

    @property
    def extensions(self) -> Leaf:
        """The leaf's AMD extensions; a rule that needs them refuses when there is no leaf."""
        if self.leaf_fields is None:
            raise Refused("no leaf certificate")
        return self.leaf_fields


def gather(
    evidence: SnpEvidence, report: SnpReport, *, roots: TrustRoots, library: Library, crl: CrlMode, at: datetime
) -> Facts:
    """Give each certificate its place. Nothing is believed here; what is missing, the rules name."""
    by_role: dict[str, list[Certificate]] = {}
    unreadable, crl_data = "", None
    for one in evidence.certificates[: 2 * MAX_CERTIFICATES]:
        if one.role == "CRL":
            crl_data = one.data
            continue
        try:
            for certificate in load_any(one.data):
                by_role.setdefault(_role(certificate) if one.role == "unknown" else one.role, []).append(
                    certificate
                )
        except DerError as wrong:
            unreadable = f"{one.role} cannot be read: {wrong}"
    kinds = frozenset(kind for kind, role in ((VCEK, "VCEK"), (VLEK, "VLEK")) if by_role.get(role))
    facts = Facts(
        report=report,
        roots=roots,
        at=at,
        report_data=None,
        versions=KNOWN_VERSIONS,
        crl_mode=crl,
        supplied_kinds=kinds,
        unreadable=unreadable,
    )
    role = "VLEK" if report.signing_key == VLEK else "VCEK"
    leaf = _fitting(by_role.get(role, []), report)
    if leaf is None and report.signing_key == VCEK and report.line is not None and not unreadable:
        data = library.snp_leaf(report.line, report.chip_id, Tcb.parse(report.reported_tcb, report.line))
        try:
            leaf = load_any(data)[0] if data else None
        except DerError as wrong:
            facts.unreadable = f"the certificate at hand cannot be read: {wrong}"
    facts.leaf = leaf
    if leaf is None:
        return facts
    facts.leaf_fields = read_leaf(leaf)
    facts.intermediate = _intermediate(by_role.get("ASK", []), leaf, roots)
    facts.root, facts.pinned = _root(by_role.get("ARK", []), facts.intermediate, roots)
    facts.crl_data = crl_data
    if crl_data is None and facts.line is not None:
        facts.crl_data = library.snp_crl(facts.line, report.signing_key)
    return facts


def _fitting(leaves: list[Certificate], report: SnpReport) -> Certificate | None:
    """The leaf for this chip and TCB where several were supplied; else the first, which the rules will refuse."""
    for leaf in leaves if len(leaves) > 1 else ():
        fields = read_leaf(leaf)
        line = line_of_product(fields.product or "")
        if line and fields.tcb == Tcb.parse(report.reported_tcb, line):
            hwid = fields.hwid or b""
            if not hwid or hwid == report.chip_id[: len(hwid)]:
                return leaf
    return next(iter(leaves), None)


def _role(certificate: Certificate) -> str:
    """The place of a certificate that came without one, by its subject."""
    name = certificate.common_name
    if name in (VCEK_NAME, VLEK_NAME):
        return name.removeprefix("SEV-")
    return "ARK" if name.startswith("ARK-") else "ASK"


def _intermediate(supplied: list[Certificate], leaf: Certificate, roots: TrustRoots) -> Certificate | None:
    """The ASK or ASVK: what the evidence brought, else what is at hand under the leaf's issuer name."""
    named = [c for c in supplied if c.subject == leaf.issuer]
    if named or supplied:
        return (named or supplied)[0]
    at_hand = [c for c in roots.authorities if c.subject == leaf.issuer]
    return (
        next((c for c in at_hand if issued(leaf, c)), at_hand[0] if at_hand else None)
        if (len(at_hand) > 1)
        else next(iter(at_hand), None)
    )


def _root(
    supplied: list[Certificate], intermediate: Certificate | None, roots: TrustRoots
) -> tuple[Certificate | None, Root | None]:
    """The pinned root that the intermediate names; a supplied ARK is used only if its pin matches (2.5)."""
    if intermediate is None:
        return None, None
    candidates = [
        (certificate, pinned)
        for certificate in dict.fromkeys((*supplied, *roots.authorities))
        if certificate.subject == intermediate.issuer and (pinned := roots.find(certificate)) is not None
    ]
    if not candidates:
        return None, None
    if len(candidates) == 1:
        return candidates[0]
    return next((pair for pair in candidates if issued(intermediate, pair[0])), candidates[0])
