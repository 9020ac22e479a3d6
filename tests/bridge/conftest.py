import pytest

from svsm_bridge.transports.client import GuestClient
from svsm_bridge.transports.socket import SocketServer, listen
from tests.bridge.support import Box, Notebook


@pytest.fixture(params=["default", "coconut", "linux-svsm"])
def profile(request):
    return request.param


@pytest.fixture
def box(profile):
    """One machine per profile; at the end no call of the test has read a byte twice (B34)."""
    made = Box(profile)
    yield made
    assert made.audit.violations == []
    assert made.audit.calls > 0
    made.machine.close()


@pytest.fixture
def default_box():
    made = Box()
    yield made
    assert made.audit.violations == []
    made.machine.close()


@pytest.fixture
def serve(tmp_path):
    """Start socket servers; each is stopped and has given everything back at the end."""
    servers = []

    def start(served=None, **options):
        path = tmp_path / f"run{len(servers)}" / "svsm.sock"
        server = SocketServer(listen(path), Notebook() if served is None else served, **options)
        server.path = path
        servers.append((server, server.start()))
        return server

    yield start
    for server, thread in servers:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert server.wait_closed()


@pytest.fixture
def server(serve):
    return serve(Notebook())


@pytest.fixture
def guest(server):
    made = GuestClient.start(server.path)
    made.path = server.path
    yield made
    made.close()
