"""The demo's outcomes, derived again from the folder that it leaves: nothing here believes the demo's own word."""

import gzip
import hashlib
import json
import re
import struct
import subprocess
import sys
import zlib
from base64 import b64encode
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner

from cvars.audit.search import needles, search
from cvars.broker.audit import verify
from cvars.cli.main import app
from cvars.cli.output import SPEECH
from cvars.formats.pcap import PacketType, read_capture
from cvars.lab.driver import AT, set_attributes, status_of, written_value
from cvars.store.inspecting import LOG, inspect
from cvars.variables.model import Key


def cvars(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "cvars", *map(str, arguments)], check=False, capture_output=True, text=True
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def boots(demo):
    """The component's processes in the order of their start, each with its trace."""
    found = sorted(
        (p for p in demo.lines("processes/processes.jsonl") if p["role"] == "component"),
        key=lambda p: p["started"],
    )
    traces = sorted((demo.folder / "component").glob("*.trace.jsonl"))
    assert len(found) == len(traces) == 9
    return [
        (p, [json.loads(line) for line in t.read_text().splitlines()]) for p, t in zip(found, traces, strict=True)
    ]


def kinds(trace):
    return [event["kind"] for event in trace]


def event(trace, kind):
    return next(e for e in trace if e["kind"] == kind)


def audit_of(demo, trace):
    """Broker decisions between this boot's first and last event."""
    lines = demo.lines("broker/audit.jsonl")
    return [line for line in lines if trace[0]["at"][:23] <= line["at"][:23] <= trace[-1]["at"][:23]]


def log_of(image):
    return [r for bank in inspect(image).banks for r in bank.records if r.place == LOG]


def test_the_demo_says_ten_times_ok(demo):
    assert demo.code == 0
    assert demo.report["schema"] == "cvars.demo/1"
    assert demo.report["simulated"] is True
    assert len(demo.report["steps"]) == 10
    assert all(set(step) >= {"name", "expected", "observed", "ok"} for step in demo.report["steps"])
    assert all(step["ok"] is True for step in demo.report["steps"])
    assert json.loads((demo.folder / "demo.json").read_text()) == demo.report


def test_the_readme_shows_these_ten_lines(demo):
    """Every word of every step; only the port and the launch measurement differ from run to run."""
    if demo.report["tee"] != "snp":
        pytest.skip("the README shows the SEV-SNP story")
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    volatile = re.compile(r"127\.0\.0\.1:\d+|[0-9a-f]{4}…[0-9a-f]{4}| +")
    shown = {volatile.sub(" ", line).strip() for line in readme.splitlines()}
    for step in demo.report["steps"]:
        assert volatile.sub(" ", step["text"]).strip() in shown, step["text"]


def test_parties_are_processes_of_their_own_and_ended_as_told(demo):
    processes = demo.lines("processes/processes.jsonl")
    assert len({p["pid"] for p in processes}) == len(processes) == 13
    assert [p["exit_code"] for p, _ in boots(demo)] == [0, 1, 1, 0, 0, 1, 0, 1, 0]
    assert [p["exit_code"] for p in processes if p["role"] in ("guest", "broker")] == [0, 0, 0, 0]
    for process, trace in boots(demo):
        assert event(trace, "component.started")["pid"] == process["pid"]


def test_steps_1_to_3_the_key_was_released_to_evidence_and_used_after_its_statement(demo):
    _, trace = boots(demo)[0]
    assert event(trace, "attest.accepted")["trust_domain"] == "simulated"
    order = kinds(trace)
    released = [n for n, kind in enumerate(order) if kind == "release.statement_verified"]
    assert (
        order.index("attest.accepted") < released[-1] < order.index("store.created") < order.index("guest.booted")
    )
    pin = (demo.folder / "host" / "web-1.init-data.toml").read_text()
    assert all(trace[n]["broker_key"] in pin for n in released)
    decisions = audit_of(demo, trace)
    assert [d["action"] for d in decisions[:3]] == ["attest", "acquire", "release"]
    assert all(d["decision"] == "allow" and d["trust_domain"] == "simulated" for d in decisions[:3])
    assert len({d["request_id"] for d in decisions}) == len(decisions)
    assert verify((demo.folder / "broker" / "audit.jsonl").read_text().splitlines())[1] is None


def test_step_4_five_variables_were_written_three_of_them_authenticated(demo):
    """From the capture of the first boot: what the guest asked and what it was answered."""
    packets = read_capture((demo.folder / "component" / "boot-01-web-1.pcap").read_bytes()).packets
    calls = [p for p in packets if p.type is not PacketType.RESET]
    sets = [
        (set_attributes(request.data), reply.data)
        for request, reply in zip(calls[::2], calls[1::2], strict=True)
        if set_attributes(request.data) is not None
    ]
    assert [status_of(reply) for _, reply in sets] == [0] * 5
    assert sum(bool(attributes & AT) for attributes, _ in sets) == 3
    _, trace = boots(demo)[0]
    assert kinds(trace).count("variable.set") == 5
    assert demo.step(4)["observed"] == "5 written, 3 authenticated"


def test_step_5_the_store_was_sealed(demo):
    image = (demo.folder / "host" / "copies" / "web-1.sealed.fd").read_bytes()
    log = log_of(image)
    _, trace = boots(demo)[0]
    assert len(log) == 7
    assert log[-1].sequence == 7
    assert "256 KiB, 7 records, counter 7" in demo.step(5)["text"]
    assert event(trace, "component.stopped")["clean"] is True
    assert [e for e in trace if e["kind"] == "anchor.advanced"][-1]["counter"] == 7
    sealed = cvars("store", "fsck", demo.folder / "host/copies/web-1.sealed.fd", "--key-file", key_file(demo))
    assert "sound" in sealed.stdout


def key_file(demo):
    return demo.folder / "broker" / "web-1.key.json"


@pytest.mark.rule("T1")
def test_step_6_one_bit_was_flipped_and_the_boot_refused(demo):
    sealed = (demo.folder / "host/copies/web-1.sealed.fd").read_bytes()
    flipped = (demo.folder / "host/copies/web-1.flipped.fd").read_bytes()
    changed = [n for n in range(len(sealed)) if sealed[n] != flipped[n]]
    third = log_of(sealed)[2]
    assert len(changed) == 1
    assert (sealed[changed[0]] ^ flipped[changed[0]]).bit_count() == 1
    assert third.offset <= changed[0] < third.offset + third.size
    process, trace = boots(demo)[1]
    assert process["exit_code"] == 1
    assert event(trace, "guest.boot_refused")["reason"] == "store.tampered"
    assert "guest.booted" not in kinds(trace)
    found = cvars(
        "store", "fsck", demo.folder / "host/copies/web-1.flipped.fd", "--key-file", key_file(demo), code=1
    )
    assert "not sound" in found.stdout


@pytest.mark.rule("T5")
def test_step_7_the_old_store_was_refused_on_demand_and_repaired_by_default(demo):
    old, sealed = ((demo.folder / f"host/copies/web-1.{name}.fd").read_bytes() for name in ("step-4", "sealed"))
    assert len(log_of(old)) == 6
    assert len(log_of(sealed)) == 7
    refused, trace = boots(demo)[2]
    assert "--on-rollback" in refused["command"]
    assert refused["exit_code"] == 1
    assert event(trace, "guest.boot_refused")["reason"] == "store.rolled_back"
    repaired, trace = boots(demo)[3]
    assert repaired["exit_code"] == 0
    rolled_back = event(trace, "store.rolled_back")
    assert (rolled_back["found"], rolled_back["anchored"], rolled_back["outcome"]) == (6, 7, "repaired")
    assert kinds(trace).index("store.rolled_back") < kinds(trace).index("guest.booted")
    mended = (demo.folder / "host/copies/web-1.repaired.fd").read_bytes()
    last = log_of(sealed)[-1]
    assert mended[: last.offset + last.size] == sealed[: last.offset + last.size]


@pytest.mark.rule("T4")
def test_step_8_the_other_guests_store_was_refused(demo):
    process, trace = boots(demo)[5]
    assert process["exit_code"] == 1
    assert event(trace, "guest.boot_refused")["reason"] == "store.wrong_guest"
    stores = [inspect((demo.folder / f"host/{vm}.fd").read_bytes()) for vm in ("web-1", "db-1")]
    ids = [{b.header["StoreId"] for b in seen.banks if b.header} for seen in stores]
    assert all(len(found) == 1 for found in ids)
    assert ids[0] != ids[1]


@pytest.mark.rule("T6", "K49")
def test_step_9_the_clone_was_refused_while_the_guest_lived(demo):
    live, live_trace = boots(demo)[6]
    clone, trace = boots(demo)[7]
    assert live["started"] < clone["started"] < clone["ended"] < live["ended"]
    assert (live["exit_code"], clone["exit_code"]) == (0, 1)
    assert event(trace, "guest.boot_refused")["reason"] == "anchor.leased"
    denied = [d for d in audit_of(demo, trace) if d["decision"] != "allow"]
    assert [(d["action"], d["vm_id"]) for d in denied] == [("acquire", "web-1")]
    assert "anchor.fenced" not in kinds(live_trace)


def test_step_10_the_variables_are_as_they_were(demo):
    process, trace = boots(demo)[8]
    assert process["exit_code"] == 0
    written = {
        (e["name"], e["vendor_guid"]): e["sha384"] for e in boots(demo)[0][1] if e["kind"] == "variable.set"
    }
    last = read_capture((demo.folder / "component" / "boot-09-web-1.pcap").read_bytes()).packets
    assert {(k.name, str(k.vendor_guid)) for k in read_values(last)} == set(written)
    dump = dumped(demo, "last")
    for (name, guid), digest in written.items():
        assert hashlib.sha384(dump[name, guid]).hexdigest() == digest
    assert event(trace, "guest.booted")["variables"] >= 5


def read_values(packets):
    """(key, value) of every GetVariable that the guest was answered."""
    calls = [p.data for p in packets if p.type is not PacketType.RESET]
    values = {}
    for request, reply in zip(calls[::2], calls[1::2], strict=True):
        if len(request) < 76 or request[24:32] != (1).to_bytes(8, "little"):
            continue
        guid, size, name_bytes, _ = struct.unpack_from("<16sQQI", reply, 40)
        name = reply[76 : 76 + name_bytes].decode("utf-16-le").rstrip("\0")
        values[Key(UUID(bytes_le=guid), name)] = reply[76 + name_bytes : 76 + name_bytes + size]
    return values


def dumped(demo, label):
    out = cvars(
        "store", "dump", demo.folder / f"host/copies/web-1.{label}.fd", "--key-file", key_file(demo), "--json"
    ).stdout
    return {(v["name"], v["guid"]): bytes.fromhex(v["data"]) for v in json.loads(out)["variables"]}


@pytest.mark.rule("SS-1", "T15")
def test_no_name_and_no_value_is_in_any_byte_under_host(demo):
    values = read_values(read_capture((demo.folder / "boot.pcap").read_bytes()).packets)
    assert len(values) == 5
    wanted = needles(values)
    assert len(wanted) > 60
    files = [(p.name, p.read_bytes()) for p in (demo.folder / "host").rglob("*") if p.is_file()]
    assert len([name for name, _ in files if name.endswith(".fd")]) >= 8
    assert search(files, wanted) == []
    assert demo.report["plaintext"] == {"variables_searched": 7, "found": []}


def test_nothing_of_the_other_guest_is_in_any_byte_under_host_either(demo):
    """What it wrote, from its scenario; the control is that scenario's own file."""
    steps = [s for s in demo.lines("guest/demo-other-guest.jsonl") if "reply" in s]
    pairs = [(bytes.fromhex(s["request"]), bytes.fromhex(s["reply"])) for s in steps]
    wanted = needles(dict(filter(None, (written_value(*pair) for pair in pairs))))
    assert {needle.label for needle in wanted} == {"name Boot0000", "value of Boot0000", "name BootOrder"}
    files = [(p.name, p.read_bytes()) for p in (demo.folder / "host").rglob("*") if p.is_file()]
    assert search(files, wanted) == []
    scenario = (demo.folder / "guest" / "demo-other-guest.jsonl").read_bytes()
    assert {hit.needle.label for hit in search([("scenario", scenario)], wanted)} == {n.label for n in wanted}


def test_the_same_search_finds_everything_where_it_is_in_the_clear(demo):
    """So it can find: in the capture, in an unsealed dump, in hex, base64 and compressed forms."""
    values = read_values(read_capture((demo.folder / "boot.pcap").read_bytes()).packets)
    wanted = needles(values)
    labels = {needle.label for needle in wanted}
    capture = (demo.folder / "boot.pcap").read_bytes()
    found = {hit.needle.label for hit in search([("boot.pcap", capture)], wanted)}
    assert found == labels
    dump = json.dumps({name: data.hex() for (name, _), data in dumped(demo, "sealed").items()}).encode()
    assert {hit.needle.label for hit in search([("dump", dump)], wanted)} >= {
        label for label in labels if label.startswith("value") or len(label) > len("name db") + 1
    }
    for pack in (
        zlib.compress,
        gzip.compress,
        b64encode,
        lambda b: b.hex().encode(),
        lambda b: b64encode(b"x" + b),
    ):
        hidden = b"noise" * 7 + pack(capture) + b"noise"
        assert {hit.needle.label for hit in search([("hidden", hidden)], wanted)} == labels


def test_the_capture_replays_with_every_request_compared(demo):
    capture = demo.folder / "boot.pcap"
    requests = sum(p.type is PacketType.REQUEST for p in read_capture(capture.read_bytes()).packets)
    report = json.loads(cvars("replay", capture, "--json").stdout)
    assert (report["compared"], report["equal"], report["skipped"]) == (requests, requests, 0)
    assert report["differences"] == []


def test_a_flipped_byte_of_a_recorded_reply_is_named(demo, rng, tmp_path, monkeypatch):
    """20 random bytes of replies, one at a time."""
    monkeypatch.setattr(SPEECH, "as_json", True)
    raw = (demo.folder / "boot.pcap").read_bytes()
    for number, offset in reply_bytes(raw, rng, 20):
        changed = bytearray(raw)
        changed[offset] ^= 1 << rng.randrange(8)
        file = tmp_path / "changed.pcap"
        file.write_bytes(changed)
        done = CliRunner().invoke(app, ["replay", str(file), "--json"])
        assert done.exit_code == 1
        assert [d["step"] for d in json.loads(done.stdout)["differences"]] == [number], offset


def reply_bytes(raw, rng, count):
    """(request number, file offset) of random bytes of replies, by an independent walk over the file."""
    places, at, request = [], 24, 0
    while at < len(raw):
        size = int.from_bytes(raw[at + 8 : at + 12], "little")
        kind = int.from_bytes(raw[at + 16 : at + 20], "little")
        request += kind == 2
        if kind == 3:
            places += [(request, at + 20 + n) for n in range(size - 4)]
        at += 16 + size
    return rng.sample(places, count)


def test_a_second_demo_replaces_the_first_and_leaves_other_folders_alone(tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    refused = cvars("demo", "--out", other, code=2)
    assert "left alone" in refused.stderr
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
