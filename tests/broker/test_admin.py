"""The operator's side over HTTP: role tokens, VMs, policies, secrets, console, health."""

import base64
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519

from cvars.broker.admin import Admin, TrustedKey, load_admin, path_matches
from cvars.broker.app import create_app
from cvars.broker.config import AdminKey, AdminRule, AdminTable, BrokerConfig, ConfigMistake
from cvars.broker.metrics import Metrics
from cvars.release.encoding import b64url
from cvars.release.statements import SigningKey
from cvars.release.transport import asgi_transport
from tests.broker.support import POLICY, World, entry

KEY = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RULES = (
    AdminRule(role="viewer", methods=["GET"], path="/cvars/v1/**"),
    AdminRule(role="viewer", methods=["GET"], path="/console/**"),
    AdminRule(role="viewer", methods=["GET"], path="/console"),
    AdminRule(role="operator", methods=["GET", "POST", "PUT", "DELETE"], path="/cvars/v1/**"),
    AdminRule(role="secrets", methods=["POST", "DELETE"], path="/kbs/v0/resource/*/*/*"),
    AdminRule(role="policies", methods=["GET", "POST"], path="/kbs/v0/resource-policy"),
    AdminRule(role="policies", methods=["GET", "POST"], path="/kbs/v0/reference-value/*"),
    AdminRule(role="attestation", methods=["POST"], path="/kbs/v0/attestation-policy"),
)


def token(role, now, *, key=KEY, header=None, **changes):
    payload = {"role": role, "iat": int(now), "exp": int(now) + 600} | changes
    return key.jws(header or {"alg": key.alg}, {k: v for k, v in payload.items() if v is not None})


class Operator:
    def __init__(self, world):
        self.world = world
        admin = Admin((TrustedKey(KEY.private.public_key()),), RULES)
        self.http = asgi_transport(create_app(world.broker, admin=admin, metrics=Metrics(), inline=True))

    def __call__(self, role, method, path, body=None, *, raw=None, bearer=None):
        headers = {"authorization": f"Bearer {bearer or token(role, self.world.clock())}"} if role else {}
        sent = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        return self.http(method, path, headers, sent)


@pytest.fixture
def operator(world):
    return Operator(world)


def test_an_operator_adds_freezes_and_retires_a_vm(world, operator):
    assert operator("operator", "POST", "/cvars/v1/vms", {"vm_id": "vm-1", "mode": "strict"}).status == 200
    assert operator("operator", "POST", "/cvars/v1/vms", {"vm_id": "vm-1"}).status == 409
    world.guest().boot(provision=True)
    shown = json.loads(operator("viewer", "GET", "/cvars/v1/vms/vm-1").body)
    assert (shown["state"], shown["epoch"], shown["mode"]) == ("new", 1, "strict")
    for verb, state in (("freeze", "frozen"), ("thaw", "new"), ("retire", "retired")):
        answer = operator("operator", "POST", f"/cvars/v1/anchor/vm-1/{verb}", {"reason": "test"})
        assert json.loads(answer.body)["state"] == state
    thawed = operator("operator", "POST", "/cvars/v1/anchor/vm-1/thaw", {"reason": "test"})
    assert (thawed.status, json.loads(thawed.body)["reason"]) == (409, "anchor.state")  # it stays retired
    again = operator("operator", "POST", "/cvars/v1/anchor/vm-1/retire", {"reason": "test"})
    assert (again.status, json.loads(again.body)["reason"]) == (409, "anchor.retired")
    reset = operator("operator", "POST", "/cvars/v1/anchor/vm-1/reset", {"reason": "again", "to": "new"})
    assert json.loads(reset.body)["state"] == "new"
    log = json.loads(operator("viewer", "GET", "/cvars/v1/anchor/vm-1/log").body)["entries"]
    assert [e["kind"] for e in log] == ["enrol", "acquire", "provision", "freeze", "thaw", "retire", "reset"]
    assert operator("viewer", "GET", "/cvars/v1/anchor/vm-9/log").status == 404


def test_a_vm_that_nobody_added_is_not_operated_on(world, operator):
    for verb, more in (("freeze", {}), ("retire", {}), ("rotate", {}), ("reset", {"to": "new"})):
        answer = operator("operator", "POST", f"/cvars/v1/anchor/vm-9/{verb}", {"reason": "test"} | more)
        assert (answer.status, json.loads(answer.body)["reason"]) == (404, "anchor.unknown"), verb
    assert world.broker.anchors.all() == []


@pytest.mark.rule("K43")
def test_admin_keys_are_strong_or_nothing_starts(tmp_path):
    file = tmp_path / "admin.pub.pem"
    config = BrokerConfig(
        folder=tmp_path, admin=AdminTable(keys=[AdminKey(file=file.name, issuer="ops")], rules=list(RULES))
    )

    def load(key):
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, public)
        file.write_bytes(pem)
        return load_admin(config)

    for good in (
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
    ):
        admin = load(good)
        assert [(k.key, k.issuer) for k in admin.keys] == [(good.public_key(), "ops")]
        assert not admin.allow_all
    for bad, why in (
        (ec.generate_private_key(ec.SECP384R1()), "P-256"),
        (rsa.generate_private_key(65537, 1024), "2048 bits"),
        (x25519.X25519PrivateKey.generate(), "Ed25519, P-256 or RSA"),
    ):
        with pytest.raises(ConfigMistake, match=why):
            load(bad)
    file.write_text("not a key")
    with pytest.raises(ConfigMistake, match=r"admin\.keys"):
        load_admin(config)
    file.unlink()
    with pytest.raises(ConfigMistake, match=r"admin\.keys"):
        load_admin(config)


def test_rebase_moves_the_anchored_point_and_empties_the_ring(world, operator):
    from tests.broker.test_anchor_flow import P0, P1, create

    _, _, _, anchor = create(world)
    anchor.seal(epoch=1, point=P1)
    to = {"counter": 9, "root": "09" * 32}
    answer = operator("operator", "POST", "/cvars/v1/anchor/vm-1/reset", {"reason": "recovered", "to": to})
    assert answer.status == 200
    acquired, _, _ = world.guest().boot()
    assert (acquired.point.counter, acquired.escrow, acquired.base.counter, acquired.epoch) == (9, b"", 9, 3)
    assert acquired.base != P0


def test_K43_admin_tokens_roles_methods_and_paths(world, operator):
    now = world.clock()
    rsa_key = rsa.generate_private_key(65537, 2048)
    claims = b64url(json.dumps({"role": "operator", "iat": now, "exp": now + 60}).encode())
    none = f"{b64url(json.dumps({'alg': 'none'}).encode())}.{claims}."
    public = KEY.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    import hashlib
    import hmac

    head = b64url(b'{"alg":"HS256"}')
    body = b64url(json.dumps({"role": "operator", "iat": now, "exp": now + 60}).encode())
    symmetric = f"{head}.{body}.{b64url(hmac.new(public, f'{head}.{body}'.encode(), hashlib.sha256).digest())}"
    stranger = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    signed = f"{b64url(b'{}')}.{body}"
    rs = rsa_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    for bearer in (
        token("operator", now - 700),  # expired
        token("operator", now + 300),  # not yet
        token("operator", now, exp=int(now) + 10**7),
        token("operator", now, exp=None),
        token(None, now),
        token("operator", now, key=stranger),
        token("operator", now, header={"alg": "ES256"}),
        none,
        symmetric,
        f"{signed}.{b64url(rs)}",
        "x.y.z",
        "",
    ):
        assert operator("operator", "GET", "/cvars/v1/vms", bearer=bearer or " ").status == 401
    for role, method, path in (
        ("viewer", "POST", "/cvars/v1/vms"),
        ("secrets", "GET", "/cvars/v1/vms"),
        ("secrets", "POST", "/kbs/v0/resource-policy"),
        ("policies", "POST", "/kbs/v0/resource/a/b/c"),
        ("stranger", "GET", "/cvars/v1/vms"),
    ):
        assert operator(role, method, path, {}).status == 403, (role, method, path)
    for path in ("/kbs/v0/resource-policyX", "/kbs/v0/resource-policy/", "/kbs/v0//resource-policy"):
        assert operator("policies", "POST", path, {}).status in (401, 403, 404)
    assert operator("operator", "GET", "/cvars/v1/%76ms").status in (401, 403, 404, 200)
    assert operator(None, "GET", "/cvars/v1/vms").status == 401
    assert {line["rule"] for line in world.lines} == {"ADMIN-TOKEN", "ADMIN-ACL"}


def test_K43_path_patterns_match_in_full():
    assert path_matches("/a/*/c", "/a/b/c")
    assert not path_matches("/a/*/c", "/a/b/c/d")
    assert not path_matches("/a/b", "/a/bX")
    assert path_matches("/a/**", "/a/b/c")
    assert not path_matches("/a/**", "/a")


def test_rs256_and_es256_admin_keys(world):
    rsa_key = rsa.generate_private_key(65537, 2048)
    ec_key = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    admin = Admin(
        (
            TrustedKey(rsa_key.public_key(), issuer="ops", audience="broker"),
            TrustedKey(ec_key.private.public_key()),
        ),
        RULES,
    )
    now = world.clock()
    signed = (
        b64url(b'{"alg":"RS256"}')
        + "."
        + b64url(
            json.dumps({"role": "viewer", "iat": now, "exp": now + 60, "iss": "ops", "aud": ["broker"]}).encode()
        )
    )
    good = f"{signed}.{b64url(rsa_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
    assert admin.authorise(f"Bearer {good}", method="GET", path="/cvars/v1/vms", now=now) == "viewer"
    assert (
        admin.authorise(f"Bearer {token('viewer', now, key=ec_key)}", method="GET", path="/cvars/v1/vms", now=now)
        == "viewer"
    )


def test_policies_are_put_and_a_bad_one_leaves_the_old_active(world, operator):
    other = POLICY.replace("policy: stores", "policy: tls").replace("vms/*/store-kek", "tls/vm-1/key")
    other = other.replace("lease: required", "lease: any")
    assert operator("operator", "PUT", "/cvars/v1/policies/tls", {"text": other}).status == 200
    listed = json.loads(operator("viewer", "GET", "/cvars/v1/policies").body)
    assert [p["name"] for p in listed["policies"]] == ["stores", "tls"]
    bad = operator("operator", "PUT", "/cvars/v1/policies/tls", {"text": other.replace("any_of", "any_off")})
    assert bad.status == 400
    assert "any_off" in json.loads(bad.body)["detail"]
    assert operator("operator", "PUT", "/cvars/v1/policies/other", {"text": other}).status == 400
    taken = operator("operator", "PUT", "/cvars/v1/policies/stores", {"text": POLICY})
    assert "two policies" in json.loads(taken.body)["detail"]
    assert [p.name for p in world.broker.policies.current().policies] == ["stores", "tls"]
    assert operator("operator", "DELETE", "/cvars/v1/policies/tls").status == 200
    assert operator("operator", "DELETE", "/cvars/v1/policies/tls").status == 404


def test_secrets_are_stored_wrapped_and_released_under_policy(world, operator):
    assert operator("secrets", "POST", "/kbs/v0/resource/tls/vm-1/key", raw=b"-----KEY-----").status == 200
    assert operator("secrets", "POST", "/kbs/v0/resource/vms/vm-1/store-kek", raw=b"x").status == 403
    raw = (world.folder / "broker.db").read_bytes() + (world.folder / "broker.db-wal").read_bytes()
    assert b"-----KEY-----" not in raw
    world.broker.add_vm("vm-1", mode="none")
    guest = world.guest()
    guest.client.attest(guest.init_data)
    from cvars.release.errors import ReleaseRefused

    with pytest.raises(ReleaseRefused):
        guest.client.resource("tls/vm-1/key", "vm-1")
    text = POLICY.replace("policy: stores", "policy: tls").replace("vms/*/store-kek", "tls/vm-1/key")
    text = text.replace("lease: required", "lease: any")
    operator("operator", "PUT", "/cvars/v1/policies/tls", {"text": text})
    assert guest.client.resource("tls/vm-1/key", "vm-1") == b"-----KEY-----"
    assert operator("secrets", "DELETE", "/kbs/v0/resource/tls/vm-1/key").status == 200
    with pytest.raises(ReleaseRefused):
        guest.client.resource("tls/vm-1/key", "vm-1")


def test_stock_rego_restricts_every_release(world, operator):
    world.broker.add_vm("vm-1", mode="none")
    for text, allowed in (
        ("package policy\n\ndefault allow = false\n", False),
        ("package policy\nimport rego.v1\n\ndefault allow = false\n\nallow if {\n    not any_not_affirming\n"
         "    count(input.submods) > 0\n\n}\n\nany_not_affirming if {\n    some _, submod in input.submods\n"
         '    submod["ear.status"] != "affirming"\n}\n', True),
    ):  # fmt: skip
        encoded = base64.urlsafe_b64encode(text.encode()).decode()
        assert operator("policies", "POST", "/kbs/v0/resource-policy", {"policy": encoded}).status == 200
        world.clock.now += 60
        if allowed:
            world.guest().boot()
        else:
            from cvars.errors import AnchorError

            with pytest.raises(AnchorError):
                world.guest().boot()
            assert world.lines[-1]["rule"] == "REGO-DENY"
    allow_all = base64.urlsafe_b64encode(b"package policy\ndefault allow = true\n").decode()
    assert operator("policies", "POST", "/kbs/v0/resource-policy", {"policy": allow_all}).status == 403


def test_K42_an_attestation_policy_is_put_and_a_refused_one_keeps_the_old(world, operator):
    from cvars.broker import rego
    from cvars.errors import AnchorError

    world.broker.add_vm("vm-1", mode="none")
    path = "/kbs/v0/attestation-policy"

    def put(text, role="attestation", **changes):
        encoded = text if isinstance(text, str) else base64.urlsafe_b64encode(text).decode()
        answer = operator(
            role, "POST", path, {"type": "rego", "policy_id": "default", "policy": encoded} | changes
        )
        world.clock.now += 60
        return answer.status, answer.body

    def denied():
        with pytest.raises(AnchorError):
            world.guest().boot()
        return world.lines[-1]["rule"]

    deny = b"package policy\n\ndefault allow = false\n"
    affirming = next(text for text, kind in rego.STOCK.items() if kind == "affirming").encode()
    assert put(affirming) == (200, b"")
    assert (world.lines[-1]["action"], world.lines[-1]["decision"]) == ("admin.attestation-policy.put", "allow")
    world.guest().boot()
    assert put(deny) == (200, b"")
    assert denied() == "REGO-DENY"
    refused = [
        (affirming, {"role": "policies"}, 403),
        (affirming, {"type": "cedar"}, 401),
        (affirming, {"policy_id": "../x"}, 401),
        (affirming, {"more": 1}, 401),
        ("not base64!", {}, 401),
        (b"\xff\xfe", {}, 401),
        (b"package policy\ndefault allow = true\n", {}, 403),
        (affirming + b" " * 65536, {}, 403),
        (b"package other\nallow = true", {}, 403),
        (b"package policy\nallow if {", {}, 403),
        (b'package policy\nallow = "yes"', {}, 403),
        (b"package policy\nimport rego.v1\nallow if nosuch(1)", {}, 403),
    ]
    for text, changes, status in refused:
        assert put(text, **changes)[0] == status, (text[:60], changes)
        assert denied() == "REGO-DENY", text[:60]
    world.restart()
    world.clock.now += 60
    assert denied() == "REGO-DENY"
    if rego.available():
        operator.__init__(world)
        assert put(b"package policy\nimport rego.v1\nallow if input.iss")[0] == 200
        world.guest().boot()


def test_console_health_and_metrics(world, operator):
    world.broker.add_vm("vm-1", mode="none")
    world.guest().boot()
    page = operator("viewer", "GET", "/console")
    assert page.status == 200
    text = page.body.decode()
    assert "vm-1" in text
    assert "<script" not in text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "acquire" in operator("viewer", "GET", "/console/vm/vm-1").body.decode()
    assert operator("viewer", "GET", "/console/vm/%3Cscript%3E").status == 404
    assert operator(None, "GET", "/console").status == 401
    assert operator(None, "GET", "/healthz").status == 200
    ready = json.loads(operator(None, "GET", "/readyz").body)
    assert ready["status"] == "ready"
    metrics = operator(None, "GET", "/metrics").body.decode()
    assert 'cvars_broker_decisions_total{action="acquire",decision="allow",rule=""} 1.0' in metrics
    assert "vm-1" not in metrics
    assert b"/kbs/v0/auth" in operator(None, "GET", "/docs").body
    document = json.loads(operator(None, "GET", "/openapi.json").body)
    assert "/cvars/v1/anchor/{vm}/acquire" in document["paths"]


def test_checkpoints_are_written_when_due_and_when_something_changed(world):
    from cvars.broker import checkpoints

    folder = checkpoints.CheckpointFolder(world.folder / "checkpoints")
    broker = world.broker
    exporter = checkpoints.Exporter(
        folder,
        lambda now: checkpoints.make(broker.db, broker.signer, now=now, broker_id="b"),
        interval_s=300,
        clock=world.clock,
    )
    assert exporter.tick()
    broker.add_vm("vm-1", mode="none")
    world.clock.now += 299
    assert not exporter.tick()  # not due
    world.clock.now += 1
    assert exporter.tick()
    world.clock.now += 300
    assert not exporter.tick()  # nothing changed
    world.clock.now += 1
    assert exporter.tick(force=True)  # at the end
    assert len(folder.files()) == 3
    assert checkpoints.read(folder.files()[-1].read_text(), [broker.signer.private.public_key()], {world.pin})
    for _ in range(checkpoints.KEEP):
        world.clock.now += 1
        exporter.tick(force=True)
    assert len(folder.files()) == checkpoints.KEEP


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """An empty newest file after a power cut would stop the broker from starting."""
    from cvars.broker.checkpoints import CheckpointFolder

    folder = CheckpointFolder(tmp_path / "checkpoints")
    synced: list[tuple[str, int]] = []

    def fsync(fd):
        path = Path(f"/proc/self/fd/{fd}").readlink()
        synced.append((path.suffix, len(list((tmp_path / "checkpoints").glob("*.jws")))))
        assert path.is_dir() or path.read_text() == "text\n"

    monkeypatch.setattr(os, "fsync", fsync)
    folder.write("text", 1.0)
    assert synced == [(".part", 0), ("", 1)]


def test_K47_the_broker_refuses_to_start_behind_its_checkpoint(tmp_path):
    import shutil

    from cvars.broker import checkpoints
    from cvars.broker.checkpoints import CheckpointFolder, RolledBack

    world = World(tmp_path / "broker")
    world.broker.add_vm("vm-1", mode="none")
    world.close()
    shutil.copy(world.folder / "broker.db", tmp_path / "old.db")
    world.open()
    world.guest().boot()
    folder = CheckpointFolder(world.folder / "checkpoints")
    text = checkpoints.make(world.broker.db, world.broker.signer, now=world.clock(), broker_id="b")
    folder.write(text, world.clock())
    world.restart()  # only grew since: fine
    world.clock.now -= 60
    with pytest.raises(RolledBack, match="clock"):
        world.restart()
    world.clock.now += 60
    for name in ("broker.db-wal", "broker.db-shm"):
        (world.folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "old.db", world.folder / "broker.db")
    with pytest.raises(RolledBack, match="vm-1 has 1 of 2"):
        world.open()
    assert entry()
