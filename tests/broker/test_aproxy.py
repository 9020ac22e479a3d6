"""An SVSM as COCONUT's is, behind `cvars aproxy`, with the real broker (K61)."""

import base64
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from cvars.broker.aproxy import Proxy, listen, serve
from cvars.release.transport import http_transport
from tests.broker.real import SECRET, policy_text


def b64(data):
    return base64.b64encode(data).decode()


def send(stream, document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    stream.sendall(len(data).to_bytes(8, "little") + data)


def receive(stream):
    size = int.from_bytes(stream.recv(8, socket.MSG_WAITALL), "little")
    return json.loads(stream.recv(size, socket.MSG_WAITALL)) if size else None


@pytest.fixture
def proxy(sample, tmp_path):
    path = tmp_path / "aproxy.sock"
    listener = listen(f"unix:{path}")
    stop = threading.Event()
    thread = threading.Thread(
        target=serve, args=(listener, Proxy(http_transport(sample.server.url))), kwargs={"stopped": stop.is_set}
    )
    thread.start()
    yield lambda: _connect(path)
    stop.set()
    thread.join(5)
    listener.close()


def _connect(path):
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(15)
    stream.connect(str(path))
    return stream


def svsm(stream, guest, *, edit=lambda d: d):
    """What the SVSM does; the secret, or None."""
    send(stream, {"version": [0, 1, 0], "tee": "snp"})
    first = receive(stream)
    assert first["params"] == ["EcPublicKeyBytes", "Challenge"]
    key = ec.generate_private_key(ec.SECP521R1())
    point = key.public_key().public_numbers()
    x, y = point.x.to_bytes(66), point.y.to_bytes(66)
    data = hashlib.sha512(x + y + base64.b64decode(first["challenge"])).digest()
    evidence = {"Snp": {"report": b64(guest.report(data)), "certs_buf": b64(guest.certificates())}}
    send(stream, edit({"tee": "snp", "evidence": evidence, "challenge": first["challenge"],
                       "key": {"x": b64(x), "y": b64(y)}}))  # fmt: skip
    answer = receive(stream)
    if not answer["success"]:
        assert "secret" not in answer
        return None
    how = answer["decryption"]
    peer = ec.EllipticCurvePublicNumbers(
        int.from_bytes(base64.b64decode(how["epk"]["x"])),
        int.from_bytes(base64.b64decode(how["epk"]["y"])),
        ec.SECP521R1(),
    ).public_key()
    info = b"\0\0\0\x0eECDH-ES+A256KW" + bytes(8) + (256).to_bytes(4)
    kek = ConcatKDFHash(hashes.SHA256(), 32, info).derive(key.exchange(ec.ECDH(), peer))
    cek = aes_key_unwrap(kek, base64.b64decode(how["wrapped_cek"]))
    sealed = base64.b64decode(answer["secret"]) + base64.b64decode(how["tag"])
    assert answer["token"]["Jwt"].count(".") == 2
    return AESGCM(cek).decrypt(base64.b64decode(how["iv"]), sealed, base64.b64decode(how["aad"]))


def test_K61_an_svsm_obtains_its_secret_through_the_proxy(sample, proxy):
    guest = sample.snp()
    with proxy() as stream:
        assert svsm(stream, guest) == SECRET
    with proxy() as stream:
        assert svsm(stream, sample.snp(measurement=b"\2" * 48)) is None
    sample.put(policy_text(applies="other/*/*"))
    with proxy() as stream:
        assert svsm(stream, guest) is None


@pytest.mark.parametrize(
    "message",
    [
        {"version": [0, 2, 0], "tee": "snp"},
        {"version": [0, 1, 0], "tee": "tdx"},
        {"version": [0, 1, 0]},
        b"[]",
        b"{",
        b'{"version":[0,1,0],"tee":"snp","tee":"snp"}',
    ],
)
def test_anything_else_closes_the_connection(proxy, message):
    with proxy() as stream:
        send(stream, message)
        assert stream.recv(1) == b""


def test_lengths_and_malformed_evidence_close_the_connection(sample, proxy):
    for size in (0, 64 * 1024 + 1, 2**63):
        with proxy() as stream:
            stream.sendall(size.to_bytes(8, "little"))
            assert stream.recv(1) == b""
    guest = sample.snp()
    for edit in (
        lambda d: d | {"challenge": b64(bytes(32))},
        lambda d: d | {"evidence": {"Tdx": {}}},
        lambda d: d | {"key": {"x": "?", "y": "?"}},
        lambda d: {"x": 1},
    ):
        with proxy() as stream, pytest.raises((TypeError, json.JSONDecodeError, ConnectionError)):
            svsm(stream, guest, edit=edit)


def test_the_command_serves_until_sigterm(sample, tmp_path):
    path = tmp_path / "a.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "cvars", "aproxy", "--listen", f"unix:{path}", "--broker", sample.server.url],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("aproxy ready")
    with _connect(path) as stream:
        assert svsm(stream, sample.snp()) == SECRET
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stdout.close()
    assert not path.exists()


def test_the_command_listens_on_vsock_and_says_when_it_cannot():
    """Binding only: a connection needs a guest, or a kernel with vsock_loopback."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as free:
            free.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            port = free.getsockname()[1]
    except (OSError, AttributeError) as error:
        pytest.skip(f"no vsock here: {error}")
    command = [sys.executable, "-m", "cvars", "aproxy", "--listen"]
    process = subprocess.Popen([*command, f"vsock:{port}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith(f"aproxy ready on vsock:{port}")
    for where, code in ((f"vsock:{port}", 4), ("vsock:4294967295", 2), ("vsock:99999999999", 2), ("vsock:x", 2)):
        second = subprocess.run([*command, where], capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == code, second.stderr
        assert where in second.stderr
        assert "Traceback" not in second.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stdout.close()
