"""Roots of trust: compiled-in pins for AMD and Intel, simulated roots only when both sides asked for them.

The trust domain of a result is decided only by which pinned root closed the chain (ROOT-1). Pins are SHA-256 of
the SubjectPublicKeyInfo, so that a reissued root with the same key stays valid. Source: `attestation` 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from cvars.attest.certificates import Certificate, load_any
from cvars.attest.der import DerError
from cvars.errors import CvarsError, ExitCode

Domain: TypeAlias = Literal["amd", "intel", "simulated"]
PRODUCTION: Final[frozenset[str]] = frozenset({"amd", "intel"})
MAX_FILES: Final = 256  # root files in one folder


class RootRefused(CvarsError):
    """A simulated root where only production roots may be (ROOT-3), or a root that is not one."""

    reason = "attest.root_refused"
    exit_code = ExitCode.NO


@dataclass(frozen=True, slots=True)
class Root:
    """Where a pinned key belongs. ``line`` is ``Milan``, ``Genoa``, ``Turin`` or ``Intel``."""

    domain: Domain
    line: str


PINS: Final[Mapping[bytes, Root]] = MappingProxyType(
    {
        bytes.fromhex(pin): root
        for pin, root in {
            "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": Root("amd", "Milan"),
            "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": Root("amd", "Genoa"),
            "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": Root("amd", "Turin"),
            "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e": Root("intel", "Intel"),
        }.items()
    }
)


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """Pins, and certificates at hand that may complete a chain: those are checked, not trusted."""

    pins: Mapping[bytes, Root]
    authorities: tuple[Certificate, ...] = ()
    simulation: bool = False

    @staticmethod
    def production() -> "TrustRoots":
        """AMD's and Intel's roots and nothing else."""
        return TrustRoots(PINS)

    def find(self, certificate: Certificate) -> Root | None:
        """Where ``certificate``'s key is pinned."""
        return self.pins.get(certificate.spki_sha256)

    def with_certificates(self, data: Iterable[bytes]) -> "TrustRoots":
        """Also use these certificates (DER, or PEM with several) to complete chains; unreadable ones are an error.

        Raises:
            RootRefused: a file is not a certificate, or is marked as simulated in production mode (ROOT-4).
        """
        found = list(self.authorities)
        for one in data:
            for certificate in _load(one, "a certificate"):
                if certificate.simulated and not self.simulation:
                    raise RootRefused(
                        "ROOT-4: a certificate of simulated hardware in production mode",
                        hint="start with --simulation to work with simulated evidence",
                    )
                if certificate not in found:
                    found.append(certificate)
        return replace(self, authorities=tuple(found))


def with_simulated(
    roots: TrustRoots, data: Iterable[bytes], *, simulation: bool, origin: str = "a file"
) -> TrustRoots:
    """Add simulated roots: the certificates in ``data`` that are self-signed, with their intermediates.

    ``origin`` says in the message where they came from (a file, the environment, the database…).

    Raises:
        RootRefused: always unless ``simulation`` was asked for at start (ROOT-3); also for a certificate without
            the simulation mark, because a root that is not marked is not a simulated one.
    """
    if not simulation:
        raise RootRefused(
            f"ROOT-3: a simulated root from {origin} in production mode",
            where="production accepts AMD's and Intel's pinned roots only",
            hint="simulation needs --simulation at start and a policy that names the trust domain 'simulated'",
        )
    pins = dict(roots.pins)
    authorities = list(roots.authorities)
    for one in data:
        for certificate in _load(one, origin):
            if not certificate.simulated:
                raise RootRefused(f"ROOT-3: {certificate.common_name!r} from {origin} carries no simulation mark")
            if certificate.issuer == certificate.subject:
                line = certificate.common_name.removeprefix("ARK-")
                pins[certificate.spki_sha256] = Root("simulated", "Intel" if "SGX" in line else line)
            if certificate.may_sign_certificates:
                authorities.append(certificate)
    return TrustRoots(MappingProxyType(pins), tuple(authorities), simulation=True)


def load_simulated(
    folder: Path, *, simulation: bool, base: TrustRoots | None = None, origin: str = "a file"
) -> TrustRoots:
    """Simulated roots from the public files of an installation: ``folder/public/**`` or ``folder/**``, ``*.der``.

    Raises:
        RootRefused: not asked for (ROOT-3), or nothing usable there.
    """
    start = folder / "public" if (folder / "public").is_dir() else folder
    files = sorted(start.rglob("*.der")) if start.is_dir() else [start]
    if not simulation:
        return with_simulated(TrustRoots.production(), (), simulation=False, origin=origin)
    if not files or len(files) > MAX_FILES:
        raise RootRefused(f"{folder}: {len(files)} root certificates", hint="cvars attest simulate makes them")
    try:
        data = [file.read_bytes() for file in files]
    except OSError as wrong:
        raise RootRefused(f"{folder}: {wrong.strerror or wrong}") from None
    return with_simulated(base or TrustRoots.production(), data, simulation=True, origin=origin)


def check_domains(domains: Iterable[str], *, simulation: bool) -> frozenset[str]:
    """The trust domains a policy names: at least one, known; simulated only in simulation (ROOT-2, ROOT-3).

    Raises:
        RootRefused: otherwise.
    """
    named = frozenset(domains)
    if not named:
        raise RootRefused("ROOT-2: a policy names its trust domains", hint="trust_domains: [amd, intel]")
    if unknown := named - PRODUCTION - {"simulated"}:
        raise RootRefused(f"ROOT-2: unknown trust domain {', '.join(sorted(unknown))}")
    if "simulated" in named and not simulation:
        raise RootRefused(
            "ROOT-3: the policy accepts simulated hardware, in production mode",
            hint="start with --simulation, or take 'simulated' out of trust_domains",
        )
    return named


def _load(data: bytes, origin: str) -> list[Certificate]:
    try:
        return load_any(data)
    except DerError as wrong:
        raise RootRefused(f"{origin} is not a certificate: {wrong}") from None
