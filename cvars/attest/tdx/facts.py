"""What the TDX rules look at: the quote, its PCK chain, the collateral. Nothing is believed here."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cvars.attest.certificates import (
    Certificate,
    Crl,
    load_certificate,
    read_pem,
)
from cvars.attest.der import DerError
from cvars.attest.evidence import MAX_COLLATERAL, TdxEvidence
from cvars.attest.library import Library
from cvars.attest.result import (
    Refused,
    Skipped,
)
from cvars.attest.roots import Root, TrustRoots
from cvars.attest.strict_json import JsonError
from cvars.attest.tdx.collateral import Collateral
from cvars.attest.tdx.pck import CA_KINDS, PckFields, read_pck
from cvars.attest.tdx.quote import (
    Quote,
    TdReport,
)
from cvars.attest.tdx.tcb import (
    Level,
    QeIdentity,
    Status,
    TcbInfo,
    parse_qe_identity,
    parse_tcb_info,
)

SIM_FMSPC: Final = b"\x51\xa0"
SIM_PPID: Final = b"SIM-"
TCB_SIGNING: Final = "Intel SGX TCB Signing"
_RELAUNCH: Final = {
    "UpToDate": "TDRelaunchAdvised",
    "ConfigurationNeeded": "TDRelaunchAdvisedConfigurationNeeded",
}


@dataclass(slots=True)
class Facts:
    """What the rules look at; the later members are filled by the rules that check them."""

    quote: Quote
    roots: TrustRoots
    at: datetime
    report_data: bytes | None
    event_log: bytes | None
    chain: tuple[Certificate, ...] = ()
    pck: PckFields | None = None
    pinned: Root | None = None
    unreadable: str = ""
    collateral: Collateral | None = None
    collateral_missing: str = ""
    crls: tuple[Crl, ...] = ()
    tcb_info: TcbInfo | None = None
    qe_identity: QeIdentity | None = None
    qe_status: Status | None = None
    level: Level | None = None
    platform: Status | None = None
    module: Status | None = None
    final: Status | None = None

    @property
    def signers(self) -> tuple[Certificate, ...]:
        """Every certificate of the collateral's chains."""
        if self.collateral is None:
            return ()
        chains = (
            self.collateral.tcb_info_issuer_chain,
            self.collateral.qe_identity_issuer_chain,
            self.collateral.pck_crl_issuer_chain,
        )
        return tuple(dict.fromkeys(certificate for pem in chains for certificate in issuer_chain(pem)))

    @property
    def td(self) -> TdReport:
        """The TD report; rules about it skip SGX quotes."""
        if isinstance(self.quote.body, TdReport):
            return self.quote.body
        raise Skipped("an SGX quote has none")

    @property
    def platform_fields(self) -> PckFields:
        """The PCK's SGX extension."""
        if self.pck is None:
            raise Refused("no PCK certificate")
        return self.pck

    @property
    def info(self) -> TcbInfo:
        """TCB info; parsed on first use, which is after its signature was checked (TDX-COLL)."""
        if self.tcb_info is None:
            if self.collateral is None:
                raise Refused("no TCB info")
            try:
                self.tcb_info = parse_tcb_info(self.collateral.tcb_info)
            except JsonError as wrong:
                raise Refused(f"tcb_info: {wrong}") from None
        return self.tcb_info

    @property
    def identity(self) -> QeIdentity:
        """QE identity; parsed on first use, which is after its signature was checked (TDX-COLL)."""
        if self.qe_identity is None:
            if self.collateral is None:
                raise Refused("no QE identity")
            try:
                self.qe_identity = parse_qe_identity(self.collateral.qe_identity)
            except JsonError as wrong:
                raise Refused(f"qe_identity: {wrong}") from None
        return self.qe_identity


def gather(facts: Facts, evidence: TdxEvidence, library: Library) -> None:
    """Read the chain and find the collateral. Nothing is believed here; what is missing, the rules name."""
    try:
        facts.chain = tuple(map(load_certificate, read_pem(facts.quote.pck_chain, limit=4) or [b""]))
        facts.pinned = facts.roots.find(facts.chain[-1])
        facts.pck = read_pck(facts.chain[0])
    except DerError as wrong:
        facts.unreadable = str(wrong)
    raw = evidence.collateral
    if raw is None and facts.pck is not None and len(facts.chain) == 3:
        kind = CA_KINDS.get(facts.chain[1].common_name, "")
        raw = library.tdx_collateral(facts.pck.fmspc, kind)
    if raw is None:
        return
    if len(raw) > MAX_COLLATERAL:
        facts.collateral_missing = f"collateral of {len(raw)} bytes, at most {MAX_COLLATERAL}"
        return
    try:
        facts.collateral = Collateral.parse(raw)
    except JsonError as wrong:
        facts.collateral_missing = str(wrong)


@lru_cache(maxsize=32)
def issuer_chain(pem: bytes) -> tuple[Certificate, ...]:
    """The certificates of an issuer chain; none when it cannot be read (TDX-COLL says so)."""
    try:
        return tuple(map(load_certificate, read_pem(pem)))
    except DerError:
        return ()
