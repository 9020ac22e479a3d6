"""The service as an operator runs it: `cvars broker init`, `vm add`, `serve`, over HTTP, simulated hardware."""

import contextlib
import os
import random as random_module
import re
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest

from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx
from cvars.broker.app import open_broker
from cvars.broker.config import load_config
from cvars.errors import CvarsError
from cvars.release import initdata
from cvars.release.client import BrokerClient
from cvars.release.transport import http_transport
from cvars.store.anchor import ORIGIN, AnchorPoint
from cvars.trace import Recorder
from tests.broker.support import entry

MEASUREMENT = "ab" * 48
POLICY = f"""
policy: stores
version: 1
applies_to: ["vms/*/store-kek"]
trust_domains: [simulated]
require:
  anchor: {{lease: required, max_epoch_gap: 0}}
any_of:
  - snp:
      product: [Genoa]
      measurement_in: {{ref: firmware/test}}
      min_tcb:
        Genoa: {{bootloader: 10, tee: 0, snp: 23, microcode: 84}}
  - tdx:
      mr_td_in: ["{MEASUREMENT}"]
      rtmr: {{0: any, 1: any, 2: any, 3: any}}
release: {{per_vm: true}}
"""


def cvars(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "cvars", "broker", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


@contextlib.contextmanager
def serving(folder, *arguments):
    """A running service: (url, process)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cvars", "broker", "serve", "-c", str(folder), "--simulation", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        match = re.match(r"broker ready on (http://127\.0\.0\.1:\d+)  pin ([0-9a-f]{64})$", line.strip())
        assert match, (line, process.stderr.read() if process.poll() is not None else "")
        yield match[1], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def folder(tmp_path, simulated_hardware):
    SimulatedAmdSp.load_or_create(simulated_hardware, product="Genoa", random=random_module.Random(5).randbytes)
    SimulatedTdx.load_or_create(simulated_hardware, random=random_module.Random(5).randbytes, clock=time.time)
    made = tmp_path / "broker"
    done = cvars("init", made)
    assert done.returncode == 0, done.stderr
    (made / "policies" / "stores.yaml").write_text(POLICY)
    (made / "references" / "firmware.yaml").write_text(f'firmware/test: ["{MEASUREMENT}"]\n')
    (made / "simulated-roots").symlink_to(simulated_hardware / "public")
    return made


def pin_of(folder) -> str:
    from cvars.release.statements import load_private

    return load_private((folder / "keys" / "signing.pem").read_bytes()).kid


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_a_guest_boots_over_http_and_the_service_ends_in_order(folder, simulated_hardware, tee):
    random = random_module.Random(5).randbytes
    done = cvars("vm", "add", "vm-1", "-c", folder, "--simulation", "--mode", "strict")
    assert done.returncode == 0, done.stderr
    body = initdata.compose("vm-1", [pin_of(folder)])
    parsed = initdata.parse(body)
    if tee == "snp":
        hardware = SimulatedAmdSp.load_or_create(simulated_hardware, product="Genoa", random=random)
        guest = hardware.launch(measurement=bytes.fromhex(MEASUREMENT), host_data=parsed.host_data)
    else:
        hardware = SimulatedTdx.load_or_create(simulated_hardware, random=random, clock=time.time)
        guest = hardware.launch(measurement=bytes.fromhex(MEASUREMENT), mr_config_id=parsed.mr_config_id)
    trace = Recorder()
    with serving(folder, "--listen", "127.0.0.1:0") as (url, process):
        client = BrokerClient(
            http_transport(url), pins=parsed.broker_keys, evidence=guest, random=secrets.token_bytes,
            clock=time.time, trace=trace,
        )  # fmt: skip
        client.attest(body)
        acquired = client.acquire("vm-1")
        keys = client.store_key("vm-1", provision=True)
        assert acquired.mode == "strict"
        assert len(keys[1]) == 32
        point, base = AnchorPoint(1, b"\1" * 32), AnchorPoint(0, b"\2" * 32)
        anchor = client.anchor()
        anchor.advance(epoch=1, start=ORIGIN, to=point, base=base, key_version=1, escrow=entry())
        anchor.seal(epoch=1, point=point)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    assert trace.events[0].trust_domain == "simulated"
    lines = (folder / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert oct((folder / "audit.jsonl").stat().st_mode)[-3:] == "600"


def test_a_port_in_use_is_one_sentence(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cvars("serve", "-c", folder, "--simulation", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 4
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def refused(folder, *, simulation=False):
    """What the service says instead of starting, in this process: message and where."""
    with pytest.raises(CvarsError) as error:
        open_broker(load_config(folder / "broker.toml", simulation=simulation), clock=time.time, random=os.urandom)
    return f"{error.value.message}\n{error.value.where}\n{error.value.hint}", error.value.exit_code


def test_configuration_mistakes_name_file_line_and_key(folder):
    toml = folder / "broker.toml"
    good = toml.read_text()
    for change, wanted in (
        (('listen = "127.0.0.1:8080"', 'lisen = "127.0.0.1:8080"'), ["server.lisen", "broker.toml:9"]),
        (('listen = "127.0.0.1:8080"', "listen = 5"), ["server.listen", "broker.toml:9"]),
        (('listen = "127.0.0.1:8080"', 'listen = "127.0.0.1:65536"'), ["server", "no such port"]),
        (('listen = "127.0.0.1:8080"', 'listen = "0.0.0.0:8080"'), ["not loopback", "broker.toml"]),
        (("[identity]", "[identity"), ["not TOML"]),
        (('database = "sqlite', 'database = "mysql'), ["database", "broker.toml:5"]),
        (('roots = "simulated-roots"', 'skip_checks = ["lease"]'), ["skip_checks", "--simulation"]),
        (("interval_s = 300", "interval_s = 0"), ["checkpoint.interval_s"]),
    ):
        toml.write_text(good.replace(*change))
        text, code = refused(folder)
        assert code == 2, change
        for part in wanted:
            assert part in text, (change, text)
    toml.write_text(good)
    (folder / "policies" / "stores.yaml").write_text(POLICY.replace("trust_domains", "trust_domain"))
    text, code = refused(folder, simulation=True)
    assert "stores.yaml:5" in text
    assert code == 3


def test_production_refuses_simulation(folder):
    done = cvars("serve", "-c", folder, "--listen", "127.0.0.1:0")
    assert done.returncode != 0
    assert "ROOT-3" in done.stderr


def test_keys_that_others_can_read_are_refused(folder):
    for name in ("master.key", "signing.pem", "token.pem"):
        path = folder / "keys" / name
        path.chmod(0o644)
        text, code = refused(folder, simulation=True)
        assert code == 2
        assert "readable by others" in text
        assert f"chmod 600 {path}" in text
        path.chmod(0o600)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_master_key_has_32_bytes(folder, size):
    """A shorter one would be taken for AES-128."""
    path = folder / "keys" / "master.key"
    path.write_bytes(bytes(size))
    text, code = refused(folder)
    assert f"the master key has {size} bytes, wanted 32\nkeys/master.key" in text
    assert code == 2


def test_init_refuses_a_folder_in_use_and_makes_private_keys(folder):
    done = cvars("init", folder)
    assert done.returncode == 2
    for path in (folder / "keys").iterdir():
        assert path.stat().st_mode & 0o77 == 0
    assert (folder / "keys").stat().st_mode & 0o77 == 0
