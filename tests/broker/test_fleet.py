"""Two brokers on one PostgreSQL, 200 guests booting at once, one broker killed, the database restarted.

A checker reads what the guests were told and what the database holds, and proves: no acknowledged advance is lost,
no secret is released beyond `max_uses`, no lease has two holders. Run by `make test-postgres`.
"""

import json
import os
import random as random_module
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from cvars.attest.simulated import SimulatedAmdSp
from cvars.broker.anchors import verify_history
from cvars.broker.database import Database
from cvars.broker.record import LEASE_S
from cvars.broker.setup import init
from cvars.errors import AnchorLeased, AnchorUnreachable, StoreError
from cvars.release import initdata
from cvars.release.client import BrokerClient
from cvars.release.errors import AttestRefused, ReleaseRefused
from cvars.release.transport import http_transport
from cvars.store.anchor import ORIGIN, AnchorPoint
from cvars.trace import silent
from tests.broker.support import entry
from tests.broker.test_postgres import fresh_database

pytestmark = pytest.mark.postgres
GUESTS = 200
CLONES = 20
ADVANCES = 4
MAX_USES = 2
MEASUREMENT = "ab" * 48
LEAF = f"""any_of:
  - snp:
      product: [Genoa]
      measurement_in: ["{MEASUREMENT}"]
      min_tcb: {{Genoa: {{bootloader: 10, tee: 0, snp: 23, microcode: 84}}}}
"""
POLICIES = {
    "stores": f"""policy: stores
version: 1
applies_to: ["vms/*/store-kek"]
trust_domains: [simulated]
require: {{anchor: {{lease: required}}}}
{LEAF}release: {{per_vm: true}}
""",
    "few": f"""policy: few
version: 1
applies_to: ["few/*/secret"]
trust_domains: [simulated]
{LEAF}release: {{per_vm: true, max_uses: {MAX_USES}}}
""",
}


@dataclass
class Told:
    """What one guest was told."""

    vm_id: str
    points: list[AnchorPoint] = field(default_factory=list)  # acknowledged, in order
    uses: int = 0
    epochs: list[int] = field(default_factory=list)
    boots: int = 0
    done: bool = False
    trouble: list[str] = field(default_factory=list)


class Brokers:
    """Two processes; requests go to one and, when it does not answer, to the other."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.processes = [None, None]
        self.urls = ["", ""]

    def start(self, number) -> None:
        config = self.folder / f"broker-{number}.toml"
        listen = self.urls[number].removeprefix("http://") or "127.0.0.1:0"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cvars",
                "broker",
                "serve",
                "-c",
                str(config),
                "--simulation",
                "--listen",
                listen,
            ],
            stdout=subprocess.PIPE,
            stderr=(self.folder / f"stderr-{number}").open("a"),
            text=True,
        )
        line = process.stdout.readline()
        assert line.startswith("broker ready on"), (self.folder / f"stderr-{number}").read_text()
        self.urls[number] = line.split()[3]
        self.processes[number] = process

    def stop(self) -> list[int]:
        for process in self.processes:
            process.terminate()
        return [process.wait(30) for process in self.processes]

    def http(self, first):
        sends = [http_transport(url, timeout=20) for url in self.urls]

        def send(method, path, headers, body):
            for number in (first, 1 - first):
                try:
                    return sends[number](method, path, headers, body)
                except AnchorUnreachable:
                    continue
            raise AnchorUnreachable("neither broker answers")

        return send


def live(brokers, told, hardware, number, deadline):
    """One guest: boot, write, use a secret, close; whatever fails outside is tried again from the start."""
    body = initdata.compose(told.vm_id, [brokers.pin])
    host_data = initdata.parse(body).host_data
    guest = hardware.launch(measurement=bytes.fromhex(MEASUREMENT), host_data=host_data)
    rng = random_module.Random(number)
    while time.monotonic() < deadline:
        told.boots += 1
        client = BrokerClient(
            brokers.http(number % 2), pins=[brokers.pin], evidence=guest, random=secrets.token_bytes,
            clock=time.time, trace=silent,
        )  # fmt: skip
        try:
            client.attest(body)
            acquired = client.acquire(told.vm_id)
            told.epochs.append(acquired.epoch)
            client.store_key(told.vm_id, provision=acquired.state == "new")
            for _ in range(MAX_USES + 1):
                try:
                    client.resource(f"few/{told.vm_id}/secret", told.vm_id)
                    told.uses += 1
                except ReleaseRefused:
                    break
            anchor, at = client.anchor(), acquired.point
            base = at if at != ORIGIN else AnchorPoint(0, b"\1" * 32)
            while len(told.points) < ADVANCES:
                to = AnchorPoint(at.counter + 1, rng.randbytes(32))
                arguments = {"start": at, "to": to, "base": base, "key_version": 1, "escrow": entry(to.root)}
                for attempt in range(8):  # in doubt: the same again
                    try:
                        anchor.advance(epoch=acquired.epoch, **arguments)
                        break
                    except AnchorUnreachable:
                        if attempt == 7:
                            raise
                        time.sleep(0.3 * (attempt + 1))
                told.points.append(to)
                at = base = to
                time.sleep(rng.random() * 0.2)
            anchor.seal(epoch=acquired.epoch, point=at)
            told.done = True
            return
        except (AnchorUnreachable, AnchorLeased, AttestRefused, StoreError) as error:
            told.trouble.append(f"{type(error).__name__}: {error.message[:80]}")
            time.sleep(0.5 + rng.random())


def clone(brokers, told, hardware, number, stop, seen):
    """A second instance of a VM: it may never be given a live lease."""
    body = initdata.compose(told.vm_id, [brokers.pin])
    guest = hardware.launch(measurement=bytes.fromhex(MEASUREMENT), host_data=initdata.parse(body).host_data)
    while not stop.is_set() and not told.epochs:
        time.sleep(0.05)
    while not stop.is_set() and not told.done:
        client = BrokerClient(
            brokers.http(number % 2), pins=[brokers.pin], evidence=guest, random=secrets.token_bytes,
            clock=time.time, trace=silent,
        )  # fmt: skip
        try:
            client.attest(body)
            acquired = client.acquire(told.vm_id)
            seen.append(("got", told.vm_id, acquired.epoch))
            client.anchor().seal(epoch=acquired.epoch, point=acquired.point)
            return
        except AnchorLeased:
            seen.append(("leased", told.vm_id, 0))
        except StoreError:
            pass
        time.sleep(0.5)


@pytest.mark.rule("K49", "K55", "K57")
def test_200_guests_two_brokers_one_killed_and_the_database_restarted(tmp_path, simulated_hardware):
    url = fresh_database()
    folder = tmp_path / "broker"
    hardware = SimulatedAmdSp.load_or_create(simulated_hardware, product="Genoa", random=secrets.token_bytes)
    brokers = Brokers(folder)
    brokers.pin = init(folder)
    (folder / "simulated-roots").symlink_to(simulated_hardware / "public")
    for name, text in POLICIES.items():
        (folder / "policies" / f"{name}.yaml").write_text(text)
    toml = (folder / "broker.toml").read_text().replace("sqlite:///broker.db", url)
    toml = toml.replace("# shared = true", "shared = true")
    for number in (0, 1):
        (folder / f"broker-{number}.toml").write_text(
            toml.replace("audit.jsonl", f"audit-{number}.jsonl").replace(
                '"checkpoints"', f'"checkpoints-{number}"'
            )
        )
    import shutil

    shutil.copy(folder / "broker-0.toml", folder / "broker.toml")
    from cvars.broker.app import open_broker
    from cvars.broker.config import load_config

    broker = open_broker(
        load_config(folder / "broker.toml"), clock=time.time, random=secrets.token_bytes, offline=True
    )
    guests = [Told(f"vm-{n}") for n in range(GUESTS)]
    for told in guests:
        broker.add_vm(told.vm_id, mode="strict")
        broker.resources.put(f"few/{told.vm_id}/secret", b"few")
    for number in (0, 1):
        brokers.start(number)
    deadline = time.monotonic() + 180
    stop, seen = threading.Event(), []
    threads = [
        threading.Thread(target=live, args=(brokers, told, hardware, n, deadline)) for n, told in enumerate(guests)
    ]
    clones = [
        threading.Thread(target=clone, args=(brokers, guests[n], hardware, n, stop, seen)) for n in range(CLONES)
    ]
    started = time.monotonic()
    for thread in threads + clones:
        thread.start()

    def progress():
        return sum(len(t.points) for t in guests)

    while progress() < GUESTS // 2:
        time.sleep(0.05)
    brokers.processes[0].kill()  # -9 in the middle
    brokers.processes[0].wait()
    killed_at = progress()
    while progress() < GUESTS:
        time.sleep(0.05)
    subprocess.run([os.environ["CVARS_TEST_POSTGRES_RESTART"]], check=True, capture_output=True)
    restarted_at = progress()
    brokers.start(0)
    for thread in threads:
        thread.join(200)
    stop.set()
    for thread in clones:
        thread.join(60)
    codes = brokers.stop()
    elapsed = time.monotonic() - started

    # --- the checker -----------------------------------------------------------------------------
    assert codes == [0, 0]
    assert all(told.done for told in guests), [t.trouble for t in guests if not t.done][:3]
    database = Database(url)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT max(count) FROM uses").scalar() == MAX_USES
    for told in guests:
        history = broker.anchors.history(told.vm_id, limit=100_000)
        assert verify_history(history) is None
        held = [
            (e["detail"]["to"]["counter"], e["detail"]["to"]["root"]) for e in history if e["kind"] == "advance"
        ]
        for point in told.points:
            assert (point.counter, point.root.hex()) in held, "an acknowledged advance is lost"
        assert held == sorted(held)
        assert told.uses <= MAX_USES
        _one_holder(history)
    retries = sum(t.boots - 1 for t in guests)
    got = [s for s in seen if s[0] == "got"]
    print(
        f"\n{GUESTS} guests in {elapsed:.1f} s; killed at {killed_at}, restarted at {restarted_at} of "
        f"{GUESTS * ADVANCES} advances; {retries} boots tried again; clones refused "
        f"{sum(s[0] == 'leased' for s in seen)} times, after an end {len(got)}"
    )
    assert seen
    assert killed_at < restarted_at
    database.close()
    for number in (0, 1):
        for line in (folder / f"audit-{number}.jsonl").read_text().splitlines():
            json.loads(line)


def _one_holder(history) -> None:
    """Whenever somebody else opens a session, the lease before it was given back or had run out."""
    holder, until, epoch = None, 0.0, 0
    for item in history:
        if item["kind"] == "acquire":
            assert item["detail"]["epoch"] == epoch + 1
            epoch += 1
            if holder not in (None, item["detail"]["holder"]):
                assert item["at"] >= until - 1, "two holders of one lease"
            holder, until = item["detail"]["holder"], item["at"] + LEASE_S
        elif item["kind"] == "resume":
            holder, until = item["detail"]["holder"], item["at"] + LEASE_S
        elif item["kind"] == "advance":
            assert item["detail"]["epoch"] == epoch, "an advance of an older session"
            until = item["at"] + LEASE_S
        elif item["kind"] == "seal":
            holder, until = None, 0.0
