"""Two components that want one socket path: one gets it, and nobody's socket is taken away."""

import socket
import threading
import time

import pytest

from cvars.component import process
from cvars.errors import OutsideFailure


@pytest.fixture
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("s") / "guest.sock"


def dead(path):
    """What a killed component leaves behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))


def reached(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_dead_socket_is_replaced_and_our_own_removed(path):
    dead(path)
    with process._listener(path):
        assert reached(path)
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_of_two_that_start_at_once_one_gets_the_path(path, monkeypatch):
    """Both look for a dead socket; whoever looks waits a while for the other to look as well."""
    dead(path)
    looked = threading.Barrier(2)
    answers = process._answers

    def slowly(where):
        found = answers(where)
        try:
            looked.wait(0.3)
        except threading.BrokenBarrierError:
            looked.reset()
        return found

    monkeypatch.setattr(process, "_answers", slowly)
    over, outcomes = threading.Event(), []

    def start():
        try:
            with process._listener(path) as listener:
                outcomes.append(listener.getsockname())
                over.wait(10)
        except OutsideFailure as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 2:
        time.sleep(0.01)
    assert sorted(outcomes) == sorted([str(path), "cannot listen: Address already in use"])
    assert reached(path)
    over.set()
    for thread in threads:
        thread.join()
    assert not path.exists()


def test_anothers_socket_is_left_alone_at_the_end(path):
    with process._listener(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        path.unlink()
        other.bind(str(path))
        other.listen()
    assert path.is_socket()


def test_a_busy_component_is_not_taken_for_a_dead_one(path):
    """Its queue is full: it does not accept, and it is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        callers = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(str(path))
        with pytest.raises(OutsideFailure, match="already in use"), process._listener(path):
            pytest.fail("a live socket was replaced")
        assert path.is_socket()
        for caller in callers:
            caller.close()
