"""The state tests again, on PostgreSQL, and contention between connections. Run by `make test-postgres`."""

import os
import threading

import pytest
import sqlalchemy as sa

from cvars.broker import record as rules
from cvars.broker.anchors import verify_history
from cvars.broker.migrate import HEAD, migrate
from cvars.broker.record import Refused
from cvars.store.anchor import ORIGIN, AnchorPoint
from tests.broker.support import World, entry
from tests.broker.test_anchor_flow import (  # noqa: F401 - collected here on the other engine
    create,
    test_a_guest_creates_its_store_and_boots_again,
    test_an_advance_is_idempotent_within_its_epoch_only,
    test_frozen_vms_answer_423_and_fence_the_holder,
    test_K49_a_clone_is_refused_while_the_lease_is_live,
    test_K50_after_expiry_the_first_guest_is_fenced,
    test_K54_forged_reordered_and_stolen_anchor_calls,
    test_K56_the_same_snp_instance_continues_its_epoch_after_a_restart,
    test_K58_retire_fences_the_holder_and_destroys_the_key,
    test_provisioning_is_granted_once_an_epoch_and_never_after_the_first_advance,
    test_rotation_releases_both_keys_and_destroys_the_old_one_after_a_later_mount,
    test_the_ring_keeps_64_kib_and_never_less_than_the_last,
)
from tests.broker.test_anchor_memory import (  # noqa: F401 - the same
    replicas,
    test_a_commit_in_doubt_is_forgotten,
    test_a_lease_that_another_process_renewed_is_live,
    test_a_refusal_rests_on_the_record_as_it_is,
    test_a_session_that_another_process_fenced_is_over,
    test_an_advance_of_a_remembered_record_reads_nothing,
    test_another_record_of_the_same_version_is_another_record,
    test_connections_are_given_back_as_they_were_taken,
    test_many_items_leave_the_ring_at_once,
    test_record_and_ring_are_of_one_instant,
    test_replicas_that_remember_decide_as_one_that_reads,
    test_what_would_change_nothing_is_decided_on_the_record_as_it_is,
)
from tests.broker.test_model import test_K59_two_guests_never_both_have_acknowledged_writes  # noqa: F401
from tests.broker.test_service import test_K57_one_provisioning_grant_an_epoch  # noqa: F401
from tests.broker.test_store_and_anchor import (  # noqa: F401
    test_K51_a_rollback_inside_the_ring_is_repaired_to_exactly_the_anchored_state,
    test_K52_a_lost_advance_is_resolved_and_nothing_acknowledged_is_lost,
    test_K55_a_restarted_broker_loses_nothing,
)

pytestmark = pytest.mark.postgres


def fresh_database() -> str:
    """The server's database, emptied and migrated."""
    url = os.environ.get("CVARS_TEST_POSTGRES")
    if url is None:
        pytest.skip("no PostgreSQL: make test-postgres")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    assert migrate(url) == (None, HEAD)
    assert migrate(url) == (HEAD, HEAD)
    return url


def test_a_database_without_an_encoding_is_as_good():
    """What initdb makes where no locale is set, as in a minimal container."""
    url = sa.make_url(fresh_database())
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS plain")
        connection.exec_driver_sql("CREATE DATABASE plain ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    engine.dispose()
    plain = url.set(database="plain").render_as_string(hide_password=False)
    assert migrate(plain) == (None, HEAD)
    assert migrate(plain) == (HEAD, HEAD)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "broker", database=fresh_database())
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request, tmp_path):
    """A world on each engine."""
    database = {"database": fresh_database()} if request.param == "postgresql" else {}
    made = World(tmp_path / "broker", **database)
    yield made
    made.close()


def together(count, action):
    """Run ``action(n)`` in threads at once."""
    barrier = threading.Barrier(count)

    def one(n):
        barrier.wait()
        action(n)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


@pytest.mark.rule("K57")
def test_every_one_time_step_has_one_winner_under_contention(either):
    anchors, now = either.broker.anchors, either.clock()
    either.broker.add_vm("vm-1", mode="strict")
    won: dict[str, list[int]] = {}

    def attempt(name, change):
        won[name] = []

        def one(n):
            try:
                anchors.apply("vm-1", lambda r: change(r, n), now=now)
                won[name].append(n)
            except Refused:
                pass

        together(16, one)

    attempt("acquire", lambda r, n: rules.acquire(r, holder=f"h{n}", instance=None, now=now))
    holder = anchors.get("vm-1").lease.holder
    attempt("provision", lambda r, n: rules.provision(r, epoch=1, holder=holder))
    points = [AnchorPoint(1, bytes([n]) * 32) for n in range(16)]
    base = AnchorPoint(0, b"\1" * 32)
    attempt(
        "advance",
        lambda r, n: rules.advance(
            r,
            epoch=1,
            holder=holder,
            start=ORIGIN,
            to=points[n],
            base=base,
            key_version=1,
            escrow=entry(),
            now=now,
        ),
    )
    attempt("rotate", lambda r, n: rules.rotate(r, reason=str(n)))
    attempt("retire", lambda r, n: rules.retire(r, reason=str(n)))
    assert {name: len(winners) for name, winners in won.items()} == dict.fromkeys(won, 1)
    assert anchors.get("vm-1").point == points[won["advance"][0]]
    assert verify_history(anchors.history("vm-1")) is None
    used = []
    together(20, lambda n: used.append(either.broker.resources.use("p", "vm-1", 7)))
    assert sum(used) == 7


@pytest.mark.rule("K34")
def test_shared_sessions_have_one_decider_and_use_a_sequence_once(either):
    from cvars.broker.sessions_db import DatabaseSessions

    broker = either.broker
    sessions = DatabaseSessions(broker.db, broker.keyring, broker.verifier, either.random.randbytes)
    session = sessions.find(sessions.issue(tee="snp", nonce="n", source="a", now=0.0), now=0.0)
    won = []
    together(16, lambda n: won.append(sessions.begin(session)))
    assert sum(won) == 1
    sessions.open_channel(session, key=bytes(32), vm_id="vm-1", epoch=1, versions=(1,))
    taken = []
    together(16, lambda n: taken.append(sessions.take_sequence(session, 5)))
    assert sum(taken) == 1
    assert not sessions.take_sequence(session, 4)
