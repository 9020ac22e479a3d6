"""TLS and mutual TLS: a certificate lets the broker leave loopback, a client CA keeps strangers out."""

import datetime
import http.client
import ssl
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cvars.broker.setup import init
from cvars.release.transport import http_transport

NOW = datetime.datetime.now(datetime.UTC)


def issue(folder, name, issuer=None, *, ca=False):
    """A certificate and its key as files; (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above, signer = (subject, key) if issuer is None else (issuer[0].subject, issuer[1])
    import ipaddress

    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, False, False, False, False, ca, ca, False, False), critical=True)
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / f"{name}.key"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    private.chmod(0o600)
    return made, key


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "broker"
    init(made)
    ca = issue(made, "ca", ca=True)
    issue(made, "broker", ca)
    issue(made, "client", ca)
    return made


def test_mutual_tls_lets_known_clients_in_and_nobody_else(folder):
    toml = folder / "broker.toml"
    text = toml.read_text().replace('listen = "127.0.0.1:8080"', 'listen = "0.0.0.0:0"')
    text = text.replace('# tls_certificate = "tls/broker.crt"', 'tls_certificate = "broker.crt"')
    text = text.replace('# tls_key = "tls/broker.key"', 'tls_key = "broker.key"')
    toml.write_text(text.replace('# client_ca = "tls/clients.crt"', 'client_ca = "ca.crt"'))
    process = subprocess.Popen(
        [sys.executable, "-m", "cvars", "broker", "serve", "-c", str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert "ready on https://0.0.0.0:" in line
        port = int(line.split()[3].rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        stranger = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        with pytest.raises(OSError):  # at the handshake, or at the first answer
            _get(stranger)
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
        known = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        known.request("POST", "/kbs/v0/auth", b'{"version":"0.4.0","tee":"snp","extra-params":""}')
        answer = known.getresponse()
        assert answer.status == 200
        assert "; Secure" in answer.headers["set-cookie"]
        known.close()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


def _get(connection):
    connection.request("GET", "/healthz")
    return connection.getresponse()


def test_the_client_checks_the_brokers_certificate(folder):
    from cvars.errors import AnchorUnreachable
    from tests.broker.real import Server

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    server = Server(app)
    try:
        with pytest.raises(AnchorUnreachable):
            http_transport(f"https://127.0.0.1:{server.port}", verify=str(folder / "ca.crt"))("GET", "/", {}, b"")
        assert http_transport(server.url)("GET", "/", {}, b"").body == b"{}"
    finally:
        server.stop()
