"""The search finds what it is asked for, however it was hidden, and nothing else."""

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
import zlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvars.audit.observer import changed_spans
from cvars.audit.search import DEPTH, OPENED_LIMIT, needles, search
from cvars.errors import BadInput
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


def broken(text, width=20, by=b"\n"):
    """``text`` in lines."""
    return by.join(text[n : n + width] for n in range(0, len(text), width))


def zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vars.bin", data)
    return out.getvalue()


def narrow(data):
    """zlib with the smallest window."""
    packer = zlib.compressobj(wbits=9)
    return packer.compress(data) + packer.flush()


WRAPPINGS = {
    "hex in lines": lambda data: broken(data.hex().encode()),
    "hex with colons": lambda data: data.hex(":").upper().encode(),
    "a C array": lambda data: b", ".join(b"0x%02x" % byte for byte in data),
    "escapes": lambda data: b"".join(b"\\x%02x" % byte for byte in data),
    "MIME": base64.encodebytes,
    "JSON with line breaks": lambda data: json.dumps(base64.encodebytes(data).decode()).encode(),
    "gzip in base64 in lines": lambda data: base64.encodebytes(gzip.compress(data)),
    "zlib in hex": lambda data: zlib.compress(data).hex().encode(),
    "base64 twice": lambda data: base64.b64encode(base64.encodebytes(data)),
    "gzip in zlib in gzip": lambda data: gzip.compress(zlib.compress(gzip.compress(data))),
    "hex in gzip": lambda data: gzip.compress(broken(data.hex().encode())),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zip in xz": lambda data: lzma.compress(zipped(data)),
    "zlib, small window": narrow,
    "gzip, cut short": lambda data: gzip.compress(data + bytes(4000) + random.Random(1).randbytes(4000))[:-2000],
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrapped_plaintext_is_found_and_wrapped_noise_is_not(wrap, rng):
    """The control: the same wrapping around a value of which one bit is another."""
    text = b"before " + VALUE + b" after"
    assert labels(rng.randbytes(99) + wrap(text) + rng.randbytes(99)) == {DATA}
    other = bytearray(text)
    other[len(text) // 2] ^= 1
    assert labels(rng.randbytes(99) + wrap(bytes(other)) + rng.randbytes(99)) == set()


def test_breaks_are_ignored_in_encodings_only():
    assert labels(b"Boot Order, Boot\nOrder") == set()
    assert labels(broken(VALUE, 8)) == set()


def test_nesting_is_opened_to_its_depth_and_not_deeper():
    text = VALUE
    for level in range(DEPTH + 1):
        assert labels(text) == {DATA}, level
        text = gzip.compress(text + bytes(3000))  # else it would be stored, in the clear
    assert labels(text) == set()


@pytest.mark.parametrize("nested", [False, True])
def test_a_bomb_is_an_error_and_never_nothing_found(nested):
    bomb = zlib.compress(bytes(OPENED_LIMIT + 1))
    bomb = gzip.compress(bomb) if nested else bomb
    with pytest.raises(BadInput, match="unfolds to more than") as caught:
        labels(b"x" + bomb)
    assert caught.value.where == "blob"
    assert labels(zlib.compress(bytes(OPENED_LIMIT // 8)) + VALUE) == {DATA}


def test_many_small_bombs_share_one_budget():
    part = zlib.compress(bytes(OPENED_LIMIT // 16))
    with pytest.raises(BadInput):
        labels(part * 17)


def test_changes_are_seen_as_spans():
    before = bytes(4096)
    after = bytearray(before)
    after[600] = after[1100] = after[4000] = 1
    assert changed_spans(before, bytes(after)) == [(512, 1024), (3584, 512)]
    assert changed_spans(before, before) == []
    assert changed_spans(before, before + b"\0") == [(4096, 512)]
