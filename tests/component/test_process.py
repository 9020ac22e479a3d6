"""What the component opens, and what it leaves alone: store, capture, trace; and what its launch binds."""

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cvars.component import process
from cvars.component.boot import Component
from cvars.errors import CvarsError, OutsideFailure, StoreError, UsageMistake
from cvars.formats.pcap import PacketType, read_capture
from cvars.lab.processes import Running
from cvars.release.client import BrokerClient
from cvars.release.errors import ReleaseRefused, StatementRefusedError
from cvars.release.initdata import compose, parse
from cvars.trace import ComponentStopped
from svsm_bridge.errors import GuestMustStop


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "vm.fd"
    path.write_bytes(bytes(4096))
    return path


def test_a_store_is_held_by_one_component(store):
    with process._locked(store) as blob:
        assert os.fstat(blob).st_size == 4096
        with pytest.raises(OutsideFailure, match="locked by a running guest"), process._locked(store):
            pytest.fail("two components hold one store")
    with process._locked(store), store.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(UsageMistake, match="block device"), process._locked(store.parent / "pipe"):
        pytest.fail("a pipe was taken for a store")


@pytest.fixture(autouse=True)
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")


def test_a_capture_is_never_written_over_the_store_or_anything_else(store, tmp_path):
    link, other, folder = tmp_path / "link", tmp_path / "thesis.tex", tmp_path / "folder"
    link.symlink_to(store)
    other.write_bytes(b"all of it")
    folder.mkdir()
    hard = tmp_path / "hard.pcap"
    hard.hardlink_to(store)
    store.write_bytes(process.PCAP_MAGIC + bytes(4092))  # even if it looked like one
    before = store.read_bytes()
    for path in (store, link, hard, other, folder, tmp_path / "pipe"):
        with pytest.raises(UsageMistake, match="left alone"), process._capture(path, redact=False, store=store):
            pytest.fail(f"{path} was opened as a capture")
    assert (store.read_bytes(), other.read_bytes()) == (before, b"all of it")


@pytest.mark.rule("P38")
def test_captures_and_traces_are_their_owners_and_a_capture_can_leave_values_out(lab, store, tmp_path):
    guest = lab.guest()
    for name, redact in (("whole.pcap", False), ("redacted.pcap", True)):
        with process._capture(tmp_path / name, redact=redact, store=store) as capture:
            assert mode(tmp_path / name) == 0o600
            with guest.boot(capture=capture) as running:
                running.set_variable("BootOrder", b"\x5a\xa5" * 20)
        raw = (tmp_path / name).read_bytes()
        assert (b"\x5a\xa5" * 20 in raw) is not redact
        assert sum(p.type is PacketType.REQUEST for p in read_capture(raw).packets) >= 1
    with process._capture(tmp_path / "whole.pcap", redact=False, store=store):
        pass  # an earlier capture is replaced
    for _ in range(2):
        with process.open_trace(tmp_path / "trace.jsonl") as trace:
            trace(ComponentStopped(clean=True))
    assert mode(tmp_path / "trace.jsonl") == 0o600
    assert [json.loads(line)["clean"] for line in (tmp_path / "trace.jsonl").read_text().splitlines()] == [
        True
    ] * 2


@pytest.mark.rule("K44")
def test_a_key_of_a_broker_that_the_guest_did_not_pin_opens_nothing(lab):
    guest = lab.guest()
    measured = guest.launch()
    other = parse(compose(guest.vm_id, ["0" * 64]))
    guest.init_data = replace(guest.init_data, data=other.data)  # what the broker is shown is what was measured
    before = lab.host.copy_flash(guest)
    with pytest.raises(StatementRefusedError):
        guest.start(measured)
    assert "release.statement_verified" not in lab.trace.kinds(guest)
    assert lab.host.copy_flash(guest) == before


def test_init_data_that_was_not_measured_gets_no_key(lab):
    """The host launches with one text and gives the component another."""
    guest = lab.guest()
    measured = guest.launch()
    guest.init_data = parse(compose(guest.vm_id, [lab.pin]) + '"cvars.on-rollback" = "repair"\n')
    with pytest.raises(StoreError) as caught:
        guest.start(measured)
    assert caught.value.reason == "attest.refused"
    assert guest.start()


def test_a_key_that_is_not_released_gives_the_lease_back(lab, monkeypatch):
    guest = lab.guest()
    with monkeypatch.context() as patch:
        patch.setattr(BrokerClient, "store_key", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError), guest.boot():
            pytest.fail("there was no key")
    with guest.boot():
        pass


def test_the_labs_policy_gives_a_vm_its_own_key_only(lab):
    """With a session of its own, a guest asks for its neighbour's key, and then for its own."""
    neighbour, guest = lab.guest(), lab.guest()
    with neighbour.boot():
        pass
    client = BrokerClient(
        lab.http,
        pins=guest.init_data.broker_keys,
        evidence=guest.launch(),
        random=lab.random_bytes,
        clock=lab.clock,
        trace=lab.trace.sink(guest.vm_id),
    )
    client.attest(guest.init_data.body)
    client.acquire(guest.vm_id)
    with pytest.raises(ReleaseRefused, match="POL-PERVM"):
        client.resource(f"vms/{neighbour.vm_id}/store-kek", guest.vm_id)
    assert client.store_key(guest.vm_id, provision=True)


def test_a_stopped_component_answers_nobody(lab):
    guest = lab.guest()
    component: Component = guest.start()
    component.close()
    for ask in (component.tick, lambda: component.handle(lab_guid(), b"")):
        with pytest.raises(GuestMustStop):
            ask()


def lab_guid():
    from cvars.lab.driver import VARIABLE_PROTOCOL

    return VARIABLE_PROTOCOL


@pytest.mark.rule("SS-13")
def test_a_component_whose_lease_ran_out_answers_no_question(lab, monkeypatch):
    guest = lab.guest()
    component = guest.start()
    asked = []
    monkeypatch.setattr(component.service, "handle", lambda *call: asked.append(call))
    lab.clock.sleep(3600)
    guest.start()  # a newer session: the first one may not even read any more
    with pytest.raises(GuestMustStop):
        component.handle(lab_guid(), b"read only")
    assert asked == []


def child(tmp_path, program):
    popen = subprocess.Popen([sys.executable, "-c", program], stdout=(tmp_path / "out").open("wb"))
    (tmp_path / "err").write_text("")
    return Running("guest", popen, tmp_path / "out", tmp_path / "err", time.time(), lambda _: None)


def test_a_process_that_hangs_is_ended(tmp_path):
    stubborn = child(
        tmp_path, "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    stubborn.wait_for("up")
    stubborn.popen.terminate()
    assert stubborn.wait(0.2) == -9
    silent = child(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(CvarsError, match="did not become ready"):
        silent.wait_for("up", seconds=0.2)
    assert silent.popen.returncode == -9
