"""The whole API, generated from its own OpenAPI document: no 5xx, nothing undocumented, nothing given away.

As nobody, as an attested holder of a lease, and as each admin role; then the histories must verify and no secret
may have left that policy denies. The small version runs always, the full one (5,000 requests and more, and the
stateful walk) with `--exhaustive`.
"""

import random as random_module
import warnings
from collections import Counter, defaultdict

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import CheckContext  # noqa: F401 - part of what the checks need
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cvars.broker.admin import Admin, TrustedKey
from cvars.broker.anchors import verify_history
from cvars.broker.config import AdminRule
from cvars.release import channel, initdata
from cvars.store.anchor import AnchorPoint
from tests.broker.real import RESOURCE, SECRET, RealWorld, policy_text
from tests.broker.support import entry
from tests.broker.test_admin import KEY, RULES, token

ROLES = ("viewer", "operator", "secrets", "policies")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
DENIED = "denied/vm/secret"


class Driver:
    """Sends generated cases as one of several identities, and counts."""

    def __init__(self, world) -> None:
        self.world = world
        self.rng = random_module.Random(11)
        self.statuses = defaultdict(Counter)
        self.secrets = 0
        self.http = requests.Session()
        self.schema = schemathesis.openapi.from_url(f"{world.server.url}/openapi.json")
        self.operations = [r.ok() for r in self.schema.get_all_operations()]
        world.broker.resources.put(DENIED, b"never")
        for name in ("vm-1", "vm-2", "vm-3"):
            world.broker.add_vm(name, mode="strict")
        self.hold()

    def hold(self) -> None:
        """Attest and take the lease of vm-1, whatever the roles did to it."""
        from cvars.broker import record as rules

        world = self.world
        record = world.broker.anchors.get("vm-1")
        if record.state in ("frozen", "retired"):
            world.broker.operate("vm-1", lambda r: rules.reset(r, point=None, store_id=bytes(16), reason="test"))
        body = world.init_data("vm-1")
        guest = world.snp(host_data=initdata.parse(body).host_data)
        client = self.client = world.kbs()
        client.auth()
        assert client.attest(guest.collect, init_data=body).status == 200
        world.clock.now += 31
        headers = {"Cookie": client.cookie}
        answer = requests.post(
            f"{world.server.url}/cvars/v1/anchor/vm-1/acquire",
            json={"nonce": "n" * 43},
            headers=headers,
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        self.key = client.open(answer.json()["jwe"])
        self.sequence = 0

    def prepare(self, case, identity):
        """Half of the cases speak of things that exist; what a role may do is signed as that role."""
        parameters = dict(case.path_parameters or {})
        if "vm" in parameters and self.rng.random() < 0.7:
            parameters["vm"] = "vm-1" if identity == "holder" else self.rng.choice(["vm-2", "vm-3"])
        if {"repository", "type", "tag"} <= set(parameters) and self.rng.random() < 0.7:
            parts = self.rng.choice([RESOURCE, DENIED, "default/a/b"]).split("/")
            parameters |= dict(zip(("repository", "type", "tag"), parts, strict=True))
        case.path_parameters = parameters
        record = self.world.broker.anchors.get("vm-1")
        if isinstance(case.body, dict) and self.rng.random() < 0.6:
            body = dict(case.body)
            if "epoch" in body:
                body["epoch"] = record.epoch
            if "counter" in body:
                body |= {"counter": record.point.counter, "root": record.point.root.hex()}
            if "from" in body:
                import base64

                at = {"counter": record.point.counter, "root": record.point.root.hex()}
                to = AnchorPoint(record.point.counter + 1, self.rng.randbytes(32))
                body |= {"from": at, "base": at, "to": {"counter": to.counter, "root": to.root.hex()}}
                body |= {"key_version": record.key_version, "escrow": base64.b64encode(entry()).decode()}
            if case.operation.path == "/kbs/v0/auth":
                body |= {"version": "0.4.0", "tee": self.rng.choice(["snp", "tdx"])}
            if "resource" in body:
                body["resource"] = self.rng.choice([RESOURCE, DENIED, "vms/vm-1/store-kek"])
            if "vm_id" in body:
                body["vm_id"] = f"made-{self.rng.getrandbits(40)}"
            if "takeover" in body or case.operation.path.endswith("/acquire"):
                body.pop("resume", None)
            if "text" in body:
                body["text"] = policy_text(name=parameters.get("name", "x"), applies="extra/*/*")
            case.body = body

    def send(self, case, identity):
        self.prepare(case, identity)
        headers = {}
        if identity == "holder":
            headers["Cookie"] = self.client.cookie
        elif identity != "nobody":
            headers["Authorization"] = f"Bearer {token(identity, self.world.clock())}"
        arguments = case.as_transport_kwargs(base_url=self.world.server.url, headers=headers)
        arguments.pop("timeout", None)
        request = self.http.prepare_request(
            requests.Request(**{k: v for k, v in arguments.items() if k != "verify"})
        )
        request.headers.pop("Cookie", None) if identity != "holder" else request.headers.update(headers)
        if identity == "holder" and self.rng.random() < 0.8:
            raw = request.body or b""
            raw = raw.encode() if isinstance(raw, str) else raw
            self.sequence += 1
            path = request.path_url.partition("?")[0]
            request.headers.update(channel.headers(self.key, request.method, path, self.sequence, raw))
        response = self.http.send(request, timeout=30)
        self.statuses[f"{case.operation.method.upper()} {case.operation.path}"][response.status_code] += 1
        if b"ciphertext" in response.content and response.status_code == 200 and DENIED in response.url:
            self.secrets += 1
        assert SECRET not in response.content
        assert b"never" not in response.content
        wrapped = schemathesis.Response.from_requests(response, verify=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.validate_response(wrapped, checks=CHECKS)
        if identity == "holder" and case.operation.path.endswith("/acquire") and response.status_code == 200:
            self.key, self.sequence = self.client.open(response.json()["jwe"]), 0
        if case.operation.path.endswith("/seal") and response.status_code == 200:
            self.hold()

    def run(self, per_operation, identities=("nobody", "holder", *ROLES)):
        for identity in identities:
            for operation in self.operations:
                self._operation(operation, identity, per_operation)

    def _operation(self, operation, identity, count):
        @seed(7)
        @settings(
            max_examples=count, deadline=None, database=None, derandomize=False, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case):
            self.send(case, identity)

        one()

    def verdict(self):
        total, past, good = Counter(), 0, 0
        for counter in self.statuses.values():
            total.update(counter)
        count = sum(total.values())
        past = sum(n for status, n in total.items() if status != 401)
        good = sum(n for status, n in total.items() if status < 300)
        return count, past / count, good / count


@pytest.fixture
def driver(tmp_path, simulated_hardware):
    admin = Admin(
        (TrustedKey(KEY.private.public_key()),),
        (*RULES, AdminRule(role="policies", methods=["GET"], path="/kbs/v0/reference-value"),
         AdminRule(role="policies", methods=["POST"], path="/kbs/v0/attestation-policy")),
    )  # fmt: skip
    stores = policy_text(name="stores", applies="vms/*/store-kek", require="anchor: {lease: required}",
                         release="per_vm: true")  # fmt: skip
    world = RealWorld(tmp_path / "b", simulated_hardware, admin=admin, policies=[policy_text(), stores])
    made = Driver(world)
    yield made
    world.stop()


def check(driver):
    """What must hold whatever was sent."""
    world = driver.world
    for record in world.broker.anchors.all():
        assert verify_history(world.broker.anchors.history(record.vm_id, limit=1_000_000)) is None
    assert driver.secrets == 0
    released = [
        line for line in world.lines if line["action"] in ("release", "resource") and line["decision"] == "allow"
    ]
    assert all(line["resource"] != DENIED for line in released)
    with (world.folder / "audit.jsonl").open() as lines:
        from cvars.broker.audit import verify

        assert verify(lines)[1] is None
    count, past, good = driver.verdict()
    for operation, counter in sorted(driver.statuses.items()):
        print(f"{operation:55} {dict(sorted(counter.items()))}")
    print(f"{count} requests, {past:.0%} past authentication, {good:.0%} succeeded")
    return count, past, good


def test_generated_requests_find_nothing_undocumented(driver):
    driver.run(1, ("holder", "operator"))
    count, past, good = check(driver)
    assert count > 60
    assert past > 0.25
    assert good > 0.05


@pytest.mark.exhaustive
def test_5000_generated_requests(driver):
    driver.run(36)
    count, past, good = check(driver)
    assert count >= 5000
    assert past >= 0.25
    assert good >= 0.05


def walk(driver, examples):
    """Follow the links of the document as an operator: what was made is shown, frozen, reset."""
    world, made = driver.world, iter(range(1 << 30))
    machine = driver.schema.as_state_machine()

    class Walk(machine):
        def before_call(self, case):
            case.headers = dict(case.headers or {}) | {
                "Authorization": f"Bearer {token('operator', world.clock())}"
            }
            if isinstance(case.body, dict) and "vm_id" in case.body:
                case.body["vm_id"] = f"walk-{next(made)}"  # new each time: a replay must find the same world

        def after_call(self, response, case):
            driver.statuses[f"{case.operation.method.upper()} {case.operation.path}"][response.status_code] += 1

        def validate_response(self, response, case, **kwargs):
            case.validate_response(response, **(kwargs | {"checks": CHECKS}))

    Walk.run(
        settings=settings(
            max_examples=examples, stateful_step_count=12, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )
    )  # fmt: skip


@pytest.mark.exhaustive
def test_a_stateful_walk_along_the_links(driver):
    walk(driver, 60)
    check(driver)
    assert driver.statuses["POST /cvars/v1/anchor/{vm}/freeze"][200] > 0
