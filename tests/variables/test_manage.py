"""The trusted side's edits of a store (R122, R123, R89)."""

from dataclasses import replace
from uuid import UUID

import pytest

from cvars.variables import SPEC, Limits
from cvars.variables.manage import ManagementRefused, check, edit, written
from cvars.variables.model import Delete, Key, Put, Variable
from cvars.variables.names import CUSTOM, DB, DBX, ENABLE, KEK, MOR_LOCK, PK, SETUP_MODE, VENDOR_KEYS_STORED
from cvars.variables.placeholder import placeholder
from cvars.variables.security import GLOBAL, PRIVATE
from tests.variables.kit import AT, BS, ENH, HR, NBR, NV, RT, key
from tests.variables.pki import AUTH, SHA256, UNKNOWN, esl, signer, time

V = key("V")
HASH = esl(bytes(32), kind=SHA256)


def managed(variables, edits, **options):
    return edit(variables, edits, profile=SPEC, limits=options.pop("limits", Limits()), **options)


def test_R122_edits_are_one_journal():
    done = managed({V: Variable(NBR, b"x")}, {V: None, key("W"): Variable(NBR, b"y")})
    assert done.journal == (Delete(V), Put(key("W"), Variable(NBR, b"y")))
    assert done.variables == {key("W"): Variable(NBR, b"y")}
    assert done.bypassed == ()
    with pytest.raises(ManagementRefused):
        managed({}, {V: None})


def test_R122_a_running_guest_is_not_edited_behind():
    with pytest.raises(ManagementRefused, match="running"):
        managed({}, {V: Variable(NBR, b"x")}, guest_is_running=True)
    managed({}, {V: Variable(NBR, b"x")}, guest_is_running=True, allows_running_guest=True)


@pytest.mark.rule("R122", "R89")
def test_R122_R89_a_bypass_is_asked_for_and_named():
    database = Variable(AUTH, esl(signer(0).der), time(2024))
    private = Variable(AUTH, b"x", time(2024), bytes(32))
    for target, variable in ((PK, database), (KEK, database), (V, private)):
        with pytest.raises(ManagementRefused, match="authenticated"):
            managed({}, {target: variable})
        with pytest.raises(ManagementRefused):
            managed({target: variable}, {target: None})
        done = managed({}, {target: variable}, bypass_authentication=True)
        assert done.bypassed == (target,)
        assert (VENDOR_KEYS_STORED in done.variables) == (target != V)
    again = managed(dict(done.variables), {V: replace(private, data=b"y")}, bypass_authentication=True)
    assert len(again.journal) == 1
    first = managed({}, {PK: database}, bypass_authentication=True)
    second = managed(dict(first.variables), {KEK: database}, bypass_authentication=True)
    assert [change.key for change in second.journal] == [KEK]


def test_R122_presence_variables_may_be_set():
    for target in (ENABLE, CUSTOM):
        assert managed({}, {target: Variable(NV | BS, b"\0")}).journal


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        (key(""), Variable(NBR, b"x")),
        (key("a\0b"), Variable(NBR, b"x")),
        (V, Variable(BS | RT, b"x")),
        (V, Variable(NV, b"x")),
        (V, Variable(NV | RT, b"x")),
        (V, Variable(NBR | 0x40, b"x")),
        (V, Variable(NBR | 0x10, b"x")),
        (V, Variable(NBR | 0x100, b"x")),
        (V, Variable(NBR | ENH, b"x", signer=bytes(32))),
        (V, Variable(NV | BS | HR, b"x")),
        (V, Variable(NBR | HR, b"x")),
        (V, Variable(NBR, b"")),
        (V, Variable(NBR, b"x", signer=bytes(32))),
        (V, Variable(NBR | AT, b"x")),
        (V, Variable(NBR, bytes(65536))),
        (SETUP_MODE, Variable(NBR, b"\0")),
        (MOR_LOCK, Variable(NBR, b"\0")),
        (VENDOR_KEYS_STORED, Variable(NV | BS, b"\1")),
        (Key(PRIVATE, "x"), Variable(NV | BS, b"\1")),
        (Key(GLOBAL, "Unknown"), Variable(NBR, b"x")),
        (Key(GLOBAL, "BootOrder"), Variable(NBR, b"x")),
        (DBX, Variable(AUTH, HASH[:-1])),
        (DBX, Variable(NBR, HASH)),
        (PK, Variable(AUTH, HASH + HASH)),
    ],
)
def test_R123_what_no_guest_could_write_is_refused(target, variable):
    with pytest.raises(ManagementRefused):
        managed({}, {target: variable}, bypass_authentication=True)
    kept = {key("Kept"): Variable(NBR, b"x")}
    with pytest.raises(ManagementRefused):
        managed(kept, {key("New"): Variable(NBR, b"x"), target: variable}, bypass_authentication=True)
    assert kept == {key("Kept"): Variable(NBR, b"x")}


def test_R122_quotas_hold():
    limits = Limits(nv_pool=500)
    with pytest.raises(ManagementRefused, match="room"):
        managed({}, {key(f"V{n}"): Variable(NBR, bytes(100)) for n in range(4)}, limits=limits)
    managed({}, {key(f"V{n}"): Variable(NBR, bytes(100)) for n in range(2)}, limits=limits)


@pytest.mark.rule("R123", "R81", "R59", "R73")
def test_R123_unknown_lists_come_in_with_a_warning():
    external = esl(b"\0", kind=UUID("452e8ced-dfff-4b8c-ae01-5118862e682c"))
    assert check(PK, Variable(AUTH, external), profile=SPEC, limits=Limits()) == []
    strange = Variable(AUTH, esl(b"strange", kind=UNKNOWN) + HASH)
    done = managed({}, {DBX: strange}, bypass_authentication=True)
    assert done.variables[DBX] == strange
    assert str(UNKNOWN) in done.warnings[0]


@pytest.mark.parametrize("words", ["DO NOT TRUST - AMI Test PK", "do not ship - test key"])
def test_P20_a_placeholder_key_is_trusted_nowhere_and_may_be_revoked(words):
    """As PKfail's were named; the control is the same certificate under another name."""
    for name, refused in ((words, True), ("Example PK", False)):
        value = esl(signer(0, name).der)
        for target in (PK, KEK, DB):
            variable = Variable(AUTH, value, time(2024))
            if refused:
                with pytest.raises(ManagementRefused, match="placeholder key"):
                    managed({}, {target: variable}, bypass_authentication=True)
            else:
                assert managed({}, {target: variable}, bypass_authentication=True).journal
        assert managed({}, {DBX: Variable(AUTH, value, time(2024))}, bypass_authentication=True).journal
        assert managed({}, {V: Variable(NBR, value)}).journal
        wide = value.replace(name.encode(), name.encode("utf-16-be"))
        assert bool(placeholder(PK, wide)) == refused


def test_P10_a_write_keeps_the_time_and_a_pin_only_under_the_same_attributes():
    old = Variable(NBR | AT, b"a", time(2020), b"p" * 32)
    assert written(None, NBR, b"x", append=False) == Variable(NBR, b"x")
    assert written(old, NBR | AT, b"x", append=False) == replace(old, data=b"x")
    assert written(old, NBR | AT, b"x", append=True) == replace(old, data=b"ax")
    assert written(old, NBR, b"x", append=False) == Variable(NBR, b"x", time(2020), None)
