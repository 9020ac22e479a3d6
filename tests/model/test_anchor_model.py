"""The anchor protocol as an explicit-state model, its negative controls, and the same paths in the real code."""

from collections import Counter

import pytest

from cvars.errors import AnchorFenced, AnchorUnreachable, DeviceError, NotReady, StoreError
from cvars.store import MemoryMedium, Mode
from tests.model.anchor_model import (
    BOUNDED,
    CRITICAL,
    PER_BOOT,
    STRICT,
    WINDOW,
    Controls,
    Model,
    Violation,
    explore,
)
from tests.store.broken_anchor import Lossy
from tests.store.world import DB, World, key, put, put_key

CASES = [(STRICT, True), (STRICT, False), (CRITICAL, False), (BOUNDED, False), (PER_BOOT, False), (PER_BOOT, True)]


@pytest.mark.parametrize(("mode", "takeover"), CASES)
@pytest.mark.rule("SS-12", "SS-13", "SS-15", "T5", "T6", "T11", "T19", "T20")
def test_no_interleaving_loses_a_promise_or_locks_an_honest_host_out(mode, takeover, exhaustive, capsys) -> None:
    found = explore(Model(mode, takeover=takeover), 8 if exhaustive else 5)
    assert found.states > 300
    if exhaustive:
        with capsys.disabled():
            print(
                f"\nmodel {mode}, takeover {takeover}: {found.states} states, {found.transitions} transitions, "
                f"wrong states 0; boots: "
                + ", ".join(f"{o} {n}" for (a, o), n in sorted(found.outcomes.items()) if a == "boot")
            )
    boots = {outcome for action, outcome in found.outcomes if action == "boot"}
    assert {"clean", "repaired", "store.forked", "anchor.unreachable"} <= boots


CONTROLS = [
    (STRICT, True, Controls(acknowledge_before_anchor=True)),
    (STRICT, True, Controls(no_history_check=True)),
    (PER_BOOT, False, Controls(no_history_check=True)),
    (STRICT, True, Controls(no_predecessor_check=True, no_history_check=True)),
    (PER_BOOT, False, Controls(no_local_lease=True)),
]


@pytest.mark.parametrize(("mode", "takeover", "controls"), CONTROLS, ids=str)
def test_the_search_catches_each_negative_control(mode, takeover, controls) -> None:
    with pytest.raises(Violation):
        explore(Model(mode, takeover=takeover, controls=controls), 6)


class Watched(MemoryMedium):
    """Keeps the image after every barrier: what a host can have copied."""

    def __init__(self, image: bytes) -> None:
        super().__init__(image)
        self.kept: list[bytes] = []

    def flush(self) -> None:
        super().flush()
        self.kept.append(bytes(self.image))


class Driver:
    """Plays the actions of a path on the real code and tells what the caller saw."""

    def __init__(self, mode: str, *, takeover: bool) -> None:
        self.world = World(mode=Mode.named(mode), window_commits=WINDOW, window_s=1e9, doubt_s=0)
        self.world.anchor._ring_bytes = 3 * 516
        self.takeover = takeover
        self.world.boot()
        self.world.clock.now += 31
        self.images = {(("a", 1),): self.world.image}
        self.stores: list = [None, None]
        self.links: list = [None, None]
        self.media: list = [None, None]

    def loss(self, link: Lossy, how: str) -> None:
        link.script, link.default = (["answer"], "request") if how == "answer" else ([], how)

    def keep(self, i: int, before, after) -> None:
        """Remember the images that belong to the histories which this action made."""
        new = sorted(after.images - before.images, key=len)
        if new:
            for history, image in zip(new, self.media[i].kept[-len(new) :], strict=True):
                self.images[history] = image

    def play(self, before, action, after) -> str:
        name = action[0]
        if name == "time":
            self.world.clock.now += 31
            return "ok"
        i = action[1]
        if name == "boot":
            outcome = self.boot(i, action[2], action[3])
            self.keep(i, before, after)
            return outcome
        if name == "crash":
            self.stores[i] = None
            return "ok"
        if name == "disk stops":
            return "ok"
        store, link = self.stores[i], self.links[i]
        self.loss(link, action[2] if name != "close" else "ok")
        try:
            if name == "commit":
                data = before.uid.to_bytes(2, "little")
                if self.settles(before.insts[i], action[2]):
                    data = (before.uid + 1).to_bytes(2, "little")
                store.commit((put_key(DB, data) if action[3] else put("N", data),))
            elif name == "tick":
                store.tick()
                if store._doubt is not None or link.calls[-1:] == ["lost"]:
                    return "refused"
            else:
                store.close()
        except AnchorFenced:
            return "fenced"
        except NotReady:
            return "fenced"
        except (DeviceError, AnchorUnreachable):
            return "refused"
        finally:
            if name == "close":
                self.stores[i] = None
            self.keep(i, before, after)
        return "ok"

    @staticmethod
    def settles(me, loss: str) -> bool:
        return me is not None and me.wait not in (None, "undone") and loss == "ok"

    def boot(self, i: int, history: tuple, how: str) -> str:
        world = self.world
        link = Lossy(world.anchor)
        self.loss(link, how)
        medium = self.media[i] = Watched(self.images[history])
        try:
            store = world.boot(medium=medium, anchor=link, takeover=self.takeover)
        except AnchorUnreachable:
            outcome = "anchor.unreachable"
        except StoreError as error:
            outcome = error.reason
        else:
            outcome = {0: "clean", 1: "forward", 2: "repaired"}[store.boot.outcome]
            self.stores[i], self.links[i] = store, link
        return outcome

    def value(self, i: int) -> int:
        live = self.stores[i].variables
        values = [live[k].data for k in (DB, key("N")) if k in live]
        return max((int.from_bytes(v, "little") for v in values), default=0)


@pytest.mark.parametrize(("mode", "takeover"), CASES)
@pytest.mark.rule("SS-12", "SS-13", "T6", "T19")
def test_the_real_code_does_what_the_model_does_on_the_same_interleavings(
    mode, takeover, exhaustive, capsys
) -> None:
    model = Model(mode, takeover=takeover)
    paths = explore(model, 7 if exhaustive else 5, keep_every=13).paths
    seen: Counter = Counter()
    step = max(1, len(paths) // (6000 if exhaustive else 150))
    paths = paths[::step]
    for path in paths:
        driver = Driver(mode, takeover=takeover)
        state = model.start()
        for action in path:
            after, expected = model.apply(state, action)
            got = driver.play(state, action, after)
            if not (action[0] == "tick" and expected == "refused"):
                assert got == expected, (path, action, got, expected)
            seen[action[0], got] += 1
            assert driver.world.anchor.record.point.counter == len(after.point), (path, action)
            for i in (0, 1):
                me = after.insts[i]
                if me is not None and driver.stores[i] is not None and mode != CRITICAL:
                    assert driver.value(i) == me.value, (path, action)
            state = after
    assert sum(seen.values()) > 300
    if exhaustive:
        with capsys.disabled():
            print(
                f"\nreal code, {mode}, takeover {takeover}: {len(paths)} interleavings, "
                f"{sum(seen.values())} steps, differences 0"
            )
