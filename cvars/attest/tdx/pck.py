"""What a PCK certificate says about its platform. Source: Intel PCK certificate profile; `attestation` 3.1."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cvars.attest import der
from cvars.attest.certificates import Certificate
from cvars.attest.der import DerError, Item

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
PROCESSOR_CA: Final = "Intel SGX PCK Processor CA"
PLATFORM_CA: Final = "Intel SGX PCK Platform CA"
CA_KINDS: Final = {PROCESSOR_CA: "processor", PLATFORM_CA: "platform"}


@dataclass(frozen=True, slots=True)
class PckFields:
    """Identity and TCB of the platform that a PCK was issued for."""

    ppid: bytes
    components: tuple[int, ...]  # 16 SVNs
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes


@lru_cache(maxsize=256)
def read_pck(certificate: Certificate) -> PckFields:
    """Read the SGX extension; once for each certificate.

    Raises:
        DerError: it is absent, or not as the profile has it.
    """
    found = certificate.extensions.get(SGX_EXTENSION)
    if found is None:
        raise DerError("no SGX extension")
    members = _pairs(der.read(found.value))
    tcb = _pairs(_wanted(members, "2"))
    components = tuple(_number(_wanted(tcb, f"2.{n}"), 255) for n in range(1, 17))
    return PckFields(
        ppid=_octets(_wanted(members, "1"), 16),
        components=components,
        pce_svn=_number(_wanted(tcb, "2.17"), 65535),
        cpu_svn=_octets(_wanted(tcb, "2.18"), 16),
        pce_id=_octets(_wanted(members, "3"), 2),
        fmspc=_octets(_wanted(members, "4"), 6),
    )


def _pairs(sequence: Item) -> dict[str, Item]:
    """SEQUENCE OF (OID, value), by the OID's end below the SGX extension."""
    out: dict[str, Item] = {}
    for entry in sequence.expect(der.SEQUENCE).items():
        parts = entry.expect(der.SEQUENCE).items()
        if len(parts) != 2:
            raise DerError("the SGX extension holds pairs")
        name = der.oid(parts[0]).removeprefix(SGX_EXTENSION + ".")
        if name in out:
            raise DerError(f"the SGX extension has {name} twice")
        out[name] = parts[1]
    return out


def _wanted(members: dict[str, Item], name: str) -> Item:
    if name not in members:
        raise DerError(f"the SGX extension has no {name}")
    return members[name]


def _number(item: Item, top: int) -> int:
    value = der.integer(item, max_bytes=3)
    if not 0 <= value <= top:
        raise DerError(f"SVN {value}")
    return value


def _octets(item: Item, size: int) -> bytes:
    body = item.expect(der.OCTET_STRING).body
    if len(body) != size:
        raise DerError(f"{len(body)} bytes where {size} belong")
    return body
