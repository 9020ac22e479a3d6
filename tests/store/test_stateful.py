"""Random lives of a store against a dict and a second engine that writes whole images (section 5 item 8)."""

import contextlib
import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cvars.errors import DeviceError
from cvars.host.media import Fault, FaultyMedium, PowerLoss
from cvars.store import MemoryMedium, Mode, StoreFull
from tests.store.broken_anchor import Lossy
from tests.store.world import DB, World, append, delete, put, put_key, state

NAMES = st.sampled_from(["A", "B", "C", "BootOrder", "Long" * 9])
DATA = st.binary(max_size=700) | st.integers(0, 3000).map(bytes)


class TwoSlots:
    """A second engine: the whole state as JSON in one of two slots, the other kept until the write is done."""

    def __init__(self) -> None:
        self.slots: list[str] = ["{}", ""]
        self.active = 0

    def commit(self, state: dict) -> None:
        free = 1 - self.active
        self.slots[free] = json.dumps(
            [[str(k.vendor_guid), k.name, v.attributes, v.data.hex()] for k, v in state.items()]
        )
        self.active = free

    def load(self) -> list:
        return sorted(json.loads(self.slots[self.active])) if self.slots[self.active] != "{}" else []


class StoreLife(RuleBasedStateMachine):
    @initialize(mode=st.sampled_from(list(Mode)), suite=st.sampled_from([1, 2, 3]))
    def create(self, mode, suite) -> None:
        self.world = World(mode=mode, suite=suite, window_commits=4)
        self.model: dict = {}
        self.second = TwoSlots()
        self.anchor = Lossy(self.world.anchor)
        self.open()

    def open(self, image: bytes | None = None) -> None:
        anchored = self.world.mode is not Mode.NONE
        self.store = self.world.boot(image, anchor=self.anchor if anchored else None)

    def commit(self, *changes) -> None:
        after = dict(self.model)
        for change in changes:
            if isinstance(change, type(delete("x"))):
                after.pop(change.key)
            else:
                after[change.key] = change.variable
        try:
            self.store.commit(tuple(changes))
        except StoreFull:
            return
        self.model = after
        self.second.commit(after)

    @rule(name=NAMES, data=DATA)
    def put(self, name, data) -> None:
        self.commit(put(name, data))

    @rule(data=DATA)
    def put_db(self, data) -> None:
        self.commit(put_key(DB, data))

    @rule(name=NAMES)
    def delete(self, name) -> None:
        if put(name, b"").key in self.model:
            self.commit(delete(name))

    @rule(name=NAMES, data=st.binary(min_size=1, max_size=90))
    def append(self, name, data) -> None:
        old = self.model.get(put(name, b"").key)
        if old is not None and len(old.data) < 4000:
            self.commit(append(name, data, old.data))

    @rule(names=st.lists(NAMES, min_size=2, max_size=4, unique=True), data=st.binary(max_size=40))
    def several(self, names, data) -> None:
        self.commit(*(put(n, data) for n in names))

    @rule()
    def reboot(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def crash(self) -> None:
        self.open()

    @rule(seconds=st.floats(0, 24))
    def time_passes(self, seconds) -> None:
        self.world.clock.now += seconds
        self.store.tick()

    @precondition(lambda self: self.world.mode is not Mode.NONE)
    @rule(name=NAMES, data=DATA)
    def lost_messages(self, name, data) -> None:
        """The broker goes silent; what is refused stays invisible."""
        self.anchor.default = "request"
        with contextlib.suppress(DeviceError):
            self.put(name, data)
        self.anchor.default = "ok"
        self.store.require_lease()
        self.world.clock.now = max(self.world.clock.now, self.store._freshness.sent + 11)
        self.store.tick()

    @rule(call=st.integers(0, 6), name=NAMES, data=DATA)
    def power_loss(self, call, name, data) -> None:
        """Crash at a write or flush; before or after are both right."""
        medium = FaultyMedium(self.world.image, faults={call: Fault.CRASH_AFTER})
        before = dict(self.model)
        try:
            anchored = self.world.mode is not Mode.NONE
            self.store = self.world.boot(medium=medium, anchor=self.anchor if anchored else None)
            self.put(name, data)
            after = dict(self.model)
        except PowerLoss:
            after = before | {put(name, data).key: put(name, data).variable}
        self.world.medium = MemoryMedium(bytes(medium.durable))
        self.open()
        assert state(self.store) in (before, after)
        self.model = state(self.store)
        self.second.commit(self.model)

    @invariant()
    def same_as_the_model(self) -> None:
        if hasattr(self, "store"):
            assert state(self.store) == self.model
            ours = sorted(
                [str(k.vendor_guid), k.name, v.attributes, v.data.hex()] for k, v in self.store.variables.items()
            )
            assert ours == self.second.load()


StoreLife.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStoreLife = StoreLife.TestCase
TestStoreLife.__doc__ = "SS-8, SS-9, SS-15."
