"""What all tests share: the recorded vectors, the seed, and the switch for exhaustive versions."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
SEED = int(os.environ.get("CVARS_TEST_SEED", "20261124"))

settings.register_profile(
    "cvars", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("cvars")


def pytest_report_header() -> str:
    return f"cvars: seed {SEED} (CVARS_TEST_SEED), vectors {'found' if VECTORS.is_dir() else 'absent'}"


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="run the complete versions of sampled tests")


#: rooms whose tests start processes
PROGRAMS = {"lab", "cli", "broker"}


def pytest_collection_modifyitems(config, items):
    slow = pytest.mark.skip(reason="complete version: make test-exhaustive")
    for item in items:
        if "exhaustive" in item.keywords and not config.getoption("--exhaustive"):
            item.add_marker(slow)
    # whole programs first: a long file that starts last would keep one processor waiting
    items.sort(key=lambda item: item.path.parent.name not in PROGRAMS)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The recorded vectors; skips where they are absent (a user's clone), fails in CI (D15)."""
    if not VECTORS.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the recorded vectors at {VECTORS}")
        pytest.skip("the recorded vectors are not beside this checkout")
    return VECTORS


@pytest.fixture
def rng() -> random.Random:
    """Seeded randomness: the same run every time."""
    return random.Random(SEED)


@pytest.fixture(scope="session")
def exhaustive(request) -> bool:
    """True under `make test-exhaustive`."""
    return request.config.getoption("--exhaustive")


@pytest.fixture(scope="session")
def simulated_hardware(tmp_path_factory) -> Path:
    """A folder for simulated roots, one for the whole run and all its workers: RSA-4096 keys take seconds."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulated-hardware"
