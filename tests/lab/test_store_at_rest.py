"""`cvars vars … --store`: the owner's path into a store that no guest runs on (R122)."""

import json
import os
import time

import pytest

from cvars.lab.operator import operating, write_key_file
from cvars.store import FileMedium, Mode, StoreConfig, mount
from cvars.store.geometry import Geometry
from cvars.store.keyfile import parse
from cvars.trace import silent
from cvars.variables.limits import overhead
from cvars.variables.model import Put, Variable
from cvars.variables.names import AT, DB
from cvars.variables.security import GLOBAL
from tests.command import forked as piped
from tests.lab.test_processes import cvars
from tests.variables.pki import SHA256, UNKNOWN, esl, signer

GOOD_DB = esl(bytes(32), kind=SHA256)


@pytest.fixture
def at(tmp_path):
    """Options that name a store of its own with its key file; the store lives in mode "none"."""
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"store_id": "01" * 16, "vm_id": "vm", "kek": "02" * 32}))
    made = piped(b"", "store", "create", tmp_path / "vm.fd", "--size", "256K", "--key-file", key)
    assert made.returncode == 0, made.stderr
    return ("--store", tmp_path / "vm.fd", "--key-file", key)


def run(*arguments, stdin=b"", code=0):
    done = piped(stdin, "vars", *arguments)
    assert done.returncode == code, (arguments, done.stderr)
    return done


@pytest.mark.rule("R122", "SS-26")
def test_variables_of_a_store_are_read_set_appended_and_deleted(at, tmp_path):
    run("set", "BootOrder", "-", *at, stdin=b"\1\0")
    run("set", "BootOrder", "-", "--append", *at, stdin=b"\2\0")
    assert run("get", "BootOrder", "--raw", *at).stdout == b"\1\0\2\0"
    listed = json.loads(run("list", "--json", *at).stdout)
    assert [(v["name"], v["attributes"], v["data"]) for v in listed["variables"]] == [("BootOrder", 7, "01000200")]
    assert listed["simulated"] is False
    fsck = json.loads(piped(b"", "store", "fsck", at[1], *at[2:], "--json").stdout)
    assert fsck["sound"] is True
    done = json.loads(run("delete", "BootOrder", "--json", "--trace", tmp_path / "t", *at).stdout)
    assert (done["bypassed"], done["rebase"]) == ([], False)
    assert done["sequence"] > fsck["sequence"]
    events = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
    managed = [e for e in events if e["kind"] == "variable.managed"]
    assert [(e["name"], e["deleted"], e["bypassed"]) for e in managed] == [("BootOrder", True, False)]
    assert b"NOT_FOUND" in run("get", "BootOrder", *at, code=1).stderr


@pytest.mark.rule("R122")
def test_what_no_guest_could_write_changes_no_byte(at):
    before = at[1].read_bytes()
    for name, attributes, data, word in (
        ("SecureBoot", "BS,RT", b"\1", b"maintained by the service"),
        ("BootOrder", "NV,RT", b"\1\0", b"no stored variable"),
        ("BootOrder", "NV,BS,RT", bytes(200_000), b"above the limit"),
        ("KEK", "NV,BS,RT,AT", b"\1", b"is authenticated"),
    ):
        done = run("set", name, "-", "--attributes", attributes, *at, stdin=data, code=1)
        assert word in done.stderr, (name, done.stderr)
    assert b"does not exist" in run("delete", "BootOrder", *at, code=1).stderr
    assert at[1].read_bytes() == before


@pytest.mark.rule("R122", "R89")
def test_a_change_without_its_signature_is_asked_for_by_name_and_logged(at, tmp_path):
    value = ("db", "-", "--attributes", "NV,BS,RT,AT")
    assert b"is authenticated" in run("set", *value, *at, stdin=GOOD_DB, code=1).stderr
    before = at[1].read_bytes()
    assert b"--trace FILE" in run("set", *value, "--bypass-authentication", *at, stdin=GOOD_DB, code=2).stderr
    assert at[1].read_bytes() == before
    log = tmp_path / "trace.jsonl"
    done = run("set", *value, "--bypass-authentication", "--trace", log, "--json", *at, stdin=GOOD_DB)
    assert b"db: changed without authentication" in done.stderr
    assert json.loads(done.stdout)["bypassed"] == ["db"]
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(e["name"], e["bypassed"]) for e in events if e["kind"] == "variable.managed"] == [("db", True)]
    assert log.stat().st_mode & 0o777 == 0o600
    assert run("get", "db", "--raw", *at).stdout == GOOD_DB
    names = [v["name"] for v in json.loads(run("list", "--json", *at).stdout)["variables"]]
    assert names == ["db"]  # and no item of the service's own, of which there is one now (R89)
    dumped = json.loads(piped(b"", "store", "dump", at[1], *at[2:], "--json").stdout)["variables"]
    assert len(dumped) == 2


@pytest.mark.rule("R122", "P10")
def test_a_bypass_keeps_the_time_so_that_no_older_update_fits_again(at, tmp_path):
    set_ = (
        "set",
        "db",
        "-",
        "--attributes",
        "NV,BS,RT,AT",
        "--bypass-authentication",
        "--trace",
        tmp_path / "t",
        *at,
    )
    run(*set_, stdin=GOOD_DB)

    def stored():
        found = json.loads(piped(b"", "store", "dump", at[1], *at[2:], "--json").stdout)["variables"]
        return next(v for v in found if v["name"] == "db")

    assert stored()["time"] == "00" * 16
    old = "e8070101000000000000000000000000"
    keys = parse(at[3].read_bytes(), "key").keys(store_id=b"", key_version=1)
    medium = FileMedium.open(at[1])
    store = mount(
        medium, keys=keys, config=StoreConfig(mode=Mode.NONE), acquired=None, anchor=None, random=os.urandom,
        clock=time.monotonic, trace=silent,
    )  # fmt: skip
    store.commit((Put(DB, Variable(0x27, GOOD_DB, bytes.fromhex(old))),))
    store.close()
    medium.close()
    other = esl(b"\1" * 32, kind=SHA256)
    run(*set_, stdin=other)
    assert (stored()["time"], stored()["data"]) == (old, other.hex())
    run(*set_, "--append", stdin=GOOD_DB)
    assert (stored()["time"], stored()["data"]) == (old, (other + GOOD_DB).hex())


def test_wrong_keys_and_wrong_words_are_said(at, tmp_path):
    before = at[1].read_bytes()
    for command, code, word in (
        (("list", "--store", at[1]), 2, b"--key-file FILE"),
        (("list", *at, "--guest", "unix:x"), 2, b"exclude each other"),
        (("list", *at[2:]), 2, b"which guest, or which store"),
    ):
        assert word in run(*command, code=code).stderr
    (tmp_path / "raw").write_bytes(bytes.fromhex("02" * 32))
    assert run("list", "--store", at[1], "--key-file", tmp_path / "raw").returncode == 0
    set_ = ("set", "BootOrder", "-", "--store", at[1], "--key-file")
    assert b"does not say whose store" in run(*set_, tmp_path / "raw", stdin=b"\1\0", code=2).stderr
    for member, value in (("vm_id", "other"), ("kek", "03" * 32)):
        key = json.loads(at[3].read_text()) | {member: value}
        (tmp_path / "other.json").write_text(json.dumps(key))
        assert run(*set_, tmp_path / "other.json", stdin=b"\1\0", code=1).stderr.startswith(b"error: ")
    assert at[1].read_bytes() == before


@pytest.mark.rule("R122")
def test_a_running_guests_store_is_left_alone_and_an_anchored_one_needs_a_rebase(machine):
    image = machine.folder / "vm.fd"
    with operating(machine.folder / "broker") as opened:
        write_key_file(opened, opened.anchors.get("vm"), machine.folder / "key.json")
    at = ("--store", image, "--key-file", machine.folder / "key.json")
    component, socket = machine.start("a")
    guest = ("--guest", f"unix:{socket}")
    assert cvars("vars", "set", "BootOrder", "-", *guest, stdin=b"\1\0").returncode == 0
    held = image.read_bytes()
    busy = run("set", "BootOrder", "-", *at, stdin=b"\2\0", code=4)
    assert b"locked by a running guest" in busy.stderr
    assert image.read_bytes() == held
    assert component.stop() == 0
    for value in (b"\3\0", b"\2\0"):
        done = json.loads(run("set", "BootOrder", "-", "--json", *at, stdin=value).stdout)
        assert done["rebase"] is True
    refused, _ = machine.start("b", code=1)
    assert json.loads(refused.out.read_text())["reason"].startswith(("anchor.", "store."))
    rebase = piped(
        b"", "broker", "vm", "rebase", "vm", "--counter", done["sequence"], "--root", done["root"], "--force",
        "--config", machine.folder / "broker",
    )  # fmt: skip
    assert rebase.returncode == 0, rebase.stderr
    component, socket = machine.start("c")
    got = cvars("vars", "get", "BootOrder", "--raw", "--guest", f"unix:{socket}")
    assert got.stdout == b"\2\0"
    assert component.stop() == 0


def test_a_name_cannot_steer_the_terminal(at):
    name = "a\x1b[2J-11111111-2222-3333-4444-555555555555"
    run("set", name, "-", *at, stdin=b"x")
    for command in (("get", name), ("list",)):
        said = run(*command, *at).stdout
        assert b"a\\x1b[2J" in said
        assert b"\x1b" not in said
    assert b"\x1b" not in run("set", name, "-", *at, stdin=b"y").stdout
    assert b"\x1b" not in run("delete", name, *at).stdout


def test_plain_files_are_not_yet_there(at):
    done = run("list", "--fd", at[1], code=2)
    assert b"not yet" in done.stderr


@pytest.mark.rule("P20")
def test_the_command_line_enrols_no_placeholder_key(at, tmp_path):
    bypass = ("--bypass-authentication", "--trace", tmp_path / "t", *at)
    for name, code in (("DO NOT TRUST - AMI Test PK", 1), ("Example PK", 0)):
        value = esl(signer(0, name).der)
        done = run("set", "PK", "-", "--attributes", "NV,BS,RT,AT", *bypass, stdin=value, code=code)
        assert (b"placeholder key" in done.stderr) is bool(code)
    assert (
        b"placeholder" in run("set", "KEK", "-", "--guest", "unix:none", stdin=b"-- Do Not Ship --", code=1).stderr
    )


@pytest.mark.rule("R122", "R121", "SS-23")
def test_what_no_record_of_the_store_holds_changes_no_byte(tmp_path):
    """Small frames have small records: a limit of the rules, and what only the whole commit exceeds."""
    key, image, frame = tmp_path / "key.json", tmp_path / "vm.fd", 512
    key.write_text(json.dumps({"store_id": "01" * 16, "vm_id": "vm", "kek": "02" * 32}))
    made = ("--size", "256K", "--frame", frame, "--key-file", key)
    assert piped(b"", "store", "create", image, *made).returncode == 0
    before = image.read_bytes()
    at = ("--store", image, "--key-file", key)
    done = run("set", f"Big-{GLOBAL}", "-", *at, stdin=bytes(40_000), code=1)
    assert b"above the limit" in done.stderr
    largest = Geometry(256 << 10, frame).largest_body
    limit = largest - overhead(7 | AT) - len("db\0") * 2
    value = esl(bytes(limit - len(esl(b"", kind=UNKNOWN))), kind=UNKNOWN)
    unsigned = ("--attributes", "NV,BS,RT,AT", "--bypass-authentication", "--trace", tmp_path / "t")
    done = run("set", "db", "-", *unsigned, *at, stdin=value, code=1)
    assert b"no room: a commit of" in done.stderr
    assert image.read_bytes() == before
