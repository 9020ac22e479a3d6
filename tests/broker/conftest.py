import pytest

from tests.broker.support import World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "broker")
    yield made
    made.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory, simulated_hardware):
    """A broker behind real HTTP with simulated hardware; one for all tests of a module."""
    from tests.broker.real import RealWorld

    made = RealWorld(tmp_path_factory.mktemp("real") / "broker", simulated_hardware)
    yield made
    made.stop()


@pytest.fixture
def sample(real):
    """`real` with its usual policy and its clock at now."""
    import time

    from tests.broker.real import policy_text

    real.clock.now = time.time()
    real.put(policy_text())
    return real
