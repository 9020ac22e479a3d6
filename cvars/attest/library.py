"""Certificates and collateral kept at hand: what evidence does not bring along. Source: `attestation` 2.6, 3.2.

The request path never goes to the network. Layout of a folder (every part validated before it becomes a path):

    snp/<line>/ark.der ask.der asvk.der             certificates that complete a chain (checked, not trusted)
    snp/<line>/vcek.crl vlek.crl                    revocation lists, DER
    snp/<line>/<hwid hex>/<bl>-<tee>-<snp>-<ucode>[-<fmc>].der
    tdx/<fmspc>-<processor|platform>.json           nine-member collateral
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cvars.attest.snp.products import LINES, Line, Tcb
from cvars.attest.snp.report import VCEK

_MAX_FILE: Final = 1024 * 1024


class Library(Protocol):
    """Where the verifier asks for what the evidence did not bring."""

    def snp_leaf(self, line: Line, hwid: bytes, tcb: Tcb) -> bytes | None:
        """The VCEK certificate (DER) of this chip at this TCB."""

    def snp_crl(self, line: Line, kind: int) -> bytes | None:
        """The revocation list (DER) of a line's VCEK or VLEK chain."""

    def tdx_collateral(self, fmspc: bytes, ca: str) -> bytes | None:
        """Nine-member collateral for a platform family; ``ca`` is ``processor`` or ``platform``."""


class EmptyLibrary:
    """Nothing at hand."""

    def snp_leaf(self, line: Line, hwid: bytes, tcb: Tcb) -> bytes | None:  # noqa: ARG002
        """Nothing."""
        return None

    def snp_crl(self, line: Line, kind: int) -> bytes | None:  # noqa: ARG002
        """Nothing."""
        return None

    def tdx_collateral(self, fmspc: bytes, ca: str) -> bytes | None:  # noqa: ARG002
        """Nothing."""
        return None


def leaf_path(line: Line, hwid: bytes, tcb: Tcb) -> str:
    """Where a VCEK lies, relative to the folder; Turin's hardware id has 8 bytes."""
    significant = hwid[:8] if line == "Turin" else hwid
    parts = [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode]
    if tcb.fmc is not None:
        parts.append(tcb.fmc)
    return f"snp/{line}/{significant.hex()}/{'-'.join(map(str, parts))}.der"


class FileLibrary:
    """A folder. ``read`` is handed in so that nothing below the shell opens files by itself."""

    def __init__(self, folder: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> None:
        self._folder = folder
        self._read = read
        self._crls = {
            (line, name): folder / "snp" / line / f"{name}.crl" for line in LINES for name in ("vcek", "vlek")
        }

    def snp_leaf(self, line: Line, hwid: bytes, tcb: Tcb) -> bytes | None:
        """The VCEK certificate at `leaf_path`."""
        return self._file(self._folder / leaf_path(line, hwid, tcb))

    def snp_crl(self, line: Line, kind: int) -> bytes | None:
        """``vcek.crl`` or ``vlek.crl`` of the line, read each time."""
        return self._file(self._crls[line, "vcek" if kind == VCEK else "vlek"])

    def tdx_collateral(self, fmspc: bytes, ca: str) -> bytes | None:
        """``tdx/<fmspc>-<ca>.json``."""
        if ca not in ("processor", "platform"):
            return None
        return self._file(self._folder / f"tdx/{fmspc.hex()}-{ca}.json")

    def authorities(self) -> list[bytes]:
        """The ARK, ASK and ASVK files that are there, for `TrustRoots.with_certificates`."""
        names = (f"snp/{line}/{name}.der" for line in LINES for name in ("ark", "ask", "asvk"))
        return [data for name in names if (data := self._file(self._folder / name)) is not None]

    def _file(self, path: Path) -> bytes | None:
        try:
            data = self._read(path)
        except OSError:
            return None
        return data if len(data) <= _MAX_FILE else None
