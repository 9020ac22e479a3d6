"""The firmware's side of the protocol and the scenarios, on a service that stores nothing."""

import pytest

from cvars.errors import BadInput, UsageMistake
from cvars.formats.meaning import meaning
from cvars.formats.names import attribute_words, parse_attributes, parse_name
from cvars.lab.driver import AT, BS, NV, RT, StatusError, VariableDriver
from cvars.lab.lab import volatile_exchange
from cvars.lab.scenario import bundled, play, read_scenario, write_scenario
from cvars.variables.security import GLOBAL


@pytest.fixture
def firmware():
    exchange, _ = volatile_exchange()
    return VariableDriver(exchange)


def test_a_value_larger_than_the_first_room_is_read(firmware):
    key = parse_name("Big-aaaaaaaa-0001-4000-8000-00000000000a")
    firmware.set(key, NV | BS | RT, bytes(9000))
    assert firmware.get(key) == (NV | BS | RT, bytes(9000))
    assert key in list(firmware.walk())
    firmware.delete(key)
    with pytest.raises(StatusError, match="NOT_FOUND"):
        firmware.get(key)


def test_query_is_truthful_about_room(firmware):
    before = firmware.query(NV | BS | RT)
    firmware.set(parse_name("BootOrder"), NV | BS | RT, b"\1\0")
    assert firmware.query(NV | BS | RT).remaining < before.remaining


@pytest.mark.parametrize("name", ["demo-first-boot", "demo-other-guest"])
def test_bundled_scenarios_play_as_recorded(name):
    exchange, reset = volatile_exchange()
    steps = read_scenario(bundled(name), name)
    assert all(played.as_recorded for played in play(steps, exchange, reset))
    assert read_scenario(write_scenario(steps), name) == steps


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"scenario": "x"}', '{"scenario":"x","step":1,"op":"call","request":"0"}']
)
def test_a_bad_scenario_is_an_input_error(text):
    with pytest.raises(BadInput):
        read_scenario(text, "x")


def test_names_as_people_paste_them():
    guid = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
    assert parse_name("BootOrder") == parse_name(f"BootOrder-{guid}") == parse_name(f"{guid}-BootOrder")
    assert parse_name("dbx").vendor_guid != GLOBAL
    with pytest.raises(UsageMistake):
        parse_name("Mine")
    assert parse_attributes("nv, bs,RT,AT") == NV | BS | RT | AT == parse_attributes("0x27")
    assert attribute_words(0x27) == "NV BS RT AT"
    with pytest.raises(UsageMistake):
        parse_attributes("NVX")


def test_meanings():
    steps = read_scenario(bundled("demo-read-back"), "x")
    exchange, reset = volatile_exchange()
    list(play(read_scenario(bundled("demo-first-boot"), "x"), exchange, reset))
    reset()
    firmware = VariableDriver(exchange)
    said = {key.name: meaning(key, firmware.get(key)[1]) for key in firmware.walk()}
    assert said["BootOrder"] == "0001"
    assert said["Boot0001"] == '"Linux"'
    assert said["PK"] == "1 X.509: CN=cvars demo PK"
    assert said["SecureBoot"] == "on"
    assert steps
    for data in (b"", b"\1", b"\xff" * 40, bytes(28), bytes(7)):
        for name in ("PK", "Boot0001", "BootOrder"):
            assert isinstance(meaning(parse_name(name), data), str)
