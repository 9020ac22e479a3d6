"""The broker: a complete exchange against its bare cryptography, an advance against a durable transaction.

Exchange: auth, attest and resource, CPU time of the server's side in this process (ASGI, a task per request, no
sockets), with simulated SNP evidence. Guests boot by the eight, so that the server's requests follow each other
as in a server; what the clients compute is not timed. The floor is the server's cryptography of one such exchange
and nothing else, on the bytes of a real one: every signature, key, cipher, digest and random value that it cannot
do without, with certificates already taken apart and long-lived keys already loaded.
Advance: wall time, because a disk decides; the floor is what has to become durable, one row compared and swapped
and one row with the escrow inserted, in one bare transaction on the same engine and file system. One guest alone,
where in front of both the request for an advance is read, untimed, as a broker does; and eight guests at once
against eight threads with bare transactions of one each, which take turns where SQLite has one writer (the broker
commits for all who wait, so it may be faster). PostgreSQL is measured when `scripts/with-postgres.sh` runs the
benchmarks.
"""

import asyncio
import base64
import collections
import contextlib
import hashlib
import hmac
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from benchmarks.harness import Figure, against_floor, spread
from cvars.attest.simulated import SimulatedAmdSp
from cvars.attest.snp.rules import P384_ORDER
from cvars.broker import record as rules
from cvars.broker.app import create_app, open_broker
from cvars.broker.config import AttestationTable, BrokerConfig, SimulationTable
from cvars.broker.database import Database
from cvars.broker.http import parse_model
from cvars.broker.messages import AdvanceRequest, Point
from cvars.broker.migrate import migrate
from cvars.broker.record import Record
from cvars.broker.service import Broker
from cvars.broker.setup import init
from cvars.release import channel, jwe, reportdata, teekey
from cvars.store.anchor import ORIGIN, AnchorPoint

_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
BOOTING = 8  # guests that boot together
ADVANCING, EACH = 8, 10  # guests that advance at once, each so many times in a row
ESCROW = (1024).to_bytes(4, "little") + b"CVR1" + bytes(1020)
CHALLENGE = b'{"version":"0.4.0","tee":"snp","extra-params":""}'
MEASUREMENT = b"\1" * 48
POLICY = f"""
policy: bench
version: 1
applies_to: ["default/*/*"]
trust_domains: [simulated]
any_of:
  - snp:
      product: [Genoa]
      measurement_in: ["{MEASUREMENT.hex()}"]
      min_tcb: {{Genoa: {{bootloader: 10, tee: 0, snp: 23, microcode: 84}}}}
release: {{per_vm: false}}
"""


class Exchange:
    """A broker in this process, and a client that prepares its side outside of the measured time."""

    def __init__(self, folder: Path) -> None:
        source = random.Random(1).randbytes
        self.hardware = SimulatedAmdSp.load_or_create(folder / "hardware", product="Genoa", random=source)
        self.guest = self.hardware.launch(measurement=MEASUREMENT)
        init(folder / "broker")
        (folder / "broker" / "policies" / "bench.yaml").write_text(POLICY)
        config = BrokerConfig(
            folder=folder / "broker",
            simulation=True,
            simulated=SimulationTable(roots=folder / "hardware" / "public"),
            attestation=AttestationTable(),
        )
        self.broker = open_broker(config, clock=time.time, random=os.urandom)
        self.broker.resources.put("default/sample/test", bytes(32))
        self.app = create_app(self.broker, inline=True)
        self.loop = asyncio.new_event_loop()
        self.seen: list[bytes] = []  # bodies of the last exchange, asked and answered in turn

    async def call(self, method: str, path: str, cookie: str, body: bytes) -> tuple[dict[str, str], bytes]:
        """One request through the application; the server's side only."""
        out: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:  # noqa: ANN401
            if message["type"] == "http.response.start":
                out["status"] = message["status"]
                out["headers"] = message["headers"]
            else:
                out["body"] += message.get("body", b"")

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"cookie", cookie.encode()), (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        await asyncio.create_task(self.app(scope, receive, send))
        assert out["status"] == 200, out["body"]
        self.seen += [body, out["body"]]
        return {k.decode(): v.decode() for k, v in out["headers"]}, out["body"]

    def boot(self, guests: int) -> list[tuple[float, float]]:
        """Exchanges of guests that boot together: of each (CPU microseconds of the server, wall microseconds)."""
        return self.loop.run_until_complete(self._boot(guests))

    async def _boot(self, guests: int) -> list[tuple[float, float]]:
        spent = [[0.0, 0.0] for _ in range(guests)]
        self.seen = []

        async def timed(
            guest: int, method: str, path: str, cookie: str, body: bytes
        ) -> tuple[dict[str, str], bytes]:
            at, on = time.perf_counter_ns(), time.process_time_ns()
            answer = await self.call(method, path, cookie, body)
            spent[guest][0] += (time.process_time_ns() - on) / 1000
            spent[guest][1] += (time.perf_counter_ns() - at) / 1000
            return answer

        challenges = [await timed(n, "POST", "/kbs/v0/auth", "", CHALLENGE) for n in range(guests)]
        cookies, keys, documents = [], [], []
        for headers, body in challenges:
            cookies.append(headers["set-cookie"].partition(";")[0])
            nonce = json.loads(body)["nonce"]
            keys.append(teekey.generate(os.urandom))
            evidence = self.guest.collect(reportdata.profile_t(nonce, keys[-1].public))
            document = {
                "runtime-data": {"nonce": nonce, "tee-pubkey": dict(keys[-1].public.jwk)},
                "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
            }
            documents.append(json.dumps(document).encode())
        for n in range(guests):
            await timed(n, "POST", "/kbs/v0/attest", cookies[n], documents[n])
        path = "/kbs/v0/resource/default/sample/test"
        secrets = [await timed(n, "GET", path, cookies[n], b"") for n in range(guests)]
        for (_, body), key in zip(secrets, keys, strict=True):
            assert jwe.decrypt(json.loads(body), key.private) == bytes(32)
        return [(cpu, wall) for cpu, wall in spent]

    def bare(self) -> Callable[[], None]:
        """The cryptography of one exchange on the server, in its order: one must have been seen."""
        leaf, ask, ark = (x509.load_der_x509_certificate(s.data) for s in self.guest.supplied())
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        chain: list[tuple[Any, bytes, bytes]] = [
            (issuer.public_key(), child.signature, child.tbs_certificate_bytes)
            for child, issuer in ((leaf, ask), (ask, ark), (ark, ark))
        ]
        root = ark.public_key().public_bytes(*_SPKI)
        chip: Any = leaf.public_key()
        report = self.guest.report(bytes(64))
        r = int.from_bytes(report[0x2A0:0x2E8], "little")
        s = int.from_bytes(report[0x2E8:0x330], "little")
        assert r < P384_ORDER
        signature, signed = encode_dss_signature(r, s), report[:0x2A0]
        _, _, attest_body, token_body, _, resource_body = self.seen
        token = json.loads(token_body)["token"].rpartition(".")[0].encode()
        sealed = json.loads(resource_body)
        header, ciphertext = sealed["protected"].encode(), bytes(48)
        runtime = json.dumps(json.loads(attest_body)["runtime-data"]).encode()
        guest = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        token_key = ec.generate_private_key(ec.SECP256R1())
        signer = ed25519.Ed25519PrivateKey.generate()
        master = AESGCM.generate_key(256)
        wrapped = AESGCM(master).encrypt(bytes(12), bytes(32), b"path")
        sha256, sha384 = hashlib.sha256, hashlib.sha384
        cookie, line, statement = b"0" * 32, bytes(400), bytes(700)

        def work() -> None:
            sha256(os.urandom(16).hex().encode()).digest()  # session: cookie and nonce, kept as hashes
            sha256(os.urandom(32)).digest()
            sha256(cookie).digest()
            sha256(attest_body).digest()  # what the log says was shown
            hmac.compare_digest(sha256(cookie).digest(), sha256(cookie).digest())
            key = ec.EllipticCurvePublicNumbers(guest.x, guest.y, ec.SECP256R1()).public_key()  # on the curve?
            bound = sha384(runtime).digest()
            sha256(root).digest()  # the pin
            for issuer, mark, body in chain:
                issuer.verify(mark, body, pss, hashes.SHA384())
            chip.verify(signature, signed, ec.ECDSA(hashes.SHA384()))
            hmac.compare_digest(bound, bound)
            sha256(sha256(master).digest() + cookie).digest()  # the chip id in the token is salted
            token_key.sign(token, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
            sha256(line).digest()  # the log is a chain
            sha256(cookie).digest()
            AESGCM(master).decrypt(bytes(12), wrapped, b"path")
            ephemeral = ec.generate_private_key(ec.SECP256R1())
            kek = sha256(ephemeral.exchange(ec.ECDH(), key)).digest()
            content = os.urandom(32)
            aes_key_wrap(kek, content)
            AESGCM(content).encrypt(os.urandom(12), bytes(32), header)
            sha256(runtime).digest()  # audience and ciphertext in the statement
            sha256(ciphertext).digest()
            signer.sign(statement)
            sha256(line).digest()

        return work


def exchange_figures(folder: Path) -> list[Figure]:
    """CPU per exchange against the bare cryptography; rate and p99 of one worker, for information."""
    exchange = Exchange(folder)
    exchange.boot(1)
    bare = exchange.bare()
    cpu, wall, floor = [], [], []
    for number in range(42):
        spent = exchange.boot(BOOTING)
        for _ in range(BOOTING if number > 1 else 0):
            on = time.process_time_ns()
            bare()
            floor.append((time.process_time_ns() - on) / 1000)
        if number > 1:  # caches and the interpreter are warm
            cpu += [one[0] for one in spent]
            wall += [one[1] for one in spent]
    cpu.sort(), wall.sort(), floor.sort()
    value, base = cpu[len(cpu) // 2], floor[len(floor) // 2]
    rate = 1e6 / (sum(wall) / len(wall))
    p99 = wall[int(len(wall) * 0.99)]
    exchange.broker.db.close()
    return [
        Figure(
            "broker: auth + attest + resource, CPU", "us", value, base, value / base, spread(cpu), "ratio <= 3",
            value / base <= 3,
        ),
        Figure("broker: exchanges of one worker", "1/s", rate, None, None, spread(wall), "", met=True),
        Figure("broker: exchange, p99", "us", p99, None, None, spread(wall), "", met=True),
    ]  # fmt: skip


def advance_figures(engine: str, url: str, folder: Path) -> list[Figure]:
    """An `advance` through record, history and escrow, against its two rows in one durable transaction."""
    init(folder)
    broker = open_broker(
        BrokerConfig(folder=folder, database=url), clock=time.time, random=os.urandom, verifier=_Nobody()
    )
    database = Database(broker.db.url.render_as_string(hide_password=False))
    number, blob = ("INTEGER", "BLOB") if database.sqlite else ("BIGINT", "BYTEA")
    with database.write() as connection:
        for table, columns in (("bench_record", f"root {blob}"), ("bench_floor", f"data {blob}")):
            connection.execute(sa.text(f"CREATE TABLE {table} (n {number} PRIMARY KEY, {columns})"))
    turn = threading.Lock() if database.sqlite else contextlib.nullcontext()
    guests = [_Advances(broker, f"vm-{n}") for n in range(ADVANCING)]
    bare = [_Bare(database, n * 1_000_000, turn) for n in range(ADVANCING)]
    name = f"broker: anchor advance, {engine}"
    for _ in range(200):  # the log is written over in place from here on, as in all of a broker's life
        for step in (guests[0].renew_request, guests[0], bare[0]):
            step()
    alone = against_floor(name, guests[0], bare[0], max_ratio=1.5, rounds=600, before=guests[0].renew_request)
    mine: list[float] = []
    theirs: list[float] = []
    with ThreadPoolExecutor(ADVANCING) as threads:
        for _ in range(25):
            for actions, into in ((guests, mine), (bare, theirs)):
                for guest in guests if actions is guests else []:
                    for _ in range(EACH):
                        guest.prepare()
                start = time.perf_counter_ns()
                list(threads.map(_repeated, actions))
                into.append(1e9 * EACH * ADVANCING / (time.perf_counter_ns() - start))
    rate, floor = statistics.median(mine), statistics.median(theirs)
    for one in bare:
        one.close()
    database.close()
    broker.db.close()
    return [
        alone,
        Figure(
            f"broker: anchor advances of {ADVANCING} guests, {engine}", "1/s", rate, floor, floor / rate,
            spread(mine), "", met=True,
        ),
    ]  # fmt: skip


def _repeated(action: Callable[[], None]) -> None:
    for _ in range(EACH):
        action()


_SWAP = "UPDATE bench_record SET n = %s, root = %s WHERE n = %s"
_SWAP_SQLITE = _SWAP.replace("%s", "?")
_JOINED = f"WITH moved AS ({_SWAP} RETURNING n) INSERT INTO bench_floor SELECT n, %s FROM moved"


class _Bare:
    """One row compared and swapped and one with the escrow inserted: a call is one durable transaction."""

    def __init__(self, database: Database, start: int, turn: contextlib.AbstractContextManager[Any]) -> None:
        self.raw = database.engine.raw_connection()
        if not database.sqlite:
            driver: Any = self.raw.driver_connection
            driver.autocommit = True  # one statement, as cheap as it gets
        self.cursor, self.turn, self.sqlite, self.version = self.raw.cursor(), turn, database.sqlite, start
        with database.write() as connection:
            connection.execute(
                sa.text("INSERT INTO bench_record VALUES (:n, :root)"), {"n": start, "root": bytes(32)}
            )

    def __call__(self) -> None:
        with self.turn:
            if self.sqlite:
                self.cursor.execute("BEGIN IMMEDIATE")
                self.cursor.execute(_SWAP_SQLITE, (self.version + 1, os.urandom(32), self.version))
                assert self.cursor.rowcount == 1
                self.cursor.execute("INSERT INTO bench_floor VALUES (?, ?)", (self.version + 1, ESCROW))
                self.cursor.execute("COMMIT")
            else:
                values = self.version + 1, os.urandom(32), self.version, ESCROW
                self.cursor.execute(_JOINED, values)
                assert self.cursor.rowcount == 1
            self.version += 1

    def close(self) -> None:
        self.raw.invalidate()  # it may be in autocommit


class _Advances:
    """One `advance` a call. ``prepare`` reads its request and checks its MAC, as the broker does before."""

    def __init__(self, broker: Broker, vm_id: str) -> None:
        broker.add_vm(vm_id, mode="strict")
        broker.operate(vm_id, lambda r: rules.acquire(r, holder="h", instance=None, now=time.time()))
        broker.operate(vm_id, lambda r: rules.provision(r, epoch=1, holder="h"))
        self.broker, self.vm_id = broker, vm_id
        self.key, self.sequence, self.point = os.urandom(32), 0, ORIGIN
        self.requests: collections.deque[AdvanceRequest] = collections.deque()

    def renew_request(self) -> None:
        """The next request, in the place of the one that waits."""
        self.requests.clear()
        self.prepare()

    def prepare(self) -> None:
        self.sequence += 1
        at = _point(self.requests[-1].to) if self.requests else self.point
        base = at if at != ORIGIN else AnchorPoint(0, bytes(31) + b"\1")
        to = AnchorPoint(at.counter + 1, os.urandom(32))
        named = {
            name: {"counter": p.counter, "root": p.root.hex()}
            for name, p in (("from", at), ("to", to), ("base", base))
        }
        body = {"epoch": 1, **named, "key_version": 1, "escrow": base64.b64encode(ESCROW).decode()}
        raw, path = json.dumps(body).encode(), f"/cvars/v1/anchor/{self.vm_id}/advance"
        given = channel.headers(self.key, "POST", path, self.sequence, raw)
        assert channel.sequence_of(given, self.key, "POST", path, raw) == self.sequence
        self.requests.append(parse_model(raw, AdvanceRequest, status=400))

    def __call__(self) -> None:
        request = self.requests.popleft()

        def change(now: Record) -> rules.Change:
            return rules.advance(
                now, epoch=request.epoch, holder="h", start=_point(request.start), to=_point(request.to),
                base=_point(request.base),
                key_version=request.key_version, escrow=ESCROW, now=time.time(),
            )  # fmt: skip

        self.point = self.broker.operate(self.vm_id, change).point


def _point(given: Point) -> AnchorPoint:
    return AnchorPoint(given.counter, bytes.fromhex(given.root))


class _Nobody:
    """A verifier that is never asked."""

    simulation = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        raise AttributeError(name)


def figures() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="cvars-bench-"))
    try:
        out = exchange_figures(folder / "exchange")
        out += advance_figures("SQLite", "sqlite:///broker.db", folder / "sqlite")
        url = os.environ.get("CVARS_TEST_POSTGRES")
        if url:
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                connection.exec_driver_sql("DROP SCHEMA public CASCADE")
                connection.exec_driver_sql("CREATE SCHEMA public")
            engine.dispose()
            migrate(url)
            out += advance_figures("PostgreSQL", url, folder / "postgres")
        return out
    finally:
        shutil.rmtree(folder)
