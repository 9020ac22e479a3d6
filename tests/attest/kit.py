"""Correctly signed evidence, each violating exactly one rule of the tables in `attestation` 2.4 and 3.2.

A case says which rule refuses it; `undone_by` names further rules without which it would be accepted too (a status
that is computed by TDX-MERGE is refused by TDX-STATUS).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from cvars.attest import TrustRoots, appraise, verify
from cvars.attest.evidence import SnpEvidence, Supplied, TdxEvidence
from cvars.attest.requirements import SnpRequirements, TdxRequirements
from cvars.attest.result import AttestationResult
from cvars.attest.simulated import Identity, SimulatedAmdSp, SimulatedTdx
from cvars.attest.simulated.amd_sp import sign_report
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import VCEK, VLEK
from tests.attest.conftest import NOW, REPORT_DATA

LINES = ("Milan", "Genoa", "Turin")
MEASUREMENT = hashlib.sha384(b"measured").digest()
HOST_DATA = hashlib.sha256(b"init-data").digest()
CONFIG_ID = hashlib.sha384(b"init-data").digest()
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class Attempt:
    """Evidence and everything that a verdict takes."""

    evidence: Any
    requirements: dict[str, Any]
    roots: TrustRoots
    at: datetime = NOW
    report_data: bytes | None = REPORT_DATA
    init_data: bytes | None = None
    domains: tuple[str, ...] = ("simulated",)
    verify_options: dict[str, Any] = field(default_factory=dict)

    def verdict(self) -> AttestationResult:
        model = SnpRequirements if isinstance(self.evidence, SnpEvidence) else TdxRequirements
        result = verify(
            self.evidence, roots=self.roots, at=self.at, report_data=self.report_data, **self.verify_options
        )
        return appraise(
            result,
            model.model_validate(self.requirements),
            trust_domains=self.domains,
            init_data=self.init_data,
        )


@dataclass(frozen=True)
class Case:
    """One violation."""

    id: str
    rule: str
    make: Callable[["Bench"], Attempt]
    undone_by: tuple[str, ...] = ()


@dataclass
class Bench:
    """The simulated hardware to make evidence with; processors are fresh for each case."""

    amd: Callable[[str], SimulatedAmdSp]
    tdx: Callable[[], SimulatedTdx]
    roots: TrustRoots
    other_tdx: Callable[[], SimulatedTdx]

    # --- SNP ---------------------------------------------------------------------------------------

    def snp(self, line: str = "Genoa", **options: Any) -> Attempt:
        """Acceptable SNP evidence, with what `options` change.

        ``changed``: report fields; ``leaf``: keywords of `issue_leaf`; ``tcb``: of key and certificate;
        ``vlek``; ``version``; ``vmpl``; ``want``: requirements; ``certificates``: instead of those.
        """
        sp = self.amd(line)
        if options.get("vlek"):
            sp.load_vlek("csp.invalid")
        kind = VLEK if options.get("vlek") else VCEK
        guest = sp.launch(
            measurement=MEASUREMENT,
            host_data=HOST_DATA,
            policy=options.get("policy", 0x30000),
            identity=options.get("identity", Identity()),
        )
        tcb = options.get("tcb", sp.reported)
        report = guest.report(REPORT_DATA, version=options.get("version"), changed=options.get("changed"))
        report = sign_report(report, options.get("key") or sp.key(kind, tcb))
        leaf = sp.issue_leaf(kind, tcb, **options.get("leaf", {}))
        known = sp.authorities
        middle = known.ask if kind == VCEK else known.asvk
        supplied = options.get("certificates") or (
            Supplied("VLEK" if kind else "VCEK", leaf),
            Supplied("ASK", options.get("ask", middle)),
            Supplied("ARK", options.get("ark", known.ark)),
        )
        if "crl" in options:
            supplied = (*supplied, Supplied("CRL", options["crl"](sp)))
        wanted = {
            "product": list(LINES),
            "report_versions": [2, 3, 4, 5],
            "signing_key": ["vcek", "vlek"],
            "csp_id_in": ["csp.invalid"],
            "measurement_in": [MEASUREMENT.hex()],
            "host_data_in": [HOST_DATA.hex()],
            "min_tcb": {
                one: self.amd(one).reported.as_json() | {"tee": 0}
                if one == line
                else Tcb(0, 0, 0, 0, 0 if one == "Turin" else None).as_json()
                for one in LINES
            },
        } | options.get("want", {})
        return Attempt(
            SnpEvidence(report, supplied), wanted, options.get("roots", self.roots), **options.get("with_", {})
        )

    def broken_snp(self, patch: Callable[[bytes], bytes], **options: Any) -> Attempt:
        """Acceptable evidence whose report is changed after it was signed."""
        attempt = self.snp(**options)
        attempt.evidence = replace(attempt.evidence, report=patch(attempt.evidence.report))
        return attempt

    # --- TDX ---------------------------------------------------------------------------------------

    def td(self, version: int = 4, **options: Any) -> Attempt:
        """Acceptable TDX evidence. ``platform``, ``quote`` and ``collateral``: keywords of the simulator;
        ``patch``: of the finished quote; ``members``: replaced members of the collateral."""
        sim = self.tdx()
        sim.platform = options.get("platform", sim.platform)
        td = sim.launch(
            measurement=MEASUREMENT, mr_config_id=CONFIG_ID, attributes=options.get("attributes", 1 << 28)
        )
        if options.get("events"):
            td.extend(1, b"kernel")
        quote = td.quote(REPORT_DATA, version, **options.get("quote", {}))
        if "patch" in options:
            quote = options["patch"](quote)
        collateral = sim.collateral(**options.get("collateral", {}))
        if "members" in options:
            collateral = replace(collateral, **options["members"](sim, collateral))
        log = td.event_log() if options.get("events") else None
        if "log" in options:
            log = options["log"]
        wanted = {
            "mr_td_in": [MEASUREMENT.hex()],
            "rtmr": {0: "any", 1: "any", 2: "any", 3: "any"},
            "mr_config_id_in": [CONFIG_ID.hex()],
        } | options.get("want", {})
        evidence = TdxEvidence(quote, options.get("raw", collateral.to_json()), log)
        return Attempt(evidence, wanted, options.get("roots", self.roots), **options.get("with_", {}))


def production(roots: TrustRoots) -> TrustRoots:
    """Simulated pins in production mode: only ROOT-4 stands between."""
    return replace(roots, simulation=False)


def without(extensions: dict[str, bytes], *names: str) -> list[bytes]:
    return [value for name, value in extensions.items() if name not in names]


def lowered(tcb: Tcb, name: str) -> Tcb:
    return replace(tcb, **{name: getattr(tcb, name) - 1})


def put(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + data + raw[at + len(data) :]


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
