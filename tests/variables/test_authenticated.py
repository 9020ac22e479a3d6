"""Time-based authenticated variables: descriptors, signers, pins (R47, R52, R53, R57..R81)."""

import hashlib
import itertools
from uuid import UUID

import pytest

from cvars.errors import VariableError
from cvars.variables import PROFILES, Limits
from cvars.variables.model import Append, Delete, Key, Put, Variable
from cvars.variables.names import (
    CERT_DB,
    CUSTOM,
    DB,
    DBR,
    DBT,
    DBX,
    ENABLE,
    KEK,
    KEY_STORES,
    PK,
    SECURE_BOOT,
    SETUP_MODE,
    VENDOR_KEYS,
)
from cvars.variables.pins import encode_pin
from cvars.variables.profile import PinKind
from cvars.variables.security import GLOBAL
from tests.variables.kit import APPEND, AT, BS, NBR, NV, RT, A, Guest, key, refused
from tests.variables.pki import (
    AUTH,
    RSA2048,
    SHA256,
    SHA384,
    UNKNOWN,
    auth,
    descriptor,
    esl,
    signer,
    time,
)

PRIVATE = key("Private")
PK_OWNER = signer(0, "PK")
KEK_OWNER = signer(1, "KEK")
DB_OWNER = signer(2, "DB")
STRANGER = signer(3, "Stranger")


def user_mode(**options):
    """PK, KEK and db enrolled as firmware does it."""
    guest = Guest(**options)
    when = time(2020)
    guest.set(DB, auth(None, DB, esl(DB_OWNER.der), when=when), AUTH)
    guest.set(KEK, auth(None, KEK, esl(KEK_OWNER.der), when=when), AUTH)
    guest.set(DBX, auth(None, DBX, esl(bytes(32), kind=SHA256), when=when), AUTH)
    guest.set(PK, auth(PK_OWNER, PK, esl(PK_OWNER.der), when=when), AUTH)
    return guest


def write(guest, who, target, payload, attributes=AUTH, *, when=None, **options):
    guest.set(target, auth(who, target, payload, attributes, when or time(2024), **options), attributes)


HASHES = [esl(bytes([n]) * 32, kind=SHA256) for n in range(8)]


# --- descriptor ------------------------------------------------------------------------------------


def test_R62_R63_wrong_types_are_refused():
    guest = Guest()
    guest.set(DB, auth(None, DB, HASHES[0]), AUTH)  # setup mode: format is all that counts
    for option in (
        {"kind": 0x0EF0},
        {"kind": 0x0002},
        {"revision": 0x0100},
        {"cert_type": UUID("a7717414-c616-4977-9420-844712a735bf").bytes_le},
    ):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(DB, descriptor(b"", time(2025), **option) + HASHES[1], AUTH)
    with_junk = descriptor(b"junk", time(2025)) + HASHES[1]
    guest.set(DB, with_junk, AUTH)  # CertData is dwLength - 24 bytes; the payload starts at 16 + dwLength
    assert guest.value(DB) == HASHES[1]


def test_R64_time_stamps_have_no_extras_and_exist():
    guest = Guest()
    for at in range(9):
        tail = bytes(at) + b"\1" + bytes(8 - at)
        with refused("SECURITY_VIOLATION", guest):
            guest.set(DB, auth(None, DB, HASHES[0], when=time(2024, tail=tail)), AUTH)
    for bad in ((1899,), (10000,), (2024, 0), (2024, 13), (2023, 2, 29), (2024, 1, 0), (2024, 4, 31)):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(DB, auth(None, DB, HASHES[0], when=time(*bad)), AUTH)
    for bad in ((2024, 1, 1, 24), (2024, 1, 1, 0, 60), (2024, 1, 1, 0, 0, 60)):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(DB, auth(None, DB, HASHES[0], when=time(*bad)), AUTH)
    guest.set(DB, auth(None, DB, HASHES[0], when=time(2024, 2, 29, 23, 59, 59)), AUTH)
    any_date = Guest(checks_calendar=False)
    any_date.set(DB, auth(None, DB, HASHES[0], when=time(2024, 13, 99)), AUTH)


@pytest.mark.rule("R65", "P11")
def test_R65_P11_time_stamps_advance_strictly():
    fields = [2024, 6, 15, 12, 30, 30]
    for at, (mode, target) in itertools.product(range(6), (("setup", DB), ("user", DB), ("private", PRIVATE))):
        guest = user_mode() if mode == "user" else Guest()
        who = KEK_OWNER if mode == "user" else STRANGER if mode == "private" else None
        write(guest, who, target, HASHES[0], when=time(*fields))
        for delta in (0, -1):
            earlier = fields.copy()
            earlier[at] += delta
            with refused("SECURITY_VIOLATION", guest):
                write(guest, who, target, HASHES[1], when=time(*earlier))
        later = fields.copy()
        later[at] += 1
        write(guest, who, target, HASHES[1], when=time(*later))
    lax = Guest(checks_time_in_setup_mode=False)
    write(lax, None, DB, HASHES[0], when=time(2024))
    write(lax, None, DB, HASHES[1], when=time(2020))
    write(lax, STRANGER, PRIVATE, b"1", when=time(2024))
    with refused("SECURITY_VIOLATION", lax):
        write(lax, STRANGER, PRIVATE, b"2", when=time(2020))


@pytest.mark.rule("R61", "P10")
def test_R61_P10_an_append_never_takes_time_back():
    for target, who in ((DBX, KEK_OWNER), (PRIVATE, STRANGER)):
        guest = user_mode() if target is DBX else Guest()
        write(guest, who, target, HASHES[1], when=time(2026))
        write(guest, who, target, HASHES[2], AUTH | APPEND, when=time(2025))
        assert guest.get(target).timestamp == time(2026)
        with refused("SECURITY_VIOLATION", guest):
            write(guest, who, target, HASHES[3], when=time(2024))
        write(guest, who, target, HASHES[4], AUTH | APPEND, when=time(2028))
        assert guest.get(target).timestamp == time(2028)
    fresh = Guest()
    write(fresh, STRANGER, PRIVATE, b"x", AUTH | APPEND, when=time(2016))
    with refused("SECURITY_VIOLATION", fresh):
        write(fresh, STRANGER, PRIVATE, b"y", when=time(2014))


# --- what is signed --------------------------------------------------------------------------------


@pytest.mark.rule("R68", "P13")
def test_R68_P13_every_part_is_signed():
    guest = user_mode()
    payload, when = HASHES[1], time(2024)
    good = auth(KEK_OWNER, DB, payload, AUTH, when)
    other_namespace = auth(KEK_OWNER, Key(A, "db"), payload, AUTH, when)
    other_name = auth(KEK_OWNER, DBX, payload, AUTH, when)
    other_attributes = auth(KEK_OWNER, DB, payload, AUTH, when, signed_attributes=AUTH | APPEND)
    other_payload = good[: -len(payload)] + HASHES[2]
    other_time = time(2025) + good[16:]
    for bad in (other_namespace, other_name, other_attributes, other_payload, other_time):
        with refused("SECURITY_VIOLATION", guest):
            guest.set(DB, bad, AUTH)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(DB, good, AUTH | APPEND)  # the bit is part of what is signed
    guest.set(DB, good, AUTH)


# --- who may sign ----------------------------------------------------------------------------------


def test_R71_user_mode_signers():
    wanted = {
        PK: {PK_OWNER},
        KEK: {PK_OWNER},
        DB: {PK_OWNER, KEK_OWNER},
        DBX: {PK_OWNER, KEK_OWNER},
        DBT: {PK_OWNER, KEK_OWNER},
        DBR: {PK_OWNER, KEK_OWNER},
        Key(GLOBAL, "OsRecoveryOrder"): {PK_OWNER, KEK_OWNER},
        Key(GLOBAL, "OsRecovery0001"): {PK_OWNER, KEK_OWNER},
    }
    for target, accepted in wanted.items():
        payload = esl(signer(4, "new").der) if target in (PK, KEK, DB) else HASHES[1]
        for who in (None, PK_OWNER, KEK_OWNER, DB_OWNER, STRANGER):
            guest = user_mode()
            if who in accepted:
                write(guest, who, target, payload)
                assert guest.value(target) == payload
            else:
                with refused("SECURITY_VIOLATION", guest):
                    write(guest, who, target, payload)


@pytest.mark.rule("R71", "P16")
def test_R71_P16_a_certificate_issued_by_pk_is_not_pk():
    child = signer(4, "child", issuer=PK_OWNER, ca=False)
    for target in (PK, KEK, DB):
        guest = user_mode()
        with refused("SECURITY_VIOLATION", guest):
            write(guest, child, target, esl(signer(5).der), extra=[PK_OWNER])
    same_name = signer(4, "PK")
    guest = user_mode()
    with refused("SECURITY_VIOLATION", guest):
        write(guest, same_name, KEK, esl(signer(5).der))


def test_R71_chains_to_any_kek_entry():
    child = signer(4, "child", issuer=KEK_OWNER, ca=False)
    guest = user_mode()
    write(guest, child, DB, HASHES[1], when=time(2024))
    two = esl(signer(6, "first").der) + esl(signer(5, "second").der)
    write(guest, PK_OWNER, KEK, two, when=time(2024))
    write(guest, signer(5, "second"), DB, HASHES[2], when=time(2025))
    with refused("SECURITY_VIOLATION", guest):
        write(guest, KEK_OWNER, DB, HASHES[3], when=time(2026))
    pair = signer(5, "aa"), signer(6, "bb")
    assert len(pair[0].der) == len(pair[1].der)
    write(guest, PK_OWNER, KEK, esl(pair[0].der, pair[1].der), when=time(2025))
    write(guest, pair[1], DB, HASHES[2], when=time(2026))


def test_R71_pk_in_setup_mode_signs_itself():
    for who, payload, status in (
        (PK_OWNER, esl(PK_OWNER.der), None),
        (STRANGER, esl(PK_OWNER.der), "SECURITY_VIOLATION"),
        (None, esl(PK_OWNER.der), "SECURITY_VIOLATION"),
        (PK_OWNER, b"", "SECURITY_VIOLATION"),
        (PK_OWNER, HASHES[0], "SECURITY_VIOLATION"),
        (PK_OWNER, esl(b"not a certificate"), "SECURITY_VIOLATION"),
        (PK_OWNER, esl(PK_OWNER.der)[:40], "SECURITY_VIOLATION"),
        (PK_OWNER, esl(PK_OWNER.der)[:27], "SECURITY_VIOLATION"),
        (PK_OWNER, esl(PK_OWNER.der, header=b"1234"), "SECURITY_VIOLATION"),
        (PK_OWNER, esl(PK_OWNER.der, size=16), "SECURITY_VIOLATION"),
        (PK_OWNER, esl(PK_OWNER.der) + b"x", "INVALID_PARAMETER"),
        (PK_OWNER, esl(PK_OWNER.der) * 2, "INVALID_PARAMETER"),
    ):
        guest = Guest()
        if status is None:
            write(guest, who, PK, payload)
            continue
        with refused(status, guest):
            write(guest, who, PK, payload)
    lax = Guest(wants_self_signed_pk=False)
    write(lax, None, PK, esl(PK_OWNER.der))
    with refused("SECURITY_VIOLATION"):
        write(Guest(wants_self_signed_pk=False), None, PK, HASHES[0])


def test_R71_key_stores_are_nv_and_authenticated_in_every_phase():
    for phase, target in itertools.product(range(4), sorted(KEY_STORES)):
        guest = user_mode().to(phase)
        for data, attributes in ((b"x", NBR), (b"", NBR), (b"", 0), (b"x", 0), (b"", APPEND | BS)):
            if phase and attributes == NBR and data:
                continue  # section L decides first, with the same answer
            with refused("INVALID_PARAMETER", guest):
                guest.set(target, data, attributes)
        with refused("INVALID_PARAMETER", guest):
            guest.set(target, auth(KEK_OWNER, target, HASHES[0], BS | RT | AT), BS | RT | AT)
    partial = Guest()
    partial.set(DB, auth(None, DB, HASHES[0], NV | BS | AT), NV | BS | AT)  # R116 asks for RT only later
    with refused("INVALID_PARAMETER"):
        guest = Guest().end_of_dxe()
        guest.set(DB, auth(None, DB, HASHES[0], NV | BS | AT), NV | BS | AT)


@pytest.mark.rule("R71", "R72", "P18")
def test_R72_P18_setup_mode_relaxes_signers_only():
    for target in (KEK, DB, DBX, DBT, DBR):
        guest = Guest()
        payload = HASHES[0] if target != KEK else esl(KEK_OWNER.der)
        write(guest, None, target, payload)
        with refused("SECURITY_VIOLATION", guest):
            write(guest, None, target, payload)  # the same time
        with refused("SECURITY_VIOLATION", guest):
            guest.set(target, descriptor(b"", time(2025), kind=1) + payload, AUTH)
        with refused("INVALID_PARAMETER", guest):
            write(guest, None, target, payload + b"x", when=time(2025))
    guest = Guest()
    with refused("SECURITY_VIOLATION", guest):
        write(guest, None, PRIVATE, b"x")
    write(guest, STRANGER, PRIVATE, b"x")
    with refused("SECURITY_VIOLATION", guest):
        write(guest, DB_OWNER, PRIVATE, b"y", when=time(2025))
    guest.set(CUSTOM, b"\1", NV | BS)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, DB_OWNER, PRIVATE, b"y", when=time(2025))


def test_R71_custom_mode_accepts_key_changes_unsigned():
    for target in sorted(KEY_STORES):
        guest = user_mode()
        guest.set(CUSTOM, b"\1", NV | BS)
        payload = esl(signer(6).der)
        write(guest, None, target, payload)
        assert guest.value(target) == payload
        with refused("SECURITY_VIOLATION", guest):
            write(guest, None, target, payload)  # R72: time still counts
        assert guest.value(CUSTOM) == b"\1"


def test_R69_dates_do_not_matter_and_the_rsa_floor_does():
    guest = Guest()  # every certificate here expired in 2021
    write(guest, STRANGER, PRIVATE, b"x")
    small = signer(0, "small", bits=1024)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, small, key("Small"), b"x")
    write(Guest(rsa_floor=1024), small, key("Small"), b"x")
    with refused("SECURITY_VIOLATION"):
        write(Guest(rsa_floor=3072), STRANGER, PRIVATE, b"x")
    issued = signer(7, "leaf", issuer=small, ca=False)
    with refused("SECURITY_VIOLATION"):
        guest = user_mode()
        write(guest, PK_OWNER, KEK, esl(small.der), when=time(2021))
        write(guest, issued, DB, HASHES[1])


def test_R70_issuers_are_cas_and_anchors_may_be_anything():
    root = signer(4, "root")
    middle = signer(5, "middle", issuer=root)
    leaf = signer(6, "leaf", issuer=middle, ca=False)

    def accepts(anchor, who, extra):
        guest = user_mode()
        write(guest, PK_OWNER, KEK, esl(anchor.der), when=time(2021))
        try:
            write(guest, who, DB, HASHES[1], extra=extra)
        except VariableError:
            return False
        return True

    assert accepts(root, leaf, [middle])
    assert accepts(root, leaf, [STRANGER, root, middle])
    assert accepts(middle, leaf, [])  # a partial chain
    assert accepts(leaf, leaf, [])
    assert not accepts(root, leaf, [])  # the link is missing
    assert not accepts(STRANGER, leaf, [middle, root])
    no_ca = signer(5, "middle", issuer=root, ca=False)
    assert not accepts(root, signer(6, "leaf", issuer=no_ca, ca=False), [no_ca])
    without = signer(5, "middle", issuer=root, ca=None)
    assert not accepts(root, signer(6, "leaf", issuer=without, ca=False), [without])
    assert accepts(no_ca, signer(6, "leaf", issuer=no_ca, ca=False), [])  # an anchor need not be a CA
    forged = signer(5, "middle", issuer=signer(7, "root"))
    assert not accepts(root, signer(6, "leaf", issuer=forged, ca=False), [forged])


@pytest.mark.rule("R15", "P09")
def test_R15_P09_long_and_crowded_chains_are_given_up():
    import time as clock

    chain = [signer(0, "c0")]
    for depth in range(1, 12):
        chain.append(signer(depth % 4, f"c{depth}", issuer=chain[-1]))
    guest = user_mode()
    write(guest, PK_OWNER, KEK, esl(chain[0].der), when=time(2021))
    with refused("SECURITY_VIOLATION", guest):
        write(guest, chain[-1], DB, HASHES[1], extra=chain[1:-1])
    write(guest, chain[5], DB, HASHES[1], extra=chain[1:5])
    private = Guest()
    with refused("SECURITY_VIOLATION", private):
        write(private, chain[-1], PRIVATE, b"x", extra=chain[:-1])  # no end of the path within bounds
    write(private, chain[5], PRIVATE, b"x", extra=chain[:5])
    write(private, chain[5], PRIVATE, b"y", when=time(2025), extra=chain[:5])
    crowd = [signer(1, "c0", serial=5000 + n) for n in range(15)]
    leaf = signer(2, "leaf", issuer=signer(3, "c0"), ca=False)
    start = clock.process_time()
    with refused("SECURITY_VIOLATION", guest):
        write(guest, leaf, DB, HASHES[2], when=time(2025), extra=crowd)
    assert clock.process_time() - start < 0.1
    with refused("SECURITY_VIOLATION", guest):
        write(guest, KEK_OWNER, DB, HASHES[2], when=time(2025), extra=[*crowd, STRANGER])  # 17 certificates


@pytest.mark.rule("R15", "P09")
def test_R15_P09_payloads_full_of_certificates_are_bounded():
    import time as clock

    small = [signer(0, f"n{n}", bits=1024).der for n in range(65)]
    guest = Guest()
    write(guest, None, DB, b"".join(map(esl, small[:64])))
    with refused("INVALID_PARAMETER", guest):
        write(guest, None, DB, b"".join(map(esl, small)), when=time(2025))
    write(guest, None, KEK, b"".join(map(esl, small[:64])))
    more = [signer(0, f"m{n}", bits=1024).der for n in range(50)]
    write(guest, None, KEK, b"".join(map(esl, more)), AUTH | APPEND)
    write(guest, PK_OWNER, PK, esl(PK_OWNER.der))
    begin = clock.process_time()
    with refused("SECURITY_VIOLATION", guest):
        write(guest, STRANGER, DB, HASHES[0], when=time(2030))
    assert clock.process_time() - begin < 0.05  # making the signature included


# --- private variables -----------------------------------------------------------------------------


def test_R74_the_pin_is_the_signer_s_name_and_the_top_of_its_path():
    root = signer(4, "root")
    leaf = signer(6, "leaf", issuer=root, ca=False)
    guest = Guest()
    write(guest, leaf, PRIVATE, b"x", extra=[STRANGER, root])
    assert guest.get(PRIVATE).signer == hashlib.sha256(b"leaf" + root.certificate.tbs_certificate_bytes).digest()
    assert guest.store[PRIVATE].signer == guest.get(PRIVATE).signer
    lone = Guest()
    write(lone, leaf, PRIVATE, b"x")
    assert lone.get(PRIVATE).signer == hashlib.sha256(b"leaf" + leaf.certificate.tbs_certificate_bytes).digest()
    other = Guest(pin_kind=PinKind.SIGNER)
    write(other, leaf, PRIVATE, b"x", extra=[root])
    tbs = leaf.certificate.tbs_certificate_bytes
    assert other.get(PRIVATE).signer == encode_pin(
        PinKind.SIGNER, "sha256", hashlib.sha256(b"leaf" + tbs).digest()
    )


def test_R75_only_the_owner_writes_again():
    guest = Guest()
    write(guest, STRANGER, PRIVATE, b"x")
    for who in (DB_OWNER, signer(2, "Stranger"), signer(3, "Other")):
        with refused("SECURITY_VIOLATION", guest):
            write(guest, who, PRIVATE, b"y", when=time(2025))
        with refused("SECURITY_VIOLATION", guest):
            write(guest, who, PRIVATE, b"y", AUTH | APPEND, when=time(2025))
        with refused("SECURITY_VIOLATION", guest):
            write(guest, who, PRIVATE, b"", when=time(2025))
    write(guest, STRANGER, PRIVATE, b"y", when=time(2025))
    write(guest, STRANGER, PRIVATE, b"z", AUTH | APPEND, when=time(2026))
    assert guest.value(PRIVATE) == b"yz"
    for names in ((), ("a", "b")):
        with refused("SECURITY_VIOLATION"):
            write(Guest(), signer(5, *(names or ("",))), PRIVATE, b"x")


def test_R75_another_digest_is_another_pin():
    from cryptography.hazmat.primitives import hashes

    for digest in (hashes.SHA384(), hashes.SHA512()):
        guest = Guest()
        write(guest, STRANGER, PRIVATE, b"x", digest=digest)
        with refused("SECURITY_VIOLATION", guest):
            write(guest, STRANGER, PRIVATE, b"y", when=time(2025))
        write(guest, STRANGER, PRIVATE, b"y", when=time(2025), digest=digest)


@pytest.mark.rule("R70", "R74", "R75", "P40")
def test_R74_P40_certificates_in_the_bag_decide_nothing():
    root = signer(4, "root")
    leaf = signer(6, "leaf", issuer=root, ca=False)
    pins = set()
    for bag in itertools.permutations([STRANGER, root, DB_OWNER]):
        guest = Guest()
        write(guest, leaf, PRIVATE, b"x", extra=bag)
        pins.add(guest.get(PRIVATE).signer)
    assert len(pins) == 1
    renewed = signer(7, "leaf", issuer=root, ca=False)
    write(guest, renewed, PRIVATE, b"y", when=time(2025), extra=[root])
    foreign = signer(7, "leaf", issuer=signer(5, "root"), ca=False)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, foreign, PRIVATE, b"z", when=time(2026), extra=[root, signer(5, "root")])
    with refused("SECURITY_VIOLATION", guest):
        write(guest, signer(7, "leaf"), PRIVATE, b"z", when=time(2026), extra=[root])
    pinned = Guest(pin_kind=PinKind.SIGNER)
    write(pinned, leaf, PRIVATE, b"x", extra=[root])
    with refused("SECURITY_VIOLATION", pinned):
        write(pinned, renewed, PRIVATE, b"y", when=time(2025), extra=[root])


@pytest.mark.rule("R75", "P40")
def test_R75_P40_pins_of_two_kinds_are_not_one():
    """A leaf that was pinned as itself does not let the certificates it issued in."""
    intermediate = signer(4, "same")
    child = signer(5, "same", issuer=intermediate, ca=False)
    guest = Guest(pin_kind=PinKind.SIGNER)
    root = signer(6, "root")
    issued = signer(4, "same", issuer=root)
    write(guest, issued, PRIVATE, b"x", extra=[root])
    with refused("SECURITY_VIOLATION", guest):
        write(guest, signer(5, "same", issuer=issued, ca=False), PRIVATE, b"y", when=time(2025), extra=[issued])
    assert {p.pin_kind for p in PROFILES.values()} == {PinKind.TOP, PinKind.SIGNER}
    imported = hashlib.sha256(b"same" + hashlib.sha256(child.der).digest()).digest()
    other = Guest({PRIVATE: Variable(AUTH, b"x", time(2020), imported)})
    write(other, child, PRIVATE, b"y")  # the kind that another service stores
    with refused("SECURITY_VIOLATION", other):
        write(other, STRANGER, PRIVATE, b"z", when=time(2025))
    kinds = {encode_pin(kind, alg, bytes(32)) for kind in PinKind for alg in ("sha256", "sha384")}
    assert len(kinds) == 5  # top and last differ in what they hash, not in how they are kept


@pytest.mark.rule("R76", "P17")
def test_R76_P17_delete_takes_the_pin_along():
    guest = Guest()
    write(guest, STRANGER, PRIVATE, b"x")
    write(guest, STRANGER, PRIVATE, b"", when=time(2025))
    assert not guest.has(PRIVATE)
    assert guest.journals[-1] == (Delete(PRIVATE),)
    write(guest, DB_OWNER, PRIVATE, b"mine", when=time(2020))
    assert isinstance(guest.journals[-1][0], Put)
    assert guest.journals[-1][0].variable.signer is not None  # value and pin are one change
    guest.power_cycle()
    with refused("SECURITY_VIOLATION", guest):
        write(guest, STRANGER, PRIVATE, b"x", when=time(2025))


def test_R77_certificate_databases_are_read_only():
    for phase, name in itertools.product(range(4), ("certdb", "certdbv")):
        guest = Guest().to(phase)
        for attributes in (NV | BS | RT, BS | RT, 0):
            with refused("WRITE_PROTECTED", guest):
                guest.set(name, b"x", attributes, CERT_DB)


def test_R78_every_failure_looks_the_same():
    guest = user_mode()
    good = auth(KEK_OWNER, DB, HASHES[1])
    for bad in (
        auth(None, DB, HASHES[1]),
        auth(STRANGER, DB, HASHES[1]),
        auth(KEK_OWNER, DB, HASHES[1], when=time(2019)),
        good[:-1] + b"\xff",
        good[:50] + b"\xff" + good[51:],
    ):
        with refused("SECURITY_VIOLATION", guest) as caught:
            guest.set(DB, bad, AUTH)
        assert caught.value.status == 0x800000000000001A


def test_R79_volatile_authenticated_variables():
    guest = Guest()
    attributes = BS | RT | AT
    write(guest, STRANGER, PRIVATE, b"x", attributes)
    assert guest.store == {}
    with refused("SECURITY_VIOLATION", guest):
        write(guest, DB_OWNER, PRIVATE, b"y", attributes, when=time(2025))
    guest.reset()
    assert not guest.has(PRIVATE)
    write(guest, DB_OWNER, PRIVATE, b"y", attributes)


@pytest.mark.rule("R52", "P12", "P39")
def test_R52_P12_P39_nothing_authenticated_disappears_without_proof():
    guest = user_mode()
    guest.set("Private", auth(STRANGER, PRIVATE, b"x"), AUTH)
    targets = (PK, KEK, DB, DBX, PRIVATE)
    for target, attributes in itertools.product(targets, (0, NV, APPEND, AUTH, AUTH | APPEND, NBR, BS, AT | NV)):
        for data in (b"", b"x", bytes(40), descriptor(), descriptor(when=time(2030))):
            before = guest.state
            try:
                guest.set(target, data, attributes)
            except VariableError:
                assert guest.state is before
            assert {t for t in targets if guest.has(t)} == set(targets)
    with refused("WRITE_PROTECTED", guest):
        guest.set(PRIVATE, b"", 0)
    for target in (PK, KEK, DB, DBX):
        with refused("INVALID_PARAMETER", guest):
            guest.set(target, b"", 0)
    for target in targets:
        with refused("SECURITY_VIOLATION", guest):
            guest.set(target, b"", AUTH)  # R40
        with refused("SECURITY_VIOLATION", guest):
            guest.set(target, descriptor(when=time(2030)), AUTH)  # a header, no signature


@pytest.mark.rule("R87", "P39")
def test_R87_P39_custom_mode_needs_a_time_before_end_of_dxe():
    guest = user_mode().end_of_dxe()
    with refused("SECURITY_VIOLATION", guest):
        guest.set(CUSTOM, b"\1", NV | BS)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, None, DB, HASHES[1])
    from cvars.variables.profile import CustomModeRule

    for phase in range(4):
        never = user_mode(custom_mode=CustomModeRule.NEVER).to(phase)
        for target in (CUSTOM, ENABLE):
            with refused("SECURITY_VIOLATION" if phase < 3 else "WRITE_PROTECTED", never):  # R45
                never.set(target, b"\1", NV | BS)


@pytest.mark.rule("R53", "P13")
def test_R53_P13_a_plain_write_never_replaces_an_authenticated_variable():
    guest = Guest()
    write(guest, STRANGER, PRIVATE, b"x")
    for attributes in (NBR, NV | BS, BS, NBR | APPEND, APPEND, 0):
        for data in (b"y", b""):
            with refused("WRITE_PROTECTED" if not attributes else "INVALID_PARAMETER", guest):
                guest.set(PRIVATE, data, attributes)


def test_R47_presence_and_authentication_come_after_the_attributes():
    guest = user_mode()
    with refused("INVALID_PARAMETER", guest):
        guest.set(CUSTOM, b"\1", NBR)  # R46
    with refused("INVALID_PARAMETER", guest):
        guest.set(DB, auth(STRANGER, DB, HASHES[1], NV | BS | AT), NV | BS | AT)
    guest.end_of_dxe()
    with refused("INVALID_PARAMETER", guest):
        guest.set(CUSTOM, b"\1\1", NV | BS)  # R43
    with refused("SECURITY_VIOLATION", guest):
        write(guest, STRANGER, Key(A, "Absent"), b"", attributes=AUTH, when=time(10000))  # before R49
    with refused("NOT_FOUND", guest):
        write(guest, STRANGER, Key(A, "Absent"), b"")


def test_R60_pk_is_never_appended_to():
    guest = user_mode()
    for who in (None, PK_OWNER):
        with refused("INVALID_PARAMETER", guest):
            write(guest, who, PK, esl(signer(5).der), AUTH | APPEND)
    with refused("INVALID_PARAMETER", guest):
        guest.set(PK, descriptor(kind=7), AUTH | APPEND)  # before any verification
    fresh = Guest()
    write(fresh, PK_OWNER, PK, esl(PK_OWNER.der), AUTH | APPEND)
    assert fresh.value(SETUP_MODE) == b"\0"


# --- signature databases ---------------------------------------------------------------------------


@pytest.mark.rule("R59", "P22")
def test_R59_P22_an_append_keeps_everything_and_adds_what_is_new():
    guest = user_mode()
    lists = [
        esl(bytes(48), kind=SHA384),
        esl(bytes(256), kind=RSA2048),
        esl(bytes(48), kind=UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")),
        esl(STRANGER.der),
        esl(bytes(32), kind=SHA256, owner=A),  # the same digest of another owner is another entry
    ]
    kept = guest.value(DBX)
    for number, one in enumerate(lists):
        write(guest, KEK_OWNER, DBX, one, AUTH | APPEND, when=time(2024, 1, number + 1))
        kept += one
        assert guest.value(DBX) == kept
        assert guest.journals[-1] == (Append(DBX, one, guest.get(DBX)),)
    for one in lists:
        write(guest, KEK_OWNER, DBX, one, AUTH | APPEND)
        assert guest.value(DBX) == kept  # dropping all is success
    mixed = esl(bytes(32), b"\1" * 32, b"\1" * 32, kind=SHA256)
    write(guest, KEK_OWNER, DBX, mixed, AUTH | APPEND, when=time(2025))
    assert guest.value(DBX) == kept + esl(b"\1" * 32, kind=SHA256)
    twice = Guest(keeps_one_duplicate=False)
    write(twice, None, DBX, HASHES[0], when=time(2020))
    write(twice, None, DBX, esl(b"\7" * 32, b"\7" * 32, kind=SHA256), AUTH | APPEND)
    assert twice.value(DBX) == HASHES[0] + esl(b"\7" * 32, b"\7" * 32, kind=SHA256)
    first = Guest()
    write(first, None, DBX, esl(b"\7" * 32, b"\7" * 32, kind=SHA256), AUTH | APPEND)
    assert first.value(DBX) == esl(b"\7" * 32, kind=SHA256)


@pytest.mark.rule("R59", "P22")
def test_R59_unknown_list_types_survive():
    strange = esl(b"strange", kind=UNKNOWN)
    stored = {DBX: Variable(AUTH, strange, time(2020))}
    guest = Guest(stored)
    write(guest, None, DBX, HASHES[1], AUTH | APPEND)
    assert guest.value(DBX) == strange + HASHES[1]


@pytest.mark.rule("P08", "P23")
def test_P08_P23_a_damaged_database_is_an_error_and_trusts_nobody():
    good = esl(KEK_OWNER.der)
    for damaged in (good[:-1], good + b"x", b"x", bytes(28), good[:16] + bytes(12) + good[28:]):
        stored = {
            PK: Variable(AUTH, esl(PK_OWNER.der), time(2020)),
            KEK: Variable(AUTH, damaged, time(2020)),
            DBX: Variable(AUTH, damaged, time(2020)),
        }
        guest = Guest(stored)
        assert guest.value(DBX) == damaged
        with refused("SECURITY_VIOLATION", guest):
            write(guest, KEK_OWNER, DB, HASHES[0])
        with refused("INVALID_PARAMETER", guest):
            write(guest, PK_OWNER, DBX, HASHES[0], AUTH | APPEND)
        write(guest, PK_OWNER, DBX, HASHES[0])
        guest.names()
    for broken in (b"", b"x", esl(b"no certificate"), HASHES[0]):
        guest = Guest({PK: Variable(AUTH, broken, time(2020))})
        for who in (PK_OWNER, None):
            with refused("SECURITY_VIOLATION", guest):
                write(guest, who, KEK, esl(KEK_OWNER.der))


LIST_FIELDS = [(16, "ListSize"), (20, "HeaderSize"), (24, "SignatureSize")]


@pytest.mark.rule("R73", "P21")
@pytest.mark.parametrize(("offset", "field"), LIST_FIELDS)
@pytest.mark.parametrize("target", [KEK, DB, DBX, DBT, DBR])
def test_R73_P21_each_field_at_its_bounds(offset, field, target):
    good = esl(bytes(32), b"\1" * 32, kind=SHA256)
    right = int.from_bytes(good[offset : offset + 4], "little")
    for value in {0, 1, 15, 16, 27, 28, abs(right - 1), right + 1, 1 << 31, (1 << 32) - 1} - {right}:
        guest = Guest()
        bad = good[:offset] + value.to_bytes(4, "little") + good[offset + 4 :]
        with refused("INVALID_PARAMETER", guest):
            write(guest, None, target, bad)
        with refused("INVALID_PARAMETER", guest):
            write(guest, None, target, HASHES[2] + bad)
    write(Guest(), None, target, good)


@pytest.mark.rule("R73", "P21")
def test_R73_P21_forms_that_are_refused():
    elliptic = signer(0, "ec", kind="ec")
    for bad in (
        esl(bytes(32), kind=SHA256, header=b"hdr!"),
        esl(bytes(31), kind=SHA256),
        esl(bytes(33), kind=SHA256),
        esl(bytes(255), kind=RSA2048),
        esl(b"x", kind=UNKNOWN),
        esl(kind=SHA256, size=48),
        esl(b"not a certificate"),
        esl(elliptic.der),
        HASHES[0] + bytes(27),
        HASHES[0][:-1],
    ):
        guest = Guest()
        with refused("INVALID_PARAMETER", guest):
            write(guest, None, DB, bad)
    for option, payload in (
        ({"refuses_empty_lists": False}, esl(kind=SHA256, size=48)),
        ({"wants_rsa_entries": False}, esl(elliptic.der)),
    ):
        write(Guest(**option), None, DB, payload)
    write(Guest(), None, DB, HASHES[0] + HASHES[1] + esl(STRANGER.der))
    with refused("INVALID_PARAMETER"):
        write(Guest(allows_many_lists=False), None, DB, HASHES[0] + HASHES[1])
    sizes = {20: "826ca512-cf10-4ac9-b187-be01496631bd", 28: "0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"}
    sizes |= {48: "ff3e5307-9fd0-48c9-85f1-8ad56c701e01", 64: "093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"}
    sizes |= {80: "446dbf63-2502-4cda-bcfa-2465d2b0fe9d", 256: "e2b36190-879b-4a3d-ad8d-f2e7bba32784"}
    for size, kind in sizes.items():
        write(Guest(), None, DB, esl(bytes(size), kind=UUID(kind)))


def test_R73_pk_holds_one_entry():
    guest = user_mode()
    pair = signer(5, "aa"), signer(6, "bb")
    for bad in (esl(pair[0].der, pair[1].der), esl(pair[0].der) + esl(pair[1].der)):
        with refused("INVALID_PARAMETER", guest):
            write(guest, PK_OWNER, PK, bad)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, STRANGER, PK, esl(pair[0].der, pair[1].der))  # verified first


def test_R81_external_management_never_authenticates():
    external = esl(b"\0", kind=UUID("452e8ced-dfff-4b8c-ae01-5118862e682c"))
    guest = Guest({PK: Variable(AUTH, external, time(2020))})
    assert guest.value(SETUP_MODE) == b"\0"
    for who, target in itertools.product((None, PK_OWNER, STRANGER), (PK, KEK, DB)):
        with refused("SECURITY_VIOLATION", guest):
            write(guest, who, target, esl(PK_OWNER.der))
    guest.set(CUSTOM, b"\1", NV | BS)
    write(guest, None, PK, external)


def test_R80_secrets_are_compared_in_constant_time():
    """Keys, digests and pins go through `hmac.compare_digest`: read from the source, no clock shows it."""
    import inspect

    from cvars.variables import authenticated, mor, pins, pkcs7

    for module, least in ((authenticated, 2), (pins, 1), (pkcs7, 1), (mor, 1)):
        assert inspect.getsource(module).count("hmac.compare_digest") >= least


# --- commits ---------------------------------------------------------------------------------------


@pytest.mark.rule("R86", "R14", "P19")
def test_R86_P19_modes_move_with_their_commit_or_not_at_all():
    guest = Guest(limits=Limits(nv_pool=400))
    with refused("OUT_OF_RESOURCES", guest):
        write(guest, PK_OWNER, PK, esl(PK_OWNER.der))
    assert guest.value(SETUP_MODE) == b"\1"
    room = Guest()
    write(room, PK_OWNER, PK, esl(PK_OWNER.der))
    assert [type(change) for change in room.journals[-1]] == [Put, Put]  # PK and SecureBootEnable at once
    need = room.state.table.usage.nv
    exact = Guest(limits=Limits(nv_pool=need))
    write(exact, PK_OWNER, PK, esl(PK_OWNER.der))
    short = Guest(limits=Limits(nv_pool=need - 4))  # PK fits, SecureBootEnable does not
    with refused("OUT_OF_RESOURCES", short):
        write(short, PK_OWNER, PK, esl(PK_OWNER.der))
    for name, value in ((SETUP_MODE, b"\1"), (SECURE_BOOT, b"\0"), (VENDOR_KEYS, b"\1")):
        assert short.value(name) == value
