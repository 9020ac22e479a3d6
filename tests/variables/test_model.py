"""The service against an independent model, over random sequences of requests (`tests/variables/model.py`)."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvars.errors import VariableError
from cvars.variables import Limits
from cvars.variables.requests import EndOfDxe, ExitBootServices, GetVariable, ReadyToBoot, RegisterPolicy
from cvars.variables.saved import restore, save
from tests.conftest import SEED
from tests.mm.kit import entry
from tests.variables.kit import A, Guest, key
from tests.variables.model import AT, OWN, Model
from tests.variables.pki import descriptor, time

LIMITS = Limits(
    nv_pool=900,
    volatile_pool=1100,
    max_authenticated=280,
    max_nv=300,
    max_volatile=260,
    max_variables=11,
)
NAMES = ("", "a", "b", "cc", "ddd")
COMMON = (3, 6, 7, 7, 7, 0x47, 0x47)
ATTRIBUTES = (*COMMON, 0, 1, 2, 4, 0x27, 0x43, 0x46, 0x40, 0x0F, 0x17, 0x87, 0xA7, 0x67, 0x107)
SIZES = (0, 0, 1, 3, 40, 150, 240)
EXAMPLES = 2000
STEPS = 25


class Pair:
    """Both sides get the same request; every answer and the whole content must agree."""

    def __init__(self):
        self.guest = Guest(limits=LIMITS)
        self.model = Model(LIMITS.nv_pool, LIMITS.volatile_pool, (280, 300, 260), LIMITS.max_variables)

    def outcome(self, act):
        """The status and the answer; a refusal must change nothing."""
        before = self.guest.state
        try:
            return "SUCCESS", act()
        except VariableError as error:
            assert self.guest.state is before
            return error.status.name, error

    def do(self, rng):
        match rng.randrange(12):
            case 0:
                phase = rng.choice((1, 1, 2, 3))
                self.guest.ask((EndOfDxe(), ReadyToBoot(is_event=True), ExitBootServices())[phase - 1])
                self.model.advance(phase)
            case 1:
                getattr(self.guest, rng.choice(("reset", "power_cycle")))()
                self.model.reset()
            case 2:
                self.read(rng.choice(NAMES), rng.choice((0, 5, 300)))
            case 3:
                attributes = rng.choice(ATTRIBUTES)
                status, info = self.outcome(lambda: self.guest.query(attributes))
                got = (info.remaining, info.maximum_variable) if status == "SUCCESS" else status
                assert got == self.model.query(attributes)
            case 4:
                name, high, locked = rng.choice(NAMES[1:]), rng.choice((2, 50)), rng.random() < 0.3
                request = RegisterPolicy(entry(A, name, high=high, lock=int(locked)))
                status, _ = self.outcome(lambda: self.guest.ask(request))
                assert status == self.model.lock(name, 0, high, locked)
            case 5:
                self.guest.state = restore(save(self.guest.state))
            case _:
                size = rng.choice(SIZES) if rng.random() < 0.9 else rng.randrange(300)
                self.write(rng.choice(NAMES), rng.choice(ATTRIBUTES), bytes(size), rng.choice((2020, 2024, None)))
        self.compare()

    def read(self, name, room):
        status, found = self.outcome(lambda: self.guest.ask(GetVariable(key(name), room)))
        if status == "SUCCESS":
            got = status, found.data, found.attributes
        else:
            got = (status, found.needed, found.attributes) if status == "BUFFER_TOO_SMALL" else (status,)
        assert got == self.model.get(name, room)

    def write(self, name, attributes, data, year):
        if not attributes & AT:
            year, sent = None, data
        else:
            sent = data = data[:39]
            if year is not None:
                sent = descriptor(when=time(year)) + data
        status, _ = self.outcome(lambda: self.guest.set(name, sent, attributes))
        assert status == self.model.set(name, attributes, data, year), (name, attributes, len(data), year)

    def compare(self):
        table = self.guest.state.table
        mine = {k.name: (v.attributes, v.data) for k, v in table.items() if k.name not in OWN}
        assert mine == {n: (a, d) for n, a, d, _ in self.model.rows}
        assert {k.name for k in self.guest.names()} == self.model.visible()
        assert table.usage.nv == self.model.charge(volatile=False)
        assert table.usage.volatile == self.model.charge(volatile=True)
        stored = {k.name: v.data for k, v in self.guest.store.items()}
        assert stored == {n: d for n, a, d, _ in self.model.rows if a & 1}


@pytest.mark.rule("R13", "R28", "R30", "R51", "R52", "R120", "P30")
@settings(max_examples=EXAMPLES)
@given(st.integers(0, (1 << 48) - 1))
def test_the_service_agrees_with_an_independent_model(seed):
    """Hypothesis chooses the seed of each sequence; a failure prints it, and it alone repeats the sequence."""
    rng = random.Random(seed ^ SEED)
    pair = Pair()
    for _ in range(STEPS):
        pair.do(rng)


@pytest.mark.exhaustive
@settings(max_examples=20_000)
@given(st.integers(0, (1 << 48) - 1))
def test_the_service_agrees_with_an_independent_model_for_long(seed):
    rng = random.Random(seed)
    pair = Pair()
    for _ in range(60):
        pair.do(rng)
