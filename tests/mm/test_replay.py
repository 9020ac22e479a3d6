"""`cvars replay` and `cvars profile`: vectors, captures, and every way out."""

import io
import json
import struct

import pytest

from cvars.cli import main as cli
from cvars.cli.output import SPEECH
from cvars.formats.pcap import CaptureWriter, PacketType, read_capture
from cvars.mm.service import VariableService
from cvars.variables.names import EVENT_END_OF_DXE, EVENT_EXIT_BOOT_SERVICES
from tests.mm.kit import POLICY, VARIABLE, access, entry, following, get, message, policy, put
from tests.variables.kit import A


@pytest.fixture
def cvars(capsys, monkeypatch):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["cvars", *map(str, words)])
        SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False
        with pytest.raises(SystemExit) as ended:
            cli.run()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    yield run
    SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False


def of(guid, body):
    return guid.bytes_le + struct.pack("<Q", len(body)) + body


REQUESTS = [
    (VARIABLE, message(11, bytes(8))),
    (VARIABLE, put(A, "V", 7, b"value")),
    (VARIABLE, get(A, "V", 0)),
    (VARIABLE, get(A, "V", 64)),
    (VARIABLE, get(A, "SignatureSupport", 64)),
    (VARIABLE, message(4, bytes(24) + struct.pack("<I", 7) + bytes(4))),
    (VARIABLE, following(A, "", 256)),
    (VARIABLE, following(A, "V", 256)),
    (VARIABLE, message(7, bytes(64))),
    (VARIABLE, access(3, A, "V", 7, b"x", data_size=1 << 40)),
    (POLICY, policy(3, entry(A, "L", lock=1))),
    (POLICY, policy(2, b"\0")),
    (EVENT_END_OF_DXE, b"\0"),
    (VARIABLE, put(A, "L", 7, b"locked")),
    (EVENT_EXIT_BOOT_SERVICES, b"\0"),
    (VARIABLE, get(A, "V", 64)),
]


def recorded(requests=REQUESTS):
    """A capture as our own component writes it."""
    out = io.BytesIO()
    writer = CaptureWriter(out, lambda: 1.0)
    service = VariableService({}, commit=lambda _j: None)
    writer.reset()
    for guid, body in requests:
        writer.request(of(guid, body))
        reply = service.handle(guid, body)
        writer.reply(of(guid, reply + body[len(reply) :]))
    return out.getvalue()


def test_a_capture_of_our_own_replays_completely(cvars, tmp_path):
    file = tmp_path / "own.pcap"
    file.write_bytes(recorded())
    code, out, _ = cvars("replay", file)
    assert code == 0
    assert out == f"{len(REQUESTS)} requests, {len(REQUESTS)} replies equal\n"
    code, out, _ = cvars("replay", "--json", file)
    assert json.loads(out) == {
        "schema": "cvars.replay/1",
        "simulated": False,
        "compared": len(REQUESTS),
        "equal": len(REQUESTS),
        "skipped": 0,
        "verdicts": {"equal": len(REQUESTS)},
        "labels": {},
        "left": [],
        "differences": [],
    }


@pytest.mark.parametrize("number", range(1, len(REQUESTS) + 1))
def test_one_changed_byte_of_a_reply_is_named(cvars, tmp_path, number):
    """In every reply: its status, its last byte, and one in between."""
    raw = recorded()
    reply = [p for p in read_capture(raw).packets if p.type is PacketType.REPLY][number - 1].data
    start = raw.index(struct.pack("<I", 3) + reply, 24 + sum(len(r) for _, r in REQUESTS[: number - 1])) + 4
    file = tmp_path / "changed.pcap"
    for offset in {16, 24 if len(reply) > 25 else 16, len(reply) // 2, len(reply) - 1}:
        at = start + offset
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        code, out, _ = cvars("replay", "--json", file)
        found = json.loads(out)
        assert code == 1
        assert [d["step"] for d in found["differences"]] == [number]
        assert found["skipped"] == 0
    code, out, _ = cvars("replay", file)
    assert f"#{number} " in out
    assert f"cvars replay {file} --only {number} -v" in out
    code, out, _ = cvars("replay", file, "--only", number, "-v")
    assert code == 1
    assert "bytes differ, the first at offset" in out


def test_cut_records_are_reported_and_skipped(cvars, tmp_path):
    raw = recorded()
    file = tmp_path / "cut.pcap"
    file.write_bytes(raw[:-7])
    code, out, _ = cvars("replay", file)
    assert code == 0
    assert f"{len(REQUESTS) - 1} requests, {len(REQUESTS) - 1} replies equal\n2 not compared" in out


def test_the_recorded_captures_are_explained(cvars, vectors):
    for name, rules in (("edk2-smm", 1), ("qemu", 18)):
        code, out, _ = cvars("replay", "--json", vectors / "captures" / f"{name}.first-boot.pcap")
        found = json.loads(out)
        assert code == 0, found["differences"]
        assert found["differences"] == []
        assert found["verdicts"]["by rule"] == rules
        assert found["compared"] > 1300


def test_the_vectors_are_explained_and_a_changed_status_is_not(cvars, vectors, tmp_path):
    code, out, _ = cvars("replay", *sorted((vectors / "mm").glob("*.jsonl")))
    assert code == 0
    assert out.startswith("1515 requests, 902 replies equal\n")
    lines = (vectors / "mm" / "attrs.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        if row["op"] == "call" and "diverges" not in row and "after_divergence" not in row:
            row["reply"] = row["reply"][:64] + "07" + row["reply"][66:]
            lines[number] = json.dumps(row)
            break
    file = tmp_path / "changed.jsonl"
    file.write_text("\n".join(lines))
    code, out, _ = cvars("replay", file)
    assert code == 1
    assert f"--only {row['scenario']}:{row['step']} -v" in out
    code, out, _ = cvars("replay", file, "--only", f"{row['scenario']}:{row['step']}", "--json")
    assert [d["step"] for d in json.loads(out)["differences"]] == [row["step"]]


def test_replies_are_written(cvars, vectors, tmp_path):
    out = tmp_path / "replies.jsonl"
    code, _, _ = cvars("replay", "-q", vectors / "mm" / "next.jsonl", "--write-replies", out)
    assert code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    calls = [json.loads(x) for x in (vectors / "mm" / "next.jsonl").read_text().splitlines() if '"op":"call"' in x]
    assert [(r["scenario"], r["step"]) for r in rows] == [(c["scenario"], c["step"]) for c in calls]
    assert all(set(r) == {"scenario", "step", "device_status", "reply"} for r in rows)
    assert all(len(r["reply"]) == len(c["request"]) for r, c in zip(rows, calls, strict=True))


def test_a_capture_starts_from_given_variables(cvars, tmp_path):
    store = {"version": 2, "variables": [{"name": "V", "guid": str(A), "attr": 7, "data": "6f6c64"}]}
    variables = tmp_path / "vars.json"
    variables.write_text(json.dumps(store))
    file = tmp_path / "one.pcap"
    file.write_bytes(recorded([(VARIABLE, get(A, "V", 64))]))
    code, out, _ = cvars("replay", file, "--from", variables)
    assert code == 1
    assert "expected NOT_FOUND   got SUCCESS (3 bytes)" in out
    assert f"cvars replay {file} --from {variables} --only 1 -v" in out
    variables.write_text("nonsense")
    assert cvars("replay", file, "--from", variables)[0] == 3


def test_a_profile_changes_the_answers(cvars, tmp_path):
    file = tmp_path / "oversize.pcap"
    file.write_bytes(recorded(REQUESTS[9:10]))
    assert cvars("replay", file)[0] == 0
    code, out, _ = cvars("replay", file, "--profile", "qemu")
    assert code == 1
    assert "got BAD_BUFFER_SIZE" in out
    assert "--profile qemu --only 1" in out
    assert cvars("replay", file, "--profile", "other")[0] == 2


def test_other_input_ends_as_it_should(cvars, tmp_path):
    file = tmp_path / "file"
    for raw, code in (
        (b"", 3),
        (b"\xff\xfe", 3),
        (b"nonsense\n", 3),
        (b"{}\n", 3),
        (b"\xd4\xc3\xb2\xa1", 3),
        (b"\xa1\xb2\xc3\xd4" + bytes(20), 3),
        (recorded()[:20] + struct.pack("<I", 1), 3),
        (recorded()[:24], 3),
    ):
        file.write_bytes(raw)
        assert cvars("replay", file)[0] == code, raw[:10]
    assert cvars("replay", tmp_path / "absent")[0] == 2
    assert cvars("replay", tmp_path)[0] == 2
    file.write_bytes(recorded())
    for only in ("x", "99", "other:1"):
        assert cvars("replay", file, "--only", only)[0] == 2
    assert cvars("replay", file, "--write-replies", tmp_path / "no" / "folder")[0] == 4


def test_profiles_are_shown(cvars):
    for name in ("spec", "edk2", "qemu", "sct"):
        code, out, _ = cvars("profile", "show", name)
        assert code == 0
        assert f"profile {name}" in out
        assert max(map(len, out.splitlines())) < 100
    code, out, _ = cvars("profile", "show", "--json", "sct")
    shown = json.loads(out)
    assert {"rule": "R69", "name": "rsa_floor", "value": 1024, "decides": "smallest RSA modulus, bits"} in shown[
        "choices"
    ]
    for rule in ("R4", "R7", "R8", "R11", "R36", "R59", "R64", "R65", "R67", "R71", "R73", "R74", "R87", "R93"):
        assert any(choice["rule"] == rule for choice in shown["choices"])
    assert cvars("profile", "show", "other")[0] == 2
