"""A broker behind a real HTTP server, and a KBS client written from the specification alone.

The client shares no code with `cvars.release`: primitives of `cryptography`, JSON of the standard library.
"""

import base64
import contextlib
import hashlib
import http.client
import json
import random as random_module
import socket
import threading
import time

import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx
from cvars.broker.app import create_app, make_verifier
from cvars.broker.config import AttestationTable, SimulationTable
from cvars.broker.metrics import Metrics
from tests.broker.support import World

MEASUREMENT = "01" * 48
SECRET = b"the secret of default/sample/test"
RESOURCE = "default/sample/test"
TCB = """Genoa: {bootloader: 10, tee: 0, snp: 23, microcode: 84}
        Milan: {bootloader: 4, tee: 0, snp: 24, microcode: 219}
        Turin: {fmc: 1, bootloader: 1, tee: 1, snp: 4, microcode: 81}"""


def policy_text(*, snp="", tdx="", require="", release="per_vm: false", domains="simulated", name="sample",
                applies="default/*/*", any_of=None):  # fmt: skip
    """A policy for `RESOURCE`; ``snp`` and ``tdx`` are more lines of the leaves."""
    leaves = (
        any_of
        or f"""  - snp:
      product: [Genoa, Milan, Turin]
      measurement_in: ["{MEASUREMENT}"]
      min_tcb:
        {TCB}
{snp}
  - tdx:
      mr_td_in: ["{MEASUREMENT}"]
      rtmr: {{0: any, 1: any, 2: any, 3: any}}
{tdx}"""
    )
    return f"""
policy: {name}
version: 1
applies_to: ["{applies}"]
trust_domains: [{domains}]
require: {{{require}}}
any_of:
{leaves}
release: {{{release}}}
"""


class Server:
    """uvicorn in a thread, on a port of its own."""

    def __init__(self, app) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=2)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


class RealWorld(World):
    """Simulated hardware, the real verifier, real HTTP, time and randomness of the test."""

    def __init__(
        self, folder, hardware, *, policies=None, profile_c=True, admin=None, body_timeout_s=10.0, **config
    ):
        self.admin = admin
        self.body_timeout_s = body_timeout_s
        self.hardware = hardware
        random = random_module.Random(5).randbytes
        for line in ("Genoa", "Turin"):
            SimulatedAmdSp.load_or_create(hardware, product=line, random=random)
        SimulatedTdx.load_or_create(hardware, random=random, clock=time.time)
        super().__init__(
            folder,
            policy=None,
            simulation=True,
            simulated=SimulationTable(roots=hardware / "public"),
            attestation=AttestationTable(profile_c=profile_c),
            verifier=object(),
            **config,
        )
        self.put(*(policies or [policy_text()]))
        self.broker.resources.put(RESOURCE, SECRET)
        self.random_bytes = random_module.Random(9).randbytes
        self.metrics = Metrics()
        self.server = Server(
            create_app(self.broker, admin=admin, metrics=self.metrics, body_timeout_s=body_timeout_s)
        )

    def open(self) -> None:
        if not hasattr(self.verifier, "verify"):
            self.clock.now = time.time()
            self.verifier = make_verifier(self.config)
        super().open()

    def put(self, *texts) -> None:
        """These policies and no others."""
        self.broker.policies.load({f"policy {n}": text for n, text in enumerate(texts)})

    def stop(self) -> None:
        self.server.stop()
        self.close()

    def amd(self, line="Genoa", **kwargs) -> SimulatedAmdSp:
        return SimulatedAmdSp.load_or_create(self.hardware, product=line, random=self.random_bytes, **kwargs)

    def snp(self, line="Genoa", **launch):
        launch.setdefault("measurement", bytes.fromhex(MEASUREMENT))
        return self.amd(line).launch(**launch)

    def tdx(self, **launch):
        launch.setdefault("measurement", bytes.fromhex(MEASUREMENT))
        hardware = SimulatedTdx.load_or_create(self.hardware, random=self.random_bytes, clock=self.clock)
        return hardware.launch(**launch)

    def kbs(self, **kwargs) -> "KbsClient":
        return KbsClient(self.server.port, **kwargs)

    def last(self) -> dict:
        return self.lines[-1]

    @contextlib.contextmanager
    def one_line(self):
        """Exactly one audit line is written for what happens here."""
        before = self.broker.audit.head[0]
        found: dict = {}
        yield found
        found.update(self.last())
        assert self.broker.audit.head[0] == before + 1, list(self.broker.audit.recent)[-3:]

    def outcome(self, evidence, *, tee="snp", **kwargs) -> tuple[int, str]:
        """Attest with ``evidence(report_data)`` and ask for the secret: (status, rule) of the first refusal."""
        client = self.kbs(tee=tee, **kwargs)
        with self.one_line() as line:
            client.auth() if not client.cookie else None
            answer = client.attest(evidence)
        if answer.status != 200:
            assert SECRET not in answer.body
            assert line["decision"] == "deny"
            assert line["rule"] == answer.rule
            return answer.status, answer.rule
        with self.one_line() as line:
            answer = client.get(RESOURCE)
        if answer.status != 200:
            assert b"ciphertext" not in answer.body
            assert line["rule"] == answer.rule
            return answer.status, answer.rule
        assert client.open(answer.json()) == SECRET
        return 200, ""


class Answer:
    """One HTTP answer."""

    def __init__(self, status, headers, body) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        return json.loads(self.body)

    @property
    def rule(self) -> str:
        document = self.json()
        assert set(document) == {"type", "detail"} or "rule" in document, document
        return document.get("rule") or document["detail"]


def request(port, method, path, headers=None, body=b"") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


_KEYS: dict[str, object] = {}


class KbsClient:
    """What a Trustee guest does: auth, attest, get, and again from the start on 401, three times."""

    def __init__(self, port, *, tee="snp", key="P-256", profile="T") -> None:
        self.port = port
        self.tee = tee
        self.profile = profile
        self.cookie = ""
        self.nonce = ""
        self.token = ""
        if key == "RSA":
            self.private = _KEYS.setdefault("RSA", rsa.generate_private_key(65537, 2048))
            numbers = self.private.public_key().public_numbers()
            self.jwk = {
                "kty": "RSA",
                "alg": "RSA-OAEP-256",
                "n": b64u(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
                "e": "AQAB",
            }
        else:
            self.size = {"P-256": 32, "P-521": 66}[key]
            self.curve = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}[key]
            self.private = ec.generate_private_key(self.curve)
            point = self.private.public_key().public_numbers()
            self.xy = point.x.to_bytes(self.size), point.y.to_bytes(self.size)
            self.jwk = {
                "kty": "EC",
                "crv": key,
                "alg": "ECDH-ES+A256KW",
                "x": b64u(self.xy[0]),
                "y": b64u(self.xy[1]),
            }

    def auth(self, **changes) -> Answer:
        body = {"version": "0.4.0", "tee": self.tee, "extra-params": ""} | changes
        answer = request(self.port, "POST", "/kbs/v0/auth", body=json.dumps(body).encode())
        if answer.status == 200:
            self.nonce = answer.json()["nonce"]
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    def report_data(self, additional="") -> bytes:
        if self.profile == "C":
            return hashlib.sha512(b"".join(self.xy) + base64.b64decode(self.nonce)).digest()
        document = {"additional-evidence": additional, "nonce": self.nonce, "tee-pubkey": self.jwk}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha384(text.encode()).digest().ljust(64, b"\0")

    def body(self, evidence, *, additional="", init_data=None) -> dict:
        document = {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.jwk},
            "tee-evidence": {
                "primary_evidence": evidence(self.report_data(additional)),
                "additional_evidence": additional,
            },
        }
        if init_data is not None:
            document["init-data"] = {"format": "toml", "body": init_data}
        return document

    def attest(self, evidence, *, raw=None, **kwargs) -> Answer:
        body = raw if raw is not None else json.dumps(self.body(evidence, **kwargs)).encode()
        answer = request(self.port, "POST", "/kbs/v0/attest", {"Cookie": self.cookie}, body)
        if answer.status == 200:
            self.token = answer.json()["token"]
        return answer

    def get(self, path, *, bearer=False) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"} if bearer else {"Cookie": self.cookie}
        return request(self.port, "GET", f"/kbs/v0/resource/{path}", headers)

    def fetch(self, path, evidence, **kwargs) -> bytes:
        """As a guest does it: whatever went wrong with 401 is tried again from the start, three times."""
        for _ in range(3):
            if not self.cookie:
                self.auth()
                self.attest(evidence, **kwargs)
            answer = self.get(path)
            if answer.status != 401:
                break
            self.cookie = ""
        assert answer.status == 200, (answer.status, answer.body)
        return self.open(answer.json())

    def open(self, jwe) -> bytes:
        """Decrypt; the associated data is the header, parsed and serialised again, as clients do."""
        header = json.loads(unb64u(jwe["protected"]))
        again = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        aad = b64u(again).encode()
        if self.jwk["kty"] == "RSA":
            assert header == {"alg": "RSA-OAEP-256", "enc": "A256GCM"}
            cek = self.private.decrypt(
                unb64u(jwe["encrypted_key"]),
                padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
            )
        else:
            assert list(header) == ["alg", "enc", "epk"]
            assert list(header["epk"]) == ["crv", "kty", "x", "y"]
            peer = ec.EllipticCurvePublicNumbers(
                int.from_bytes(unb64u(header["epk"]["x"])), int.from_bytes(unb64u(header["epk"]["y"])), self.curve
            ).public_key()
            info = b"\0\0\0\x0eECDH-ES+A256KW" + bytes(4) + bytes(4) + (256).to_bytes(4)
            kek = ConcatKDFHash(hashes.SHA256(), 32, info).derive(self.private.exchange(ec.ECDH(), peer))
            cek = aes_key_unwrap(kek, unb64u(jwe["encrypted_key"]))
        return AESGCM(cek).decrypt(unb64u(jwe["iv"]), unb64u(jwe["ciphertext"]) + unb64u(jwe["tag"]), aad)
