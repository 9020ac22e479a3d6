"""Short words for the tests of the variable rules: a service in memory, requests, expected refusals."""

from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import pytest

from cvars.errors import EfiStatus, VariableError
from cvars.variables import SPEC, Limits, initial_state, reset, step, stored
from cvars.variables.model import Append, Delete, Key, Put
from cvars.variables.names import APPEND, AT, AW, BS, ENH, HR, NV, RT  # noqa: F401 - for the tests
from cvars.variables.refusals import NotFound
from cvars.variables.requests import (
    EndOfDxe,
    ExitBootServices,
    GetNextVariableName,
    GetVariable,
    QueryVariableInfo,
    ReadyToBoot,
    SetVariable,
)

A = UUID("aaaaaaaa-0001-4000-8000-00000000000a")
B = UUID("bbbbbbbb-0002-4000-8000-00000000000b")
NBR = NV | BS | RT


def key(name, guid=A):
    return name if isinstance(name, Key) else Key(guid, name)


class Guest:
    """One service, as a guest and its store see it: ``store`` holds what was committed."""

    def __init__(self, variables=None, *, profile=SPEC, limits=None, **choices):
        self.profile = replace(profile, **choices) if choices else profile
        self.limits = limits or Limits()
        self.store = dict(variables or {})
        self.state = initial_state(self.store, profile=self.profile, limits=self.limits)
        self.journals = []
        self.measured = []

    def ask(self, request):
        done = step(self.state, request)
        for change in done.journal:
            match change:
                case Put(k, variable):
                    self.store.pop(k, None)
                    self.store[k] = variable
                case Append(k, added, variable):
                    assert self.store[k].data + added == variable.data
                    self.store[k] = variable
                case Delete(k):
                    del self.store[k]
        if done.journal:
            self.journals.append(done.journal)
        self.measured += [(m.key.name, m.data) for m in done.measurements]
        self.state = done.state
        if done.refusal is not None:
            raise done.refusal
        return done.reply

    def set(self, name, data=b"x", attributes=NBR, guid=A):
        return self.ask(SetVariable(key(name, guid), attributes, data))

    def get(self, name, guid=A, capacity=1 << 20):
        return self.ask(GetVariable(key(name, guid), capacity))

    def has(self, name, guid=A):
        return self.state.table.find(key(name, guid)) is not None

    def value(self, name, guid=A):
        return self.get(name, guid).data

    def query(self, attributes):
        return self.ask(QueryVariableInfo(attributes))

    def names(self):
        out, at = [], Key(UUID(int=0), "")
        while True:
            try:
                at = self.ask(GetNextVariableName(at, 1 << 16))
            except NotFound:
                return out
            out.append(at)

    def end_of_dxe(self):
        self.ask(EndOfDxe())
        return self

    def ready_to_boot(self):
        self.ask(ReadyToBoot())
        return self

    def runtime(self):
        self.ask(ExitBootServices())
        return self

    def reset(self):
        self.state = reset(self.state)
        return self

    def power_cycle(self):
        assert stored(self.state) == self.store
        self.state = initial_state(self.store, profile=self.profile, limits=self.limits)
        return self

    def to(self, phase):
        for name in ("end_of_dxe", "ready_to_boot", "runtime")[:phase]:
            getattr(self, name)()
        return self


@contextmanager
def refused(status, guest=None):
    """The block is refused with exactly this status, and nothing changes (R13)."""
    before = guest.state if guest is not None else None
    stored_before = dict(guest.store) if guest is not None else None
    with pytest.raises(VariableError) as caught:
        yield caught
    assert caught.value.status is EfiStatus[status], f"{caught.value.status.name}: {caught.value}"
    if guest is not None:
        assert guest.state is before, "a refusal changed the state"
        assert guest.store == stored_before
