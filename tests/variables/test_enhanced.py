"""Enhanced authenticated variables (R25, R36; UEFI 2.10 8.2.5), an option."""

import hashlib
import struct

import pytest

from cvars.variables import enhanced
from cvars.variables.names import APPEND, BS, ENH, NV, RT
from tests.variables.kit import NBR, Guest, key, refused
from tests.variables.pki import PKCS7_TYPE, signed_data, signer, time

V = key("Enhanced")
ATTRIBUTES = NV | BS | RT | ENH
OWNER, OTHER = signer(0, "owner"), signer(1, "other")


def win(sd, *, length=None, revision=0x0200, kind=0x0EF1, cert_type=PKCS7_TYPE):
    return struct.pack("<IHH16s", 24 + len(sd) if length is None else length, revision, kind, cert_type) + sd


def data(who, payload=b"", attributes=ATTRIBUTES, *, when=None, nonce=None, to=None, new_by=None, **head):
    secondary = (when or time(2024)) if nonce is None else struct.pack("<I", len(nonce)) + nonce
    prefix = V.name_bytes + V.vendor_guid.bytes_le + struct.pack("<I", attributes) + secondary
    new = b"" if to is None else win(signed_data(prefix + payload, new_by or to, wrapped=False))
    signing = win(signed_data(prefix + new + payload, who, wrapped=False))
    body = secondary + new + signing
    values = {
        "version": 1,
        "type": 1 if nonce is None else 2,
        "size": 10 + len(body),
        "flags": int(to is not None),
    }
    values |= head
    return struct.pack("<BBII", *values.values()) + body + payload


def made(**options):
    guest = Guest(enhanced=True)
    guest.set(V, data(OWNER, b"value", **options), ATTRIBUTES)
    return guest


def identity(who):
    return hashlib.sha256(who.certificate.tbs_certificate_bytes).digest()


def test_the_declarations_have_the_specification_s_sizes():
    assert enhanced.EFI_VARIABLE_AUTHENTICATION_3.sizeof() == 10
    assert enhanced.EFI_VARIABLE_AUTHENTICATION_3_CERT_ID.sizeof() == 5


def test_R25_what_is_read_starts_with_the_certificate_identifier():
    guest = made()
    shown = struct.pack("<BI", 1, 32) + identity(OWNER) + b"value"
    assert guest.value(V) == shown
    assert guest.get(V).attributes == ATTRIBUTES
    with refused("BUFFER_TOO_SMALL", guest) as caught:
        guest.get(V, capacity=len(shown) - 1)
    assert caught.value.needed == len(shown)
    assert guest.store[V].data == b"value"
    assert guest.power_cycle().value(V) == shown


@pytest.mark.rule("R40", "R52", "R61", "R63", "R64", "R65", "R66", "R68", "R75", "R78")
def test_time_advances_and_only_the_authority_writes():
    guest = made()
    for who, when in ((OWNER, time(2024)), (OWNER, time(2023)), (OTHER, time(2025))):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(V, data(who, b"next", when=when), ATTRIBUTES)
    guest.set(V, data(OWNER, b"next", when=time(2025)), ATTRIBUTES)
    guest.set(V, data(OWNER, b"!", ATTRIBUTES | APPEND, when=time(2020)), ATTRIBUTES | APPEND)
    assert guest.store[V].data == b"next!"
    assert guest.store[V].timestamp == time(2025)
    for raw, attributes, status in (
        (b"", 0, "WRITE_PROTECTED"),
        (b"", ATTRIBUTES, "SECURITY_VIOLATION"),
        (data(OTHER, when=time(2026)), ATTRIBUTES, "SECURITY_VIOLATION"),
        (b"x", NBR, "INVALID_PARAMETER"),
    ):
        with refused(status, guest):
            guest.set(V, raw, attributes)
    guest.set(V, data(OWNER, when=time(2026)), ATTRIBUTES)
    assert not guest.has(V)
    guest.set(V, data(OTHER, b"mine"), ATTRIBUTES)


@pytest.mark.rule("R40", "R61", "R65", "R75")
def test_a_nonce_is_not_repeated_and_not_zero():
    guest = made(nonce=b"first")
    with refused("SECURITY_VIOLATION", guest):
        guest.set(V, data(OWNER, b"x", nonce=b"first"), ATTRIBUTES)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(V, data(OWNER, b"x", when=time(2025)), ATTRIBUTES)  # a time after a nonce
    with refused("UNSUPPORTED", guest):
        guest.set(V, data(OWNER, b"x", nonce=bytes(8)), ATTRIBUTES)
    guest.set(V, data(OWNER, b"x", nonce=b"second"), ATTRIBUTES)
    guest.set(V, data(OWNER, b"y", ATTRIBUTES | APPEND, nonce=b"third"), ATTRIBUTES | APPEND)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(V, data(OWNER, b"x", nonce=b"third"), ATTRIBUTES)
    with refused("SECURITY_VIOLATION"):
        made().set(V, data(OWNER, b"x", nonce=b"n"), ATTRIBUTES)


@pytest.mark.rule("R75", "R68")
def test_the_authority_is_handed_over_by_both():
    guest = made()
    for options in (
        {"who": OTHER, "to": OTHER},
        {"who": OWNER, "to": OTHER, "new_by": signer(2), "attributes": ATTRIBUTES | APPEND},
    ):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(V, data(payload=b"x", when=time(2025), **options), ATTRIBUTES)
    guest.set(V, data(OWNER, b"x", when=time(2025), to=OTHER), ATTRIBUTES)
    assert guest.value(V)[5:37] == identity(OTHER)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(V, data(OWNER, b"y", when=time(2026)), ATTRIBUTES)
    guest.set(V, data(OTHER, b"y", when=time(2026)), ATTRIBUTES)


GOOD = data(OWNER, b"value")


@pytest.mark.rule("R40", "R63", "R64", "R66", "R68", "R78")
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        GOOD[:9],
        GOOD[:20],
        data(OWNER, b"v", version=2),
        data(OWNER, b"v", version=0),
        data(OWNER, b"v", type=0),
        data(OWNER, b"v", type=3),
        data(OWNER, b"v", flags=2),
        data(OWNER, b"v", flags=1),
        data(OWNER, b"v", size=0),
        data(OWNER, b"v", size=9),
        data(OWNER, b"v", size=20),
        data(OWNER, b"v", size=1 << 31),
        data(OWNER, b"v", size=len(data(OWNER, b"v"))),
        data(OWNER, b"v", when=time(2024, tail=b"\1" + bytes(8))),
        data(OWNER, b"v", nonce=b"n", size=12),
        data(OWNER, b"v", nonce=b""),
        data(OWNER, b"v", nonce=b"n" * 1025),
        data(OWNER, b"v")[:-1] + b"w",
        GOOD[:26] + win(b"", revision=1),
        struct.pack("<BBII", 1, 1, 26 + 24, 0) + time(2024) + win(b"", kind=1),
        struct.pack("<BBII", 1, 1, 26 + 24, 0) + time(2024) + win(b"", cert_type=bytes(16)),
        struct.pack("<BBII", 1, 1, 26 + 24, 0) + time(2024) + win(b"", length=23),
        struct.pack("<BBII", 1, 1, 26 + 24, 0) + time(2024) + win(b"", length=25),
        struct.pack("<BBII", 1, 1, 26 + 23, 0) + time(2024) + win(b"")[:23],
        struct.pack("<BBII", 1, 1, 26, 0) + time(2024),
    ],
)
def test_malformed_descriptors_are_refused(bad):
    guest = Guest(enhanced=True)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(V, bad, ATTRIBUTES)


def test_volatile_ones_are_allowed():
    guest = Guest(enhanced=True)
    attributes = BS | RT | ENH
    guest.set(V, data(OWNER, b"v", attributes), attributes)
    assert guest.store == {}
    assert not guest.reset().has(V)
