"""The layouts of section 6: sizes, and the two ways to decode them agree (D7)."""

import pytest
from construct import Container
from hypothesis import given
from hypothesis import strategies as st

from svsm_bridge.transports import wire

SIZES = {
    "header": 16, "hello": 0x40, "hello_reply": 0x40, "mem_add": 0x20, "mem_del": 0x10, "vcpu_add": 0x18,
    "call": 0xA8, "call_reply": 0xA8, "page_state": 0x20, "page_query": 8, "page_query_reply": 16, "reset": 8,
    "tdvmcall": 0x88, "switch": 8, "trace_record": 0x18, "error": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(wire.PAIRS))
def test_sizes_are_those_of_the_specification(name):
    declared, fast = wire.PAIRS[name]
    assert declared.sizeof() == fast.size == SIZES[name]


@given(name=st.sampled_from(sorted(wire.PAIRS)), data=st.data())
def test_declaration_and_struct_agree(name, data):
    declared, fast = wire.PAIRS[name]
    raw = data.draw(st.binary(min_size=fast.size, max_size=fast.size))
    parsed = declared.parse(raw)
    flat = []
    for key in (sub.name for sub in declared.subcons):
        value = parsed[key]
        flat += list(value) if isinstance(value, list) else [value]
    assert tuple(flat) == fast.unpack(raw)
    assert declared.build(Container(parsed)) == raw
