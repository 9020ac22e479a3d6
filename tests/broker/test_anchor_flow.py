"""The whole way of one guest, in this process: attest, acquire, key, advance, renew, seal."""

import pytest
import sqlalchemy as sa

from cvars.broker import record as rules
from cvars.broker.anchors import _record, _row, verify_history
from cvars.broker.database import HISTORY, VMS
from cvars.errors import AnchorError, AnchorFenced, AnchorFrozen, AnchorLeased, AnchorRetired
from cvars.release.errors import AttestRefused, ReleaseRefused
from cvars.store.anchor import ORIGIN, AnchorPoint
from tests.broker.support import POLICY, entry

P0 = AnchorPoint(0, b"\x10" * 32)
P1, P2, P3 = (AnchorPoint(n, bytes([n]) * 32) for n in (1, 2, 3))


def create(world, vm_id="vm-1"):
    """A guest that created its store: anchored at P1."""
    world.broker.add_vm(vm_id, mode="critical")
    guest = world.guest(vm_id)
    acquired, keys, anchor = guest.boot(provision=True)
    anchor.advance(epoch=acquired.epoch, start=ORIGIN, to=P1, base=P0, key_version=1, escrow=entry())
    return guest, acquired, keys, anchor


def test_a_guest_creates_its_store_and_boots_again(world):
    guest, first, keys, anchor = create(world)
    assert (first.state, first.epoch, first.point, first.escrow) == ("new", 1, ORIGIN, b"")
    receipt = anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=1, escrow=entry(b"two"))
    assert receipt.point == P2
    assert receipt.lease_s == pytest.approx(30)
    world.clock.now += 10
    assert anchor.renew(epoch=1).lease_s == pytest.approx(30)
    anchor.seal(epoch=1, point=P2)
    again, same, _ = world.guest().boot()
    assert (again.state, again.epoch, again.point, again.base) == ("active", 2, P2, P0)
    assert again.escrow == entry() + entry(b"two")
    assert again.store_id == first.store_id
    assert same == keys
    assert len(keys[1]) == 32
    assert verify_history(world.broker.anchors.history("vm-1")) is None
    assert guest.trace.kinds() == [
        "attest.accepted", "release.statement_verified", "anchor.acquired", "release.statement_verified",
    ]  # fmt: skip


def test_K49_a_clone_is_refused_while_the_lease_is_live(world):
    create(world)
    clone = world.guest(report_id="02" * 32)
    with pytest.raises(AnchorLeased):
        clone.boot()
    line = world.lines[-1]
    assert (line["decision"], line["rule"], line["vm_id"], line["status"]) == ("deny", "ANCHOR-LEASE", "vm-1", 409)


def test_K50_after_expiry_the_first_guest_is_fenced(world):
    _, first, _, anchor = create(world)
    world.clock.now += 31
    second, _, _ = world.guest(report_id="02" * 32).boot()
    assert second.epoch == first.epoch + 1
    with pytest.raises(AnchorFenced):
        anchor.renew(epoch=first.epoch)
    with pytest.raises(AnchorFenced):
        anchor.advance(epoch=first.epoch, start=P1, to=P2, base=P1, key_version=1, escrow=entry())
    assert world.broker.anchors.get("vm-1").point == P1


def test_K53_a_replayed_acquire_or_receipt_is_refused(world):
    from cvars.release.errors import StatementRefusedError

    recorded = {}

    def tape(method, path, headers, body):
        verb = path.rpartition("/")[2]
        answer = world.http(method, path, headers, body)
        if verb in recorded and recorded["play"]:
            return recorded[verb]
        recorded.setdefault("play", False)
        if verb in ("acquire", "renew"):
            recorded[verb] = answer
        return answer

    world.broker.add_vm("vm-1", mode="strict")
    guest = world.guest(http=tape)
    _, _, anchor = guest.boot(provision=True)
    anchor.renew(epoch=1)
    recorded["play"] = True
    with pytest.raises(StatementRefusedError):
        anchor.renew(epoch=1)  # the old receipt: renews nothing
    guest.client.attest(guest.init_data)
    with pytest.raises(StatementRefusedError):
        guest.client.acquire("vm-1")


def test_an_advance_is_idempotent_within_its_epoch_only(world):
    _, _, _, anchor = create(world)
    version = world.broker.anchors.get("vm-1").version
    again = anchor.advance(epoch=1, start=ORIGIN, to=P1, base=P0, key_version=1, escrow=entry())
    assert again.version == version
    with pytest.raises(AnchorFenced):  # another predecessor
        anchor.advance(epoch=1, start=P2, to=P3, base=P2, key_version=1, escrow=entry())
    with pytest.raises(AnchorFenced):  # backwards
        anchor.advance(epoch=1, start=P1, to=P0, base=P1, key_version=1, escrow=entry())
    with pytest.raises(AnchorFenced):  # escrow that is not whole entries
        anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=1, escrow=b"garbage")
    with pytest.raises(AnchorFenced):  # a key version nobody released
        anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=7, escrow=entry())
    assert world.broker.anchors.get("vm-1").point == P1


def _kept(world) -> int:
    """Bytes of escrow in the history's rows, in the ring or not."""
    with world.broker.db.read() as connection:
        return int(connection.execute(sa.select(sa.func.sum(sa.func.length(HISTORY.c.escrow)))).scalar() or 0)


def test_the_ring_keeps_64_kib_and_never_less_than_the_last(world):
    _, _, _, anchor = create(world)
    at = P1
    for n in range(2, 12):
        to = AnchorPoint(n, bytes([n]) * 32)
        anchor.advance(epoch=1, start=at, to=to, base=at, key_version=1, escrow=entry(bytes([n]) * 10_000))
        at = to
        record, ring = world.broker.anchors.read_consistent("vm-1")
        assert len(ring) == record.ring_bytes <= 72 * 1024  # its oldest leave it several at once
        assert len(ring) > 64 * 1024 - 10_008 or n < 8  # and never more of them than that
        assert _kept(world) == len(ring)
    assert record.base == AnchorPoint(5, bytes([5]) * 32)
    huge = AnchorPoint(12, b"\x0c" * 32)
    anchor.advance(epoch=1, start=at, to=huge, base=at, key_version=1, escrow=entry(bytes(74_000)))
    record, ring = world.broker.anchors.read_consistent("vm-1")
    assert (record.base, len(ring)) == (at, 74_008)
    assert _kept(world) == 74_008
    restart = AnchorPoint(20, b"\x14" * 32)
    anchor.advance(
        epoch=1, start=huge, to=restart, base=AnchorPoint(19, b"\x13" * 32), key_version=1, escrow=entry()
    )
    record, ring = world.broker.anchors.read_consistent("vm-1")
    assert (record.base.counter, ring) == (19, entry())
    assert _kept(world) == len(entry())
    huge = AnchorPoint(21, b"\x15" * 32)
    anchor.advance(epoch=1, start=restart, to=huge, base=restart, key_version=1, escrow=entry(bytes(74_000)))
    world.broker.operate("vm-1", lambda r: rules.freeze(r, reason="adds nothing"))
    record, ring = world.broker.anchors.read_consistent("vm-1")
    assert (record.base, len(ring)) == (restart, 74_008)


def test_provisioning_is_granted_once_an_epoch_and_never_after_the_first_advance(world):
    world.broker.add_vm("vm-1", mode="strict")
    guest = world.guest()
    _, _, anchor = guest.boot(provision=True)
    with pytest.raises(ReleaseRefused):
        guest.client.store_key("vm-1", provision=True)
    world.clock.now += 31  # it crashed during creation
    _, _, anchor = guest.boot(provision=True)
    anchor.advance(epoch=2, start=ORIGIN, to=P1, base=P0, key_version=1, escrow=entry())
    anchor.seal(epoch=2, point=P1)
    with pytest.raises(ReleaseRefused):
        guest.boot(provision=True)


def test_without_a_grant_nobody_creates_a_store(world):
    world.broker.add_vm("vm-1", mode="strict")
    _, _, anchor = world.guest().boot()
    with pytest.raises(AnchorFenced):
        anchor.advance(epoch=1, start=ORIGIN, to=P1, base=P0, key_version=1, escrow=entry())


def test_K54_forged_reordered_and_stolen_anchor_calls(world):
    guest, _, _, _ = create(world)
    session = guest.client._session
    before = world.broker.anchors.get("vm-1")
    cookie = {"cookie": f"kbs-session-id={session.cookie}"}
    body = b'{"epoch":1}'
    path = "/cvars/v1/anchor/vm-1/renew"
    from cvars.release import channel

    fresh = channel.headers(session.channel_key, "POST", path, session.sequence + 5, body)
    for headers, sent in (
        (cookie, body),  # the cookie alone
        (cookie | channel.headers(bytes(32), "POST", path, 99, body), body),
        (cookie | fresh, b'{"epoch":2}'),
        (cookie | fresh | {"x-cvars-sequence": "98"}, body),
        (fresh, body),
    ):
        assert world.http("POST", path, headers, sent).status == 401
    assert world.http("POST", path, cookie | fresh, body).status == 200
    assert world.http("POST", path, cookie | fresh, body).status == 401  # twice
    older = channel.headers(session.channel_key, "POST", path, session.sequence + 4, body)
    assert world.http("POST", path, cookie | older, body).status == 401  # reordered
    after = world.broker.anchors.get("vm-1")
    assert (after.point, after.epoch, after.version) == (before.point, before.epoch, before.version)


def test_K56_the_same_snp_instance_continues_its_epoch_after_a_restart(world):
    guest, _, _, anchor = create(world)
    world.restart()
    guest.client._http = world.http
    anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=1, escrow=entry())
    assert world.broker.anchors.get("vm-1").epoch == 1
    world.restart()
    guest.client._http = world.http
    guest.hardware.report_id = "02" * 32  # another instance
    with pytest.raises(AnchorFenced):
        anchor.renew(epoch=1)


def test_K58_retire_fences_the_holder_and_destroys_the_key(world):
    _, _, _, anchor = create(world)
    world.broker.operate("vm-1", lambda r: rules.retire(r, reason="test"))
    with pytest.raises(AnchorFenced):
        anchor.renew(epoch=1)
    assert world.broker.anchors.store_keys("vm-1", [1]) is None
    with pytest.raises(AnchorRetired):
        world.guest().boot()
    from cvars.broker.anchors import Exists

    with pytest.raises(Exists):
        world.broker.add_vm("vm-1", mode="strict")
    world.broker.operate("vm-1", lambda r: rules.reset(r, point=None, store_id=bytes(16), reason="again"))
    acquired, keys, _ = world.guest().boot(provision=True)
    assert (acquired.state, acquired.key_version, acquired.store_id) == ("new", 2, bytes(16))
    assert set(keys) == {2}


def test_frozen_vms_answer_423_and_fence_the_holder(world):
    _, _, _, anchor = create(world)
    world.broker.operate("vm-1", lambda r: rules.freeze(r, reason="incident"))
    with pytest.raises(AnchorFenced):
        anchor.renew(epoch=1)
    with pytest.raises(AnchorFrozen):
        world.guest().boot()
    world.broker.operate("vm-1", lambda r: rules.thaw(r, reason="over"))
    assert world.guest().boot()[0].epoch == 3


def test_rotation_releases_both_keys_and_destroys_the_old_one_after_a_later_mount(world):
    _, _, keys, anchor = create(world)
    anchor.seal(epoch=1, point=P1)
    world.broker.operate("vm-1", lambda r: rules.rotate(r, reason="yearly"))
    acquired, both, anchor = world.guest().boot()
    assert (acquired.key_version, acquired.key_old) == (2, 1)
    assert both[1] == keys[1] != both[2]
    assert list(both) == [2, 1]
    anchor.advance(epoch=2, start=P1, to=P2, base=P1, key_version=2, escrow=entry(b"new"))
    assert world.broker.anchors.store_keys("vm-1", [1]) is not None  # the compaction may not have survived
    anchor.seal(epoch=2, point=P2)
    acquired, _, anchor = world.guest().boot()
    assert acquired.key_old == 1
    anchor.advance(epoch=3, start=P2, to=P3, base=P2, key_version=2, escrow=entry(b"newer"))
    record, ring = world.broker.anchors.read_consistent("vm-1")
    assert record.key_old is None
    assert world.broker.anchors.store_keys("vm-1", [1]) is None
    assert (record.base, ring) == (P1, entry(b"new") + entry(b"newer"))


def test_K44_a_rogue_broker_is_recognised_before_anything_is_opened(world, tmp_path):
    from cvars.release.errors import StatementRefusedError
    from tests.broker.support import World

    rogue = World(tmp_path / "rogue", seed=99)
    rogue.broker.add_vm("vm-1", mode="strict")
    rogue.broker.signer.__class__  # noqa: B018
    world.broker.add_vm("vm-1", mode="strict")
    guest = world.guest(http=rogue.http, init_data=rogue.init_data("vm-1"))  # the host swapped the pin there
    guest.client.attest(guest.init_data)
    with pytest.raises(StatementRefusedError):
        guest.client.acquire("vm-1")
    assert guest.trace.kinds()[-1] == "release.statement_refused"
    rogue.close()


def test_K45_a_guest_that_pins_another_broker_gets_nothing(world):
    from cvars.release import initdata

    guest = world.guest(init_data=initdata.compose("vm-1", ["ab" * 32]))
    with pytest.raises(AttestRefused) as refused:
        guest.client.attest(guest.init_data)
    assert refused.value.rule == "KBS-PIN"
    guest = world.guest()
    other = initdata.compose("vm-1", ["ab" * 32])
    with pytest.raises(AttestRefused) as refused:  # measured digest differs
        guest.client.attest(other)
    assert refused.value.rule == "SNP-HOSTDATA"


def test_an_unknown_vm_needs_an_operator_or_first_use(world):
    guest = world.guest("vm-9")
    with pytest.raises(AnchorError):
        guest.boot()
    assert world.lines[-1]["rule"] == "ANCHOR-ENROL"
    guest = world.guest("vm-1")
    world.broker.add_vm("vm-1", mode="none")
    guest.client.attest(guest.init_data)
    with pytest.raises(AnchorError):  # somebody else's anchor
        guest.client.acquire("vm-2")
    assert world.lines[-1]["rule"] == "POL-VMID"


def test_skip_checks_lease_exists_for_the_demo_only(tmp_path):
    from cvars.broker.config import ConfigMistake, SimulationTable
    from tests.broker.support import World

    with pytest.raises(ConfigMistake):
        World(tmp_path / "a", simulated=SimulationTable(skip_checks=["lease"]))
    broken = World(tmp_path / "b", simulation=True, simulated=SimulationTable(skip_checks=["lease"]))
    broken.broker.add_vm("vm-1", mode="strict")
    broken.guest().boot()
    assert broken.guest(report_id="02" * 32).boot()[0].epoch == 2
    assert [line["epoch"] for line in broken.lines if line["action"] == "acquire"] == [1, 2]
    broken.close()


def test_K50_a_second_acquire_of_the_same_session_fences_the_first(world):
    guest, _, _, anchor = create(world)
    again = guest.client.acquire("vm-1")  # the same key: its answer may have been lost
    assert again.epoch == 2
    with pytest.raises(AnchorFenced):
        anchor.renew(epoch=1)
    with pytest.raises(AnchorFenced):
        anchor.advance(epoch=1, start=P1, to=P2, base=P1, key_version=1, escrow=entry())
    guest.client.anchor().renew(epoch=2)


def test_K53_an_older_answer_within_one_session_is_refused(world):
    from cvars.release.errors import StatementRefusedError

    recorded = []

    def tape(method, path, headers, body):
        answer = world.http(method, path, headers, body)
        if path.endswith(("/acquire", "/release")):
            recorded.append(answer)
            return recorded[0] if path.endswith("/acquire") else recorded[1]
        return answer

    world.broker.add_vm("vm-1", mode="strict")
    guest = world.guest(http=tape)
    guest.boot()
    with pytest.raises(StatementRefusedError, match="another nonce"):
        guest.client.store_key("vm-1")
    with pytest.raises(StatementRefusedError, match="another nonce"):
        guest.client.acquire("vm-1")


def test_a_vm_gets_no_secret_of_another(world):
    from cvars.release.errors import ReleaseRefused

    mine = POLICY.replace("policy: stores", "policy: tls").replace("vms/*/store-kek", "tls/*/key")
    world.broker.policies.load({"a": POLICY, "b": mine.replace("lease: required", "lease: any")})
    world.broker.resources.put("tls/vm-1/key", b"of vm-1")
    guest = world.guest("vm-2")
    guest.client.attest(guest.init_data)
    with pytest.raises(ReleaseRefused):
        guest.client.resource("tls/vm-1/key", "vm-2")
    assert world.lines[-1]["rule"] == "POL-PERVM"
    with pytest.raises(ReleaseRefused):
        guest.client.resource("vms/vm-1/store-kek", "vm-2")
    guest = world.guest("vm-1")
    guest.client.attest(guest.init_data)
    assert guest.client.resource("tls/vm-1/key", "vm-1") == b"of vm-1"


def test_a_record_is_read_as_it_was_written(world):
    """Every column another value, so that no two can change places."""
    full = rules.Record(
        "vm-1", b"s" * 16, "policy", "strict", "frozen", "active", 1, AnchorPoint(2, b"a" * 32),
        AnchorPoint(3, b"b" * 32), 4, AnchorPoint(5, b"c" * 32), 6, 7, 8, 9, 10, 11, (1, 3), 12,
        rules.Lease("holder", "instance", 13.5), 14, 15, "identity", b"h" * 32,
    )  # fmt: skip
    assert len(full) == len(rules.Record._fields)
    bare = full._replace(policy=None, thawed=None, key_old=None, key_written_epoch=None, lease=None, identity=None)
    for record in (full, bare):
        assert _record(_row(record)) == record
        with world.broker.db.write() as connection:
            connection.execute(sa.delete(VMS))
            connection.execute(sa.insert(VMS), dict(zip((c.name for c in VMS.c), _row(record), strict=True)))
            row = connection.execute(sa.select(VMS)).mappings().one()
        assert world.broker.anchors.get("vm-1") == record
        assert (row["counter"], row["from_counter"], row["base_counter"]) == (2, 3, 5)
        assert (row["key_version"], row["version"], row["acquires"], row["provision_epoch"]) == (8, 12, 14, 15)
