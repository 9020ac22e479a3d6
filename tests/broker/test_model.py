"""K59: random interleavings of guests, crashes and host actions against the record's rules.

The invariant is checked from the outside, by what clients were told: a write is acknowledged only in the newest
epoch, the anchored point only ever moves along acknowledged or in-doubt writes, and a history is never rewritten.
"""

import random as random_module

import pytest

from cvars.broker import record as rules
from cvars.broker.anchors import verify_history
from cvars.broker.record import Refused
from cvars.store.anchor import AnchorPoint
from tests.broker.support import World, entry


class ModelGuest:
    def __init__(self, name):
        self.name = name
        self.epoch = None
        self.point = None


def run(seed, steps, anchors, clock):
    rng = random_module.Random(seed)
    guests = [ModelGuest(f"guest-{n}") for n in range(3)]
    vm = f"vm-{seed}"
    anchors.enrol(rules.Record(vm_id=vm, store_id=bytes(16)), now=clock(), reason="model")
    acknowledged: list[tuple[int, str, int]] = []  # (epoch, guest, counter)
    newest = 0
    counter = 0

    def call(change):
        try:
            return anchors.apply(vm, change, now=clock())
        except Refused:
            return None

    for _ in range(steps):
        guest = rng.choice(guests)
        action = rng.choice(
            ["boot", "boot", "write", "write", "write", "renew", "seal", "crash", "wait", "replay", "freeze"]
        )
        if action == "boot":
            done = call(lambda r, g=guest: rules.acquire(r, holder=g.name, instance=g.name, now=clock()))
            if done is not None:
                assert done.epoch > newest  # epochs never repeat and never go back
                newest = done.epoch
                guest.epoch, guest.point = done.epoch, done.point
                call(lambda r, g=guest: rules.provision(r, epoch=g.epoch, holder=g.name))
        elif action in ("write", "replay") and guest.epoch is not None:
            counter += 1
            to = AnchorPoint(guest.point.counter + 1, rng.randbytes(32))
            done = call(
                lambda r, g=guest, to=to: rules.advance(
                    r,
                    epoch=g.epoch,
                    holder=g.name,
                    start=g.point,
                    to=to,
                    base=g.point,
                    key_version=1,
                    escrow=entry(),
                    now=clock(),
                )
            )
            if done is not None:
                assert guest.epoch == newest, "an older session made an acknowledged write"
                assert done.point == to
                acknowledged.append((guest.epoch, guest.name, to.counter))
                if action == "write":
                    guest.point = to  # with "replay" the answer was lost: the same advance again
                else:
                    again = call(
                        lambda r, g=guest, to=to: rules.advance(
                            r,
                            epoch=g.epoch,
                            holder=g.name,
                            start=g.point,
                            to=to,
                            base=g.point,
                            key_version=1,
                            escrow=entry(),
                            now=clock(),
                        )
                    )
                    assert again.version == done.version
                    guest.point = to
        elif action == "renew" and guest.epoch is not None:
            done = call(lambda r, g=guest: rules.renew(r, epoch=g.epoch, holder=g.name, now=clock()))
            assert done is None or guest.epoch == newest
        elif action == "seal" and guest.epoch is not None:
            call(lambda r, g=guest: rules.seal(r, epoch=g.epoch, holder=g.name, point=g.point))
        elif action == "crash":
            guest.epoch = guest.point = None
        elif action == "wait":
            clock.now += rng.choice([1, 10, 31])
        elif action == "freeze" and rng.random() < 0.2:
            call(lambda r: rules.freeze(r, reason="x"))
            done = call(lambda r: rules.thaw(r, reason="x"))
            newest = done.epoch if done else newest
    epochs = [epoch for epoch, _, _ in acknowledged]
    assert epochs == sorted(epochs), "two sessions made acknowledged writes in overlapping epochs"
    for epoch in set(epochs):
        assert len({g for e, g, _ in acknowledged if e == epoch}) == 1
    counters = [c for _, _, c in acknowledged]
    assert counters == sorted(set(counters)), "an acknowledged write was taken back"
    final = anchors.get(vm)
    assert final.point.counter == (counters[-1] if counters else 0)
    assert verify_history(anchors.history(vm, limit=100_000)) is None
    return len(acknowledged)


def test_K59_two_guests_never_both_have_acknowledged_writes(world):
    total = sum(run(seed, 60, world.broker.anchors, world.clock) for seed in range(12))
    assert total > 40  # the walk does get somewhere


@pytest.mark.exhaustive
def test_K59_many_more_walks(tmp_path):
    world = World(tmp_path / "b")
    assert sum(run(seed, 400, world.broker.anchors, world.clock) for seed in range(200)) > 5000
    world.close()
