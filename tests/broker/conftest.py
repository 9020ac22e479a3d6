import pytest

from tests.broker.support import World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "broker")
    yield made
    made.close()
