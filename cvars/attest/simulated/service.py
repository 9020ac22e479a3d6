"""A certificate service with the URL shapes of AMD's KDS and Intel's PCS, for offline use and outage tests.

`CertificateService.answer` maps a request target to an answer and opens no socket; the command line wraps it into
an HTTP server on loopback. ``outage`` makes it answer as a service in trouble does.
"""

import json
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qs, quote, urlsplit

from cvars.attest.certificates import write_pem
from cvars.attest.simulated.amd_sp import SimulatedAmdSp
from cvars.attest.simulated.tdx_module import SimulatedTdx
from cvars.attest.snp.products import Line, Tcb
from cvars.attest.snp.report import VCEK

Outage = Literal["none", "unavailable", "too-many", "garbage", "another-chip"]
_SPL: Final = {"blSPL": "bootloader", "teeSPL": "tee", "snpSPL": "snp", "ucodeSPL": "microcode"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


_MISSING: Final = Answer(404)
_BAD: Final = Answer(400)


@dataclass(slots=True)
class CertificateService:
    """Answers for the processors and the platform it was given."""

    processors: dict[Line, SimulatedAmdSp] = field(default_factory=dict)
    platform: SimulatedTdx | None = None
    outage: Outage = "none"
    asked: list[str] = field(default_factory=list)

    def answer(self, target: str) -> Answer:
        """Answer ``GET target`` (path and query)."""
        self.asked.append(target)
        if self.outage == "unavailable":
            return Answer(503)
        if self.outage == "too-many":
            return Answer(429, headers={"Retry-After": "1"})
        if self.outage == "garbage":
            return Answer(200, b"<html>maintenance</html>")
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items() if len(values) == 1}
        parts = url.path.strip("/").split("/")
        match parts:
            case [("vcek" | "vlek") as kind, "v1", line, *rest] if line in self.processors:
                return self._amd(kind, self.processors[line], rest, query)
            case ["sgx" | "tdx" as tee, "certification", "v4", *rest] if self.platform is not None:
                return _intel(self.platform, tee, rest, query)
            case ["IntelSGXRootCA.der"] if self.platform is not None:
                return Answer(200, self.platform.collateral().root_ca_crl)
        return _MISSING

    def _amd(self, kind: str, processor: SimulatedAmdSp, rest: list[str], query: dict[str, str]) -> Answer:
        known = processor.authorities
        match rest:
            case ["cert_chain"]:
                middle = known.ask if kind == "vcek" else known.asvk
                return Answer(200, write_pem(middle) + write_pem(known.ark))
            case ["crl"]:
                return Answer(200, processor.revocation_list())
            case [hwid] if kind == "vcek":
                size = 8 if processor.line == "Turin" else 64
                if hwid.lower() != processor.hwid[:size].hex():
                    return _MISSING
                return self._vcek(processor, query)
        return _MISSING

    def _vcek(self, processor: SimulatedAmdSp, query: dict[str, str]) -> Answer:
        names = _SPL | ({"fmcSPL": "fmc"} if processor.line == "Turin" else {})
        if query.keys() != names.keys() or not all(value.isdigit() for value in query.values()):
            return _BAD
        numbers = {names[name]: int(value) for name, value in query.items()}
        if any(number > 255 for number in numbers.values()):
            return _BAD
        tcb = Tcb(**numbers)
        if self.outage == "another-chip":
            tcb = Tcb(**numbers | {"microcode": (numbers["microcode"] + 1) % 256})
        return Answer(200, processor.certificate(VCEK, tcb))


def _intel(platform: SimulatedTdx, tee: str, rest: list[str], query: dict[str, str]) -> Answer:
    collateral = platform.collateral()
    match (tee, rest):
        case ("tdx", ["tcb"]):
            if query.get("fmspc", "").lower() != platform.fmspc.hex():
                return _MISSING
            body = _signed("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature)
            return Answer(200, body, {"TCB-Info-Issuer-Chain": quote(collateral.tcb_info_issuer_chain)})
        case ("tdx", ["qe", "identity"]):
            body = _signed("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature)
            chain = quote(collateral.qe_identity_issuer_chain)
            return Answer(200, body, {"SGX-Enclave-Identity-Issuer-Chain": chain})
        case ("sgx", ["pckcrl"]):
            if query.get("ca") != "platform":
                return _MISSING
            chain = quote(collateral.pck_crl_issuer_chain)
            return Answer(200, collateral.pck_crl, {"SGX-PCK-CRL-Issuer-Chain": chain})
        case ("sgx", ["rootcacrl"]):
            return Answer(200, collateral.root_ca_crl)
    return _MISSING


def _signed(name: str, document: bytes, signature: bytes) -> bytes:
    """The service's outer object: the inner one byte for byte, and its signature."""
    return b'{"%s":%s,"signature":%s}' % (name.encode(), document, json.dumps(signature.hex()).encode())
