"""The JSON store: identity where the format can hold it, a reported loss where it cannot, refusal else."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvars.errors import BadInput
from cvars.formats import qemu_json
from cvars.variables.model import Key, Variable
from cvars.variables.security import PRIVATE

GOOD = {"name": "n", "guid": "aaaaaaaa-0001-4000-8000-00000000000a", "attr": 7, "data": "00"}
A = UUID("aaaaaaaa-0001-4000-8000-00000000000a")
NAMES = (
    st.binary(min_size=2, max_size=20)
    .filter(lambda b: len(b) % 2 == 0)
    .map(lambda b: b.decode("utf-16-le", "surrogatepass").replace("\0", "x"))
)


def test_the_recorded_sample_reads_and_writes_the_same(vectors):
    text = (vectors / "mm" / "sample-store.json").read_text()
    store = qemu_json.read(text)
    assert store.losses == ()
    assert store.variables[Key(A, "Hello")] == Variable(7, b"world")
    written, losses = qemu_json.write(store.variables)
    assert losses == ()
    want = sorted(json.loads(text)["variables"], key=lambda v: v["name"])
    assert sorted(json.loads(written)["variables"], key=lambda v: v["name"]) == want


@pytest.mark.rule("R9", "P33")
@given(NAMES, st.binary(max_size=40), st.sampled_from([0x3, 0x7, 0x27]))
def test_R9_any_name_survives(name, data, attributes):
    is_at = bool(attributes & 0x20)
    variable = Variable(attributes, data, bytes(range(16)) if is_at else bytes(16), bytes(32) if is_at else None)
    text, losses = qemu_json.write({Key(A, name): variable})
    assert text.isascii()
    assert losses == ()
    assert qemu_json.read(text).variables == {Key(A, name): variable}


def test_losses_are_reported():
    text, losses = qemu_json.write({Key(A, "v"): Variable(6, b""), Key(PRIVATE, "p"): Variable(3, b"")})
    assert json.loads(text)["variables"] == []
    assert len(losses) == 2
    volatile = json.dumps({"version": 2, "variables": [GOOD | {"name": "v", "attr": 6}]})
    assert qemu_json.read(volatile).losses == ("'v' is volatile: left out",)


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff",
        "[" * 100_000,
        "[]",
        "{}",
        '{"version": 3, "variables": []}',
        *(
            json.dumps({"version": 2, "variables": variables})
            for variables in (
                [1],
                [GOOD, GOOD],
                [GOOD | {"extra": 1}],
                [GOOD | {"name": ""}],
                [GOOD | {"name": "a\0b"}],
                [GOOD | {"name": 3}],
                [GOOD | {"guid": "x"}],
                [GOOD | {"guid": None}],
                [GOOD | {"attr": "7"}],
                [GOOD | {"attr": True}],
                [GOOD | {"attr": 256}],
                [GOOD | {"data": "0"}],
                [GOOD | {"data": 5}],
                [GOOD | {"time": "00"}],
                [GOOD | {"digest": "00"}],
            )
        ),
    ],
)
def test_other_input_is_refused(bad):
    with pytest.raises(BadInput):
        qemu_json.read(bad)
