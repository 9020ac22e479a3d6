"""Evidence of all kinds, real and simulated."""

import random as random_module
from datetime import UTC, datetime

import pytest

from cvars.attest import TrustRoots
from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx, roots

NOW = datetime(2026, 6, 1, tzinfo=UTC)
REPORT_DATA = bytes(range(64))


@pytest.fixture
def randomness(request):
    """Seeded bytes, others in each test: what one makes in the common folder is nobody else's next."""
    return random_module.Random(request.node.nodeid).randbytes


@pytest.fixture
def amd(simulated_hardware, randomness):
    """Make a simulated processor of a product line."""
    return lambda line="Genoa": SimulatedAmdSp.load_or_create(
        simulated_hardware, product=line, random=randomness, clock=NOW.timestamp
    )


@pytest.fixture
def tdx(simulated_hardware, randomness):
    """A simulated TDX platform."""
    return SimulatedTdx.load_or_create(simulated_hardware, random=randomness, clock=NOW.timestamp)


@pytest.fixture
def sim_roots(simulated_hardware, amd, tdx):
    """Roots of the installation, in simulation mode."""
    for line in ("Milan", "Genoa", "Turin"):
        amd(line)
    return roots(simulated_hardware)


@pytest.fixture(scope="session")
def real_roots(vectors) -> TrustRoots:
    """Production pins, with AMD's certificates from the recorded vectors at hand."""
    folder = vectors / "attestation" / "snp" / "certs"
    return TrustRoots.production().with_certificates(p.read_bytes() for p in sorted(folder.glob("*.pem")))
