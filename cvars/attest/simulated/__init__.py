"""Simulated hardware: bit-exact evidence under roots made for this installation (`attestation` 6).

The verifier's side is `roots(folder)`, which needs only the public files.
"""

from pathlib import Path

from cvars.attest.roots import TrustRoots, load_simulated
from cvars.attest.simulated.amd_sp import Identity, LaunchRefused, SimulatedAmdSp, SnpGuest
from cvars.attest.simulated.tdx_module import Platform, SimulatedTd, SimulatedTdx

__all__ = [
    "Identity",
    "LaunchRefused",
    "Platform",
    "SimulatedAmdSp",
    "SimulatedTd",
    "SimulatedTdx",
    "SnpGuest",
    "roots",
]


def roots(folder: Path) -> TrustRoots:
    """The simulated roots of the installation in ``folder``, beside the production pins; simulation mode."""
    return load_simulated(folder, simulation=True)
