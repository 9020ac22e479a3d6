"""What broker tests share: a broker in this process or over real HTTP, evidence without hardware, a clock."""

import random as random_module
from dataclasses import dataclass, field
from typing import Any

from cvars.broker.app import create_app, open_broker
from cvars.broker.config import BrokerConfig
from cvars.broker.setup import init
from cvars.release import initdata
from cvars.release.client import BrokerClient
from cvars.release.transport import asgi_transport
from cvars.trace import Recorder

POLICY = """
policy: stores
version: 1
applies_to: ["vms/*/store-kek"]
trust_domains: [amd]
require:
  anchor: {lease: required, max_epoch_gap: 0, takeover: refuse, enrol: admin}
any_of:
  - snp: {measurement: "aa"}
  - tdx: {measurement: "aa"}
release: {per_vm: true}
"""


@dataclass(frozen=True)
class FakeResult:
    """A verdict like the one of `cvars.attest`."""

    trust_domain: str | None
    claims: dict[str, Any]
    verified: bool
    accepted: bool = False
    rule: str | None = None
    detail: str = ""


class FakeVerifier:
    """Evidence is ``{"report_data": hex, "measurement": text, …}``; authentic unless it says ``forged``."""

    simulation = False

    def verify(self, tee, primary, *, report_data, at):
        claims = {tee: {k: v for k, v in primary.items() if k != "report_data"}}
        if primary.get("forged"):
            return FakeResult(None, {}, False, rule="SNP-SIG")
        if primary["report_data"] != report_data.hex():
            return FakeResult("amd", claims, False, rule=f"{tee.upper()}-BIND")
        return FakeResult("amd", claims, True)

    def requirements(self, tee, document):
        return dict(document)

    def reference(self, document):
        return document

    def appraise(self, result, requirements, *, trust_domains, init_data, references):
        found = next(iter(result.claims.values()))
        ok = found.get("measurement") == requirements["measurement"]
        return FakeResult(result.trust_domain, result.claims, True, accepted=ok, rule=None if ok else "SNP-MEAS")


@dataclass
class FakeHardware:
    """An evidence source for `FakeVerifier`."""

    init_data: str
    tee: str = "snp"
    report_id: str = "01" * 32
    measurement: str = "aa"
    extra: dict[str, Any] = field(default_factory=dict)

    def collect(self, report_data: bytes) -> dict[str, Any]:
        parsed = initdata.parse(self.init_data)
        return {
            "report_data": report_data.hex(),
            "measurement": self.measurement,
            "host_data": parsed.host_data.hex(),
            "mr_config_id": parsed.mr_config_id.hex(),
            "report_id": self.report_id,
        } | self.extra


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class World:
    """A broker in a folder, and guests that talk to it in this process."""

    def __init__(self, folder, *, policy=POLICY, simulation=False, seed=7, verifier=None, **config) -> None:
        self.folder = folder
        self.clock = Clock()
        self.random = random_module.Random(seed)
        self.pin = init(folder, random=self.random.randbytes)
        if policy:
            (folder / "policies" / "stores.yaml").write_text(policy)
        self.config = BrokerConfig(folder=folder, simulation=simulation, **config)
        self.verifier = verifier or FakeVerifier()
        self.open()

    def open(self) -> None:
        self.broker = open_broker(
            self.config, clock=self.clock, random=self.random.randbytes, verifier=self.verifier
        )
        self.app = create_app(self.broker, inline=True)
        self._send = asgi_transport(self.app)

    def http(self, method, path, headers, body):
        """To the broker as it runs now, also after a restart."""
        return self._send(method, path, headers, body)

    def close(self) -> None:
        self.broker.audit.close()
        self.broker.keyring.close()
        self.broker.db.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def init_data(self, vm_id: str) -> str:
        return initdata.compose(vm_id, [self.pin])

    def guest(self, vm_id: str = "vm-1", *, http=None, pins=None, **hardware) -> "Guest":
        return Guest(self, vm_id, http=http, pins=pins, **hardware)

    @property
    def lines(self):
        return list(self.broker.audit.recent)


class Guest:
    """A client with its evidence."""

    def __init__(self, world, vm_id, *, http=None, pins=None, **hardware) -> None:
        self.vm_id = vm_id
        self.init_data = hardware.pop("init_data", None) or world.init_data(vm_id)
        self.trace = Recorder()
        self.hardware = FakeHardware(self.init_data, **hardware)
        self.client = BrokerClient(
            http or world.http,
            pins=pins if pins is not None else [world.pin],
            evidence=self.hardware,
            random=world.random.randbytes,
            clock=world.clock,
            trace=self.trace,
        )

    def boot(self, *, provision=False, takeover=False):
        """Attest, acquire, receive the key: (acquired, keys, anchor)."""
        self.client.attest(self.init_data)
        acquired = self.client.acquire(self.vm_id, takeover=takeover)
        return acquired, self.client.store_key(self.vm_id, provision=provision), self.client.anchor()


def entry(text: bytes = b"record") -> bytes:
    """A framed escrow entry, as the broker wants it; it never looks inside."""
    body = b"CVR1" + text
    return len(body).to_bytes(4, "little") + body
