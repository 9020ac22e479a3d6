"""Clients in C and Rust, with nothing but the published layouts: B64 and the C client's own promises."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svsm_bridge.manifests import manifest_source
from svsm_bridge.transports.client import GuestClient
from tests.bridge.support import VARIABLES
from tests.bridge.test_attestation import CLAIMS, Reports
from tests.bridge.test_capture import access, variables

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients" / "c"


class Awkward:
    """The real service; the variable `Slow` takes its time, and the second reset fails inside."""

    def __init__(self, slow_s=0.5):
        self.service = variables()
        self.slow_s = slow_s
        self.resets = 0

    def handle(self, guid, message):
        if guid == VARIABLES and "Slow".encode("utf-16-le") in message:
            time.sleep(self.slow_s)
        return self.service.handle(guid, message)

    def reset(self):
        self.resets += 1
        if self.resets == 2 and self.slow_s == 0.5:
            raise KeyError
        self.service.reset()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The C example, with every sanitizer that the compiler has."""
    cc = shutil.which("cc")
    if cc is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no C compiler: cc is not installed")
    out = tmp_path_factory.mktemp("c") / "example"
    flags = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-fsanitize=address,undefined"]
    built = subprocess.run(
        [cc, *flags, "-fno-sanitize-recover=all", "-o", str(out), str(CLIENT / "example.c")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return out


def run(*arguments, timeout=60):
    """Exit code and output of a client."""
    done = subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_B64_a_c_program(example, serve):
    server = serve(variables(), reports=Reports(), manifests=manifest_source(lambda: CLAIMS))
    code, out = run(example, server.path)
    assert code == 0, out
    assert "UEFI MM versions 0x100000001" in out
    assert "read back: written by C" in out
    assert "missing variable: status 0x800000000000000e" in out
    assert "3 of them mine" in out
    assert "attested: report 1184 bytes" in out
    code, out = run(example, server.path)  # the next boot finds them
    assert code == 0, out


def test_the_c_program_provokes_each_transport_error(example, serve):
    server = serve(Awkward(), reports=Reports())
    code, out = run(example, server.path, "errors")
    assert code == 0, out
    assert [int(line[6:8]) for line in out.splitlines()] == [1, 2, 3, 9, 12, 4, 5, 6, 8, 10, 11, 7]
    assert out.count("as expected") == 12
    client = GuestClient.start(server.path)
    assert client.query_protocol(4)
    client.close()


SERVER = """
import sys
from pathlib import Path
from svsm_bridge.transports.socket import SocketServer, listen
from tests.bridge.test_clients import Awkward
server = SocketServer(listen(Path(sys.argv[1]) / "run" / "s"), Awkward(30))
print("ready", flush=True)
server.serve_forever()
"""


def test_B62_the_c_program_survives_a_server_killed_in_the_middle_of_a_call(example, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert server.stdout.readline() == b"ready\n"
        guest = subprocess.Popen(
            [str(example), str(tmp_path / "run" / "s"), "slow"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert guest.stdout.readline() == "calling\n"
        time.sleep(0.1)
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()
    out, err = guest.communicate(timeout=30)
    assert (guest.returncode, out, err) == (9, "server gone\n", "")


def test_B64_a_rust_program(tmp_path, serve):
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("rustc is not installed")
    out = tmp_path / "guest"
    built = subprocess.run(
        [rustc, "--edition", "2021", "-D", "warnings", "-o", str(out), str(Path(__file__).with_name("guest.rs"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    server = serve(variables(), reports=Reports(), manifests=manifest_source(lambda: CLAIMS))
    code, text = run(out, server.path)
    assert code == 0, text
    assert text.splitlines() == ["discovered UEFI MM", "variable round trip", "attested 2 services"]


def test_all_clients_speak_of_the_same_variables(example, serve):
    """What the C guest wrote before its power off, the Python guest reads after its boot."""
    server = serve(variables(), reports=Reports(), manifests=manifest_source(lambda: CLAIMS))
    assert run(example, server.path)[0] == 0
    client = GuestClient.start(server.path)
    message = access(1, "FromC2", bytes(32))
    vendor = b"a C guid, 16 by\0"
    message = message[:40] + vendor + message[56:]
    reply = client.mm_request(message)
    assert reply[32:40] == bytes(8)
    assert reply[76 + 14 :][:13] == b"written by C\0"
    client.close()


def test_the_example_with_a_handler_of_one_s_own():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_handler.py")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "in process: HELLO FROM THE GUEST\nby socket:  HELLO FROM THE GUEST\n", done.stderr
