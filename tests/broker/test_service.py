"""The service under abuse: bodies, paths, sessions, policies, injection (K35..K48), grants under contention."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from cvars.broker.admin import Admin
from cvars.broker.metrics import Metrics
from cvars.broker.policy.load import PolicyError
from cvars.broker.sessions import MemorySessions, TooManySessions
from cvars.broker.sessions_db import DatabaseSessions
from tests.broker.real import RESOURCE, SECRET, KbsClient, Server, policy_text, request
from tests.broker.support import POLICY, World


def attested(sample, **kwargs):
    client = sample.kbs(**kwargs)
    client.auth()
    assert client.attest(sample.snp().collect).status == 200
    return client


@pytest.mark.parametrize("kind", ["memory", "database"])
def test_K35_challenges_cannot_push_out_attested_sessions(tmp_path, kind):
    world = World(tmp_path / "broker")
    count = 100_000 if kind == "memory" else 120
    if kind == "memory":
        sessions = MemorySessions(world.random.randbytes, limit=2000, per_source=1500)
    else:
        sessions = DatabaseSessions(
            world.broker.db, world.broker.keyring, world.verifier, world.random.randbytes, limit=60, per_source=50
        )
    kept = sessions.issue(tee="snp", nonce="n", source="a", now=0.0)
    session = sessions.find(kept, now=0.0)
    assert sessions.begin(session)
    assert not sessions.begin(session)
    if kind == "memory":
        from types import SimpleNamespace

        sessions.settle(session, SimpleNamespace(evidence=None), now=0.0)
    for n in range(count):
        sessions.issue(tee="snp", nonce="n", source=("a", "b", "c")[n % 3], now=1.0)
    limit = 2000 if kind == "memory" else 60
    counts = sessions.counts()
    assert counts["issued"] + counts["attested"] <= limit
    if kind == "memory":
        assert sessions.find(kept, now=2.0).state == "attested"
        full = MemorySessions(world.random.randbytes, limit=1)
        only = full.find(full.issue(tee="snp", nonce="n", source="a", now=0.0), now=0.0)
        full.begin(only)
        full.settle(only, SimpleNamespace(evidence=None), now=0.0)
        with pytest.raises(TooManySessions):
            full.issue(tee="snp", nonce="n", source="a", now=1.0)
    world.close()


def test_shared_sessions_survive_a_restart_and_move_between_brokers(tmp_path):
    from cvars.broker.config import SessionsTable
    from cvars.store.anchor import ORIGIN
    from tests.broker.support import entry
    from tests.broker.test_anchor_flow import P0, P1, P2

    world = World(tmp_path / "broker", sessions=SessionsTable(shared=True))
    world.broker.add_vm("vm-1", mode="strict")
    guest = world.guest(tee="tdx")  # no instance id: only the session itself can go on
    _, _, anchor = guest.boot(provision=True)
    anchor.advance(epoch=1, start=ORIGIN, to=P1, base=P0, key_version=1, escrow=entry())
    world.restart()
    guest.client._http = world.http
    anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=1, escrow=entry())
    assert world.broker.anchors.get("vm-1").epoch == 1
    assert b"kbs" not in (world.folder / "broker.db").read_bytes()
    world.close()


def test_K36_bodies_that_are_too_large_or_malformed(sample):
    port = sample.server.port
    for body, statuses in (
        (b"[" * 100_000, {413, 401}),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, {401, 413}),
        (b'{"version":"0.4.0","tee":"snp","tee":"snp"}', {401}),
        (b'{"version":"0.4.0","tee":"snp","extra-params":' + b"9" * 400 + b"}", {401}),
        (b'{"version":"0.4.0","tee":"\xff"}', {401}),
        (b'{"version":"0.4.0","tee":"\\ud800"}', {401}),
        (b"{" + b",".join(b'"m%d":1' % n for n in range(5000)) + b"}", {401, 413}),
        (b"", {401}),
        (b"null", {401}),
    ):
        assert request(port, "POST", "/kbs/v0/auth", body=body).status in statuses, body[:40]
    big = b"x" * (600 * 1024)
    assert request(port, "POST", "/kbs/v0/attest", body=big).status == 413
    gzip = {"Content-Encoding": "gzip"}
    assert request(port, "POST", "/kbs/v0/auth", gzip, b"\x1f\x8b").status == 401
    with socket.create_connection(("127.0.0.1", port)) as raw:  # chunked, without a declared size
        raw.sendall(b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"y" * 0x10000 + b"\r\n"
        try:
            for _ in range(12):
                raw.sendall(chunk)
        except OSError:
            pass
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    headers = {"X-Long": "z" * 40_000}
    assert request(port, "GET", "/healthz", headers).status in (400, 431)
    assert request(port, "GET", "/healthz").status == 200


def test_K36_a_slow_body_is_cut_off(tmp_path, simulated_hardware):
    from tests.broker.real import RealWorld

    slow = RealWorld(tmp_path / "b", simulated_hardware, body_timeout_s=0.3)
    try:
        with socket.create_connection(("127.0.0.1", slow.server.port)) as raw:
            raw.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            started = time.monotonic()
            assert raw.recv(100).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 3
        assert request(slow.server.port, "GET", "/healthz").status == 200
    finally:
        slow.stop()


def test_K36_a_client_that_leaves_in_its_body_is_counted_and_changes_nothing(world):
    import structlog

    from cvars.broker.app import create_app

    metrics = Metrics()
    server = Server(create_app(world.broker, admin=Admin(allow_all=True), metrics=metrics))
    left = [
        ("POST", "/kbs/v0/auth", "Content-Length: 100", b'{"version"'),
        ("POST", "/kbs/v0/attest", "Transfer-Encoding: chunked", b'5\r\n{"a":\r\n'),
        ("POST", "/kbs/v0/resource/a/b/c", "Content-Length: 100", b"half a secret"),
        ("POST", "/cvars/v1/vms", "Content-Length: 100", b'{"vm_id": "vm-1"'),
    ]

    def gone():
        lines = metrics.render({})[0].decode().splitlines()
        return sum(line.startswith("cvars_broker_requests_total") and 'status="499"' in line for line in lines)

    try:
        with structlog.testing.capture_logs() as lines:
            for method, path, header, body in left:
                with socket.create_connection(("127.0.0.1", server.port)) as raw:
                    raw.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode() + body)
                    time.sleep(0.05)
            deadline = time.monotonic() + 10
            while gone() < len(left) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert request(server.port, "GET", "/healthz").status == 200
        assert [line["event"] for line in lines] == []
    finally:
        server.stop()
    assert gone() == len(left)
    assert b'status="500"' not in metrics.render({})[0]
    assert world.broker.resources.list() == []
    assert world.broker.anchors.all() == []


def test_K39_paths(sample):
    client = attested(sample)
    headers = {"Cookie": client.cookie}
    reads = []
    kept = sample.broker.resources.get
    sample.broker.resources.get = lambda path: reads.append(path) or kept(path)
    try:
        for path in (
            "../etc/passwd", "default/../test", "default/%2e%2e/test", "default/%252e%252e/test",
            "default/.x/test", "default/a%5Cb/test", "default/a%00b/test", "default//test",
            "default/sample/test/x", "default/sample",
            "default/sample/" + "x" * 129, "default/s%C3%A4mple/test", "default/%D1%95ample/test",
            "default/sample/",
            "default/sa mple/test".replace(" ", "%20"), "default/sample%2Ftest/x",
        ):  # fmt: skip
            answer = request(sample.server.port, "GET", f"/kbs/v0/resource/{path}", headers)
            assert answer.status in (401, 404), path
            assert set(answer.json()) == {"type", "detail"}
    finally:
        sample.broker.resources.get = kept
    assert reads == []
    answer = request(sample.server.port, "GET", f"/kbs/v0/resource/{RESOURCE}?plugin=x&policy=allow", headers)
    assert answer.status == 200  # a query changes nothing


def test_K40_missing_and_forbidden_look_alike(sample):
    client = attested(sample)
    sample.put(policy_text(applies="other/*/*"))
    for path in (RESOURCE, "default/sample/missing"):
        answer = client.get(path)
        assert (answer.status, answer.json()["detail"]) == (403, "POL-NONE")
    sample.put(policy_text())
    assert client.get("default/sample/missing").status == 404


def test_K41_one_request_sees_one_set_of_policies(sample):
    client = attested(sample)
    allow, deny = policy_text(), policy_text(applies="other/*/*")
    stop = threading.Event()

    def flip():
        while not stop.is_set():
            sample.put(allow)
            sample.put(deny)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        seen = {client.get(RESOURCE).status for _ in range(60)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {200, 403}
    digests = {line.get("policy") for line in sample.lines[-60:] if line["action"] == "resource"}
    import hashlib

    assert digests <= {f"sample@{hashlib.sha256(allow.encode()).hexdigest()[:16]}", None}


def test_K42_policies_that_cannot_be_loaded(sample):
    good = policy_text()
    sample.put(good)
    for bad in (
        good.replace("applies_to", "applies"),
        good.replace('applies_to: ["default/*/*"]', "applies_to: []"),
        good.replace(
            "require: {}", "require: {not_before: 2027-01-01T00:00:00Z, not_after: 2026-01-01T00:00:00Z}"
        ),
        good.replace("version: 1", "version: 1\nversion: 2"),
        good.replace("trust_domains: [simulated]", "trust_domains: []"),
        good.replace("      product:", "      produkt:"),
        good.replace("trust_domains: [simulated]", "trust_domains: [amd]").replace(
            "      product:", "      guest_policy: {debug: true}\n      product:"
        ),
        good.replace("applies_to:", "applies_to: &x"),
        "policy: !!python/object/apply:os.system [true]",
        "[",
        "",
        "x: " * 100_000,
    ):
        with pytest.raises(PolicyError):
            sample.put(bad)
    assert [p.name for p in sample.broker.policies.current().policies] == ["sample"]
    attested(sample).get(RESOURCE)
    for release, wanted in (("per_vm: false, rate: 2/h", 3),):
        sample.put(policy_text(name="rated", release=release))
        client = attested(sample)
        statuses = [client.get(RESOURCE).status for _ in range(4)]
        assert statuses.index(403) == wanted - 1
    sample.put(policy_text(require="max_token_age: 10"))
    client = attested(sample)
    assert client.get(RESOURCE).status == 200
    sample.clock.now += 11
    assert client.get(RESOURCE).rule == "POL-AGE"
    sample.put(policy_text(require="not_before: 2099-01-01T00:00:00Z"))
    assert client.get(RESOURCE).rule == "POL-NOTBEFORE"


def test_K42_several_policies_must_all_allow(sample):
    client = attested(sample)
    sample.put(policy_text(), policy_text(name="second", require="not_before: 2099-01-01T00:00:00Z"))
    assert client.get(RESOURCE).rule == "POL-NOTBEFORE"
    sample.put(policy_text(), policy_text(name="second"))
    assert client.open(client.get(RESOURCE).json()) == SECRET


def test_K42_rego_errors_deny():
    from cvars.broker import rego

    assert rego.restricts("package policy\ndefault allow = false", claims={}, data={}) == "REGO-DENY"
    if rego.available():
        for text, rule in (
            ('package policy\nallow = "yes"', "REGO-ERROR"),
            ("not rego", ("REGO-ERROR", "REGO-DENY")),
            ("package policy\nimport rego.v1\ndefault allow = false\nallow if input.x == 1", "REGO-DENY"),
        ):
            assert rego.restricts(text, claims={}, data={"plugin": "resource"}) in rule
        good = "package policy\nimport rego.v1\ndefault allow = false\nallow if { input.x == 1\n"
        good += ' data.plugin == "resource" }'
        assert rego.restricts(good, claims={"x": 1}, data={"plugin": "resource"}) is None
    else:
        assert rego.restricts("package policy\nallow = true", claims={}, data={}) == "REGO-ERROR"
        with pytest.raises(PolicyError, match="Rego extra"):
            rego.check("package policy\nallow = input.x", simulation=False)


ENDLESS = """package policy
import rego.v1
default allow = false
allow if {
    some a in numbers.range(1, 3000)
    some b in numbers.range(1, 3000)
    a * b == -1
}
"""


def test_K42_a_rego_text_has_its_own_processor_time_and_waits_for_its_turn(monkeypatch):
    from cvars.broker import rego

    if not rego.available():
        pytest.skip("no Rego extra: pip install 'cvars[rego]'")
    monkeypatch.setattr(rego, "CPU_S", 1)
    assert rego.restricts(ENDLESS, claims={}, data={}) == "REGO-TIMEOUT"
    monkeypatch.undo()
    good = 'package policy\nimport rego.v1\ndefault allow = false\nallow if data.plugin == "resource"'
    ran, real = [], subprocess.run

    def counted(*args, **kwargs):
        ran.append(1)
        at_once.append(len(ran))
        try:
            return real(*args, **kwargs)
        finally:
            ran.pop()

    at_once: list[int] = []
    monkeypatch.setattr(rego.subprocess, "run", counted)
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(rego.restricts(good, claims={}, data={"plugin": "resource"}))
        )
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [None] * 24
    assert max(at_once) <= (os.cpu_count() or 1)
    monkeypatch.setattr(rego, "TIMEOUT_S", 0.001)
    assert rego.restricts(good, claims={}, data={"plugin": "resource"}) == "REGO-TIMEOUT"


def test_K46_the_request_path_uses_local_material_only(sample, tmp_path):
    """No request goes to the network: a key distribution service that is down or lies cannot be met."""
    from cvars.attest.library import FileLibrary, leaf_path
    from cvars.attest.snp.trustee import write_structured
    from cvars.broker.attestation import AttestVerifier

    guest = sample.snp()
    without = lambda data: write_structured(guest.report(data), guest.supplied()[1:])  # noqa: E731
    assert sample.outcome(without)[0] == 401
    path = tmp_path / leaf_path("Genoa", guest.processor.hwid, guest.processor.reported)
    path.parent.mkdir(parents=True)
    kept = sample.broker.verifier
    try:
        sample.broker.verifier = AttestVerifier(kept.roots, FileLibrary(tmp_path))
        other = sample.snp("Turin")
        path.write_bytes(other.supplied()[0].data)  # poisoned: a valid certificate of another chip
        assert sample.outcome(without)[0] == 401
        path.write_bytes(guest.supplied()[0].data)
        assert sample.outcome(without) == (200, "")
    finally:
        sample.broker.verifier = kept


def test_K48_injection_into_log_and_metrics(sample):
    port = sample.server.port
    nasty = 'snp\n{"decision":"allow"}\x1b[31m'
    client = KbsClient(port)
    assert client.auth(tee=nasty[:32]).status == 401
    assert client.auth(version="x" * 31).status == 401
    line = sample.last()
    assert "\n" not in json.dumps(line)
    request(port, "GET", "/kbs/v0/resource/%0a%0d/x/y", {"Cookie": 'kbs-session-id="; drop'})
    request(port, "BREW", "/cvars/v1/identity")
    text = (sample.folder / "audit.jsonl").read_text()
    assert all(json.loads(one) for one in text.splitlines())
    assert "\x1b" not in text
    assert SECRET.decode() not in text
    metrics = request(port, "GET", "/metrics").body.decode()
    assert "BREW" not in metrics
    assert "drop" not in metrics


def test_K57_uses_and_grants_under_contention(sample):
    sample.put(policy_text(name=f"few{time.monotonic_ns()}", release="per_vm: false, max_uses: 7"))
    client = attested(sample)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.get(RESOURCE))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(a.status for a in answers) == [200] * 7 + [403] * 43
    assert {a.rule for a in answers if a.status == 403} == {"POL-USES"}


def test_K57_one_provisioning_grant_an_epoch(world):
    from cvars.broker.record import Refused, provision

    world.broker.add_vm("vm-1", mode="strict")
    world.guest().boot()
    record = world.broker.anchors.get("vm-1")
    won = []

    def one():
        try:
            world.broker.operate("vm-1", lambda r: provision(r, epoch=1, holder=record.lease.holder))
            won.append(1)
        except Refused:
            won.append(0)

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == [0] * 19 + [1]


def test_both_error_bodies_and_no_other(sample):
    port = sample.server.port
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/kbs/v0/nothing", 404),
        ("PUT", "/kbs/v0/auth", 405),
        ("GET", "/cvars/v1/release", 405),
        ("POST", "/cvars/v1/release", 400),
        ("POST", "/kbs/v0/auth/", 404),
        ("GET", "/kbs/v0/resource/a/b/c", 401),
    ):
        answer = request(port, method, path)
        assert answer.status == status, (method, path)
        assert len(answer.headers["x-request-id"]) == 16
        if path.startswith("/kbs"):
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["type"].startswith("https://github.com/confidential-containers/kbs/errors/")
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert POLICY
