"""The search finds what it is asked for, however it was hidden, and nothing else."""

import base64
import gzip
import zlib
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from cvars.audit.observer import changed_spans
from cvars.audit.search import needles, search
from cvars.variables.model import Key

GUID = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
KEY = Key(GUID, "BootOrder")
VALUE = bytes(range(100, 140))


def labels(blob):
    return {hit.needle.label for hit in search([("blob", blob)], needles({KEY: VALUE}))}


NAME, DATA = "name BootOrder", "value of BootOrder"


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_value_is_found_at_any_place_and_in_any_alignment(before, after):
    assert DATA in labels(before + VALUE + after)
    assert DATA in labels(base64.b64encode(before + VALUE + after))
    assert DATA in labels(base64.urlsafe_b64encode(before + VALUE + after))
    assert DATA in labels(b"x" + (before + VALUE + after).hex().encode())
    assert DATA in labels((before + VALUE + after).hex().upper().encode())
    assert DATA in labels(before + zlib.compress(before + VALUE + after))
    assert DATA in labels(before + gzip.compress(VALUE + after))


def test_a_name_is_found_in_both_encodings():
    assert labels(b"..." + "BootOrder".encode("utf-16-le")) == {NAME}
    assert labels(b"...BootOrder") == {NAME}


def test_short_things_say_nothing():
    wanted = needles({Key(GUID, "db"): b"1234567"})
    assert {needle.label for needle in wanted} == {"name db"}
    assert {needle.form.partition(",")[0] for needle in wanted} == {"UTF-16"}


@given(st.binary(max_size=4000))
def test_noise_is_no_hit(noise):
    assert labels(noise.replace(b"B", b"")) == set()


def test_changes_are_seen_as_spans():
    before = bytes(4096)
    after = bytearray(before)
    after[600] = after[1100] = after[4000] = 1
    assert changed_spans(before, bytes(after)) == [(512, 1024), (3584, 512)]
    assert changed_spans(before, before) == []
    assert changed_spans(before, before + b"\0") == [(4096, 512)]
