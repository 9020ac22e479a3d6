"""The vectors' format: a cut tail is restored, labels are split, anything else is refused."""

import pytest

from cvars.errors import BadInput
from cvars.formats.vectors import Label, read_scenarios

LINE = '{"scenario":"g/n","step":%d,"op":"call","request":"%s","reply":"%s","device_status":0%s}'


def test_lines_of_one_name_are_one_scenario():
    lines = [
        '{"scenario":"a","step":0,"op":"start","config":{"size":1}}',
        LINE.replace("g/n", "a") % (1, "00010203", "aa", ',"reply_tail":"request"'),
        "",
        '{"scenario":"b","step":0,"op":"start","config":{}}',
        '{"scenario":"b","step":1,"op":"device-setup","buffer_size":64}',
    ]
    first, second = read_scenarios(lines)
    assert first.name == "a"
    assert first.operations[1].reply.hex() == "aa010203"
    assert [o.op for o in second.operations] == ["start", "device-setup"]


def test_a_label_has_a_status_and_a_remark():
    label = Label("D31", "SUCCESS: 1")
    assert (label.status, label.remark) == ("SUCCESS", "1")
    assert Label("D23", "unchanged").remark == ""


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "[" * 50_000,
        '{"scenario":"a","step":"0","op":"start"}',
        '{"scenario":"a","step":0,"op":"other"}',
        '{"scenario":"a","step":0,"op":"start","config":3}',
        '{"scenario":"a","step":0,"op":"device-setup","buffer_size":"x"}',
        LINE % (1, "0", "", ""),
        LINE % (1, "00", "zz", ""),
        LINE % (1, "00", "00", ',"diverges":7'),
        LINE % (1, "00", "00", ',"diverges":{"id":"D1"}'),
        LINE.replace('"device_status":0', '"device_status":"0"') % (1, "00", "00", ""),
    ],
)
def test_other_lines_are_refused(line):
    with pytest.raises(BadInput):
        list(read_scenarios([line]))
