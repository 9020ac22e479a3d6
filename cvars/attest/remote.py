"""Fetching certificates and collateral from AMD's KDS and Intel's PCS: off by default, never without a deadline.

URLs are built from validated integers and hex only. Answers are cached by exact URL, and only after they proved to
be what was asked for; a 429 is remembered until its time is over. Source: `attestation` 2.6, 3.2; AMD 57230.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from cvars.attest.certificates import load_certificate, load_crl, read_pem
from cvars.attest.der import DerError
from cvars.attest.snp.leaf import read_leaf
from cvars.attest.snp.products import LINES, Line, Tcb
from cvars.attest.snp.report import VCEK
from cvars.attest.tdx.collateral import Collateral
from cvars.errors import OutsideFailure

KDS: Final = "https://kdsintf.amd.com"
PCS: Final = "https://api.trustedservices.intel.com"
MAX_ANSWER: Final = 1024 * 1024
MAX_CACHED: Final = 1024
BACK_OFF_S: Final = 60.0


class FetchFailed(OutsideFailure):
    """No usable answer within the deadline."""

    reason = "attest.fetch_failed"


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: status, lower-case header names, body."""

    status: int
    headers: dict[str, str]
    body: bytes


Get = Callable[[str, float], Fetched]


def vcek_url(base: str, line: Line, hwid: bytes, tcb: Tcb) -> str:
    """URL of a VCEK certificate; Turin has an 8-byte hardware id and the FMC's SPL."""
    assert line in LINES
    turin = line == "Turin"
    numbers = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if turin:
        numbers = {"fmcSPL": tcb.fmc or 0} | numbers
    query = "&".join(f"{name}={int(number):02d}" for name, number in numbers.items())
    return f"{base}/vcek/v1/{line}/{(hwid[:8] if turin else hwid).hex()}?{query}"


def chain_url(base: str, line: Line, kind: int) -> str:
    """URL of ASK (or ASVK) and ARK, PEM."""
    return f"{base}/{'vcek' if kind == VCEK else 'vlek'}/v1/{line}/cert_chain"


def crl_url(base: str, line: Line, kind: int) -> str:
    """URL of the line's revocation list, DER."""
    return f"{base}/{'vcek' if kind == VCEK else 'vlek'}/v1/{line}/crl"


@dataclass(slots=True)
class RemoteLibrary:
    """A `Library` that asks the services, within ``deadline_s`` seconds for each call, and remembers.

    ``get`` (URL, seconds) does the transport; ``clock`` is monotonic. Whatever fails is "nothing at hand".
    """

    get: Get
    clock: Callable[[], float]
    kds: str = KDS
    pcs: str = PCS
    deadline_s: float = 5.0
    _cache: dict[str, bytes] = field(default_factory=dict)
    _wait_until: dict[str, float] = field(default_factory=dict)

    def snp_leaf(self, line: Line, hwid: bytes, tcb: Tcb) -> bytes | None:
        """The VCEK; an answer for another chip or TCB is neither used nor kept."""

        def right(data: bytes) -> bool:
            fields = read_leaf(load_certificate(data))
            return fields.tcb == tcb and (fields.hwid or b"")[:8] == hwid[:8] and fields.hwid in (hwid, hwid[:8])

        return self._ask(vcek_url(self.kds, line, hwid, tcb), right)

    def snp_chain(self, line: Line, kind: int) -> list[bytes]:
        """ASK (or ASVK) and ARK as DER; they are checked against the pins like any others."""
        found = self._ask(chain_url(self.kds, line, kind), lambda data: len(read_pem(data)) == 2)
        return read_pem(found) if found else []

    def snp_crl(self, line: Line, kind: int) -> bytes | None:
        """The line's revocation list."""
        return self._ask(crl_url(self.kds, line, kind), lambda data: bool(load_crl(data).issuer))

    def tdx_collateral(self, fmspc: bytes, ca: str) -> bytes | None:
        """Nine-member collateral, put together from four answers; not cached here (see `FileLibrary`)."""
        if ca not in ("processor", "platform") or len(fmspc) != 6:
            return None
        end = self.clock() + self.deadline_s
        try:
            return self._collateral(fmspc, ca, end).to_json()
        except (FetchFailed, KeyError, ValueError):
            return None

    def _collateral(self, fmspc: bytes, ca: str, end: float) -> Collateral:
        info = self._answer(f"{self.pcs}/tdx/certification/v4/tcb?fmspc={fmspc.hex()}", end)
        identity = self._answer(f"{self.pcs}/tdx/certification/v4/qe/identity", end)
        pck_crl = self._answer(f"{self.pcs}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der", end)
        root_crl = self._answer(f"{self.pcs}/sgx/certification/v4/rootcacrl", end)
        tcb_info, tcb_signature = _inner(info.body, b'{"tcbInfo":')
        qe_identity, qe_signature = _inner(identity.body, b'{"enclaveIdentity":')
        return Collateral(
            pck_crl_issuer_chain=unquote_to_bytes(pck_crl.headers["sgx-pck-crl-issuer-chain"]),
            root_ca_crl=root_crl.body,
            pck_crl=pck_crl.body,
            tcb_info_issuer_chain=unquote_to_bytes(info.headers["tcb-info-issuer-chain"]),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=unquote_to_bytes(identity.headers["sgx-enclave-identity-issuer-chain"]),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    def _ask(self, url: str, right: Callable[[bytes], bool]) -> bytes | None:
        if url in self._cache:
            return self._cache[url]
        try:
            found = self._answer(url, self.clock() + self.deadline_s).body
            if not right(found):
                return None
        except (FetchFailed, DerError):
            return None
        if len(self._cache) < MAX_CACHED:
            self._cache[url] = found
        return found

    def _answer(self, url: str, end: float) -> Fetched:
        service = url.split("/")[2]
        now = self.clock()
        if now < self._wait_until.get(service, 0) or now >= end:
            raise FetchFailed(f"{service}: backing off, or no time left")
        found = self.get(url, end - now)
        if found.status == 429:
            self._wait_until[service] = self.clock() + BACK_OFF_S
        if found.status != 200 or len(found.body) > MAX_ANSWER:
            raise FetchFailed(f"{service} answered {found.status}")
        return found


def _inner(body: bytes, head: bytes) -> tuple[bytes, bytes]:
    """The inner object's exact bytes and its signature: ``{"tcbInfo":{…},"signature":"<hex>"}``.

    Raises:
        ValueError: another shape.
    """
    document, found, tail = body.strip().removeprefix(head).rpartition(b',"signature":"')
    if not body.strip().startswith(head) or not found or not tail.endswith(b'"}'):
        raise ValueError("not a signed document")
    return document, bytes.fromhex(tail[:-2].decode("ascii"))
