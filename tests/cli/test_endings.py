"""How a command ends when something unforeseen happens, and what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cvars.cli import main
from cvars.cli.output import SPEECH, table
from cvars.errors import ExitCode
from cvars.formats.names import parse_attributes
from tests.cli.test_bad_input import cvars, says_one_thing


def ends(monkeypatch, capsys, error, *arguments):
    """`cvars profile show`, with ``error`` in the middle of it: (exit code, standard error)."""

    def broken(_name):
        raise error

    monkeypatch.setattr("cvars.variables.profile.profile_named", broken)
    monkeypatch.setattr(sys, "argv", ["cvars", "profile", "show", *arguments])
    monkeypatch.setattr(SPEECH, "verbose", False)
    with pytest.raises(SystemExit) as caught:
        main.run()
    return caught.value.code, capsys.readouterr().err


def test_a_bug_here_is_70_and_shows_its_traceback_only_when_asked(monkeypatch, capsys):
    code, said = ends(monkeypatch, capsys, ZeroDivisionError("by accident"))
    assert code == ExitCode.BUG == 70
    assert said.splitlines()[0] == "error: internal error: ZeroDivisionError: by accident"
    assert "CONTRIBUTING.md" in said
    assert "Traceback" not in said
    code, said = ends(monkeypatch, capsys, ZeroDivisionError("by accident"), "-v")
    assert code == 70
    assert "Traceback" in said


def test_an_interruption_is_130_and_a_failing_disk_4(monkeypatch, capsys):
    assert ends(monkeypatch, capsys, KeyboardInterrupt()) == (130, "")
    code, said = ends(monkeypatch, capsys, OSError(28, "No space left on device", "vm.fd"))
    assert code == 4
    assert said.splitlines()[:2] == ["error: No space left on device", "  vm.fd"]


def test_a_reader_that_went_away_is_4_and_no_traceback():
    done = subprocess.Popen(
        [sys.executable, "-m", "cvars", "profile", "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()
    assert (done.stderr.read(), done.wait(30)) == (b"", 4)


def test_quiet_prints_errors_only(tmp_path):
    done = cvars("profile", "show", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    says_one_thing(cvars("profile", "show", "nonsense", "-q"), 2, "no profile")


def test_a_table_cannot_steer_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(SPEECH, "as_json", False)
    monkeypatch.setattr(SPEECH, "quiet", False)
    table(("NAME", "BYTES"), [("a\x1b[2J\u202eb\n", 1), ("\ud800", 2)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [["a\\x1b[2J\\u202eb\\n", "1"], ["\\ud800", "2"]]


@pytest.mark.parametrize(
    ("text", "bits"), [("NV,BS,RT", 7), ("nv, bs", 3), ("0x27", 0x27), ("0", 0), ("0xFFFFFFFF", 0xFFFFFFFF)]
)
def test_attributes_are_words_or_32_bits(text, bits):
    assert parse_attributes(text) == bits


@pytest.mark.parametrize("text", ["0x100000000", "-1", "NV,XX", "", "7x"])
def test_other_attributes_are_refused(text, tmp_path):
    (tmp_path / "value").write_bytes(b"\1")
    done = cvars("vars", "set", "BootOrder", tmp_path / "value", "--attributes", text, "--guest", "unix:none")
    says_one_thing(done, 2, "attribute")


def test_an_empty_file_deletes_nothing(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    done = cvars("vars", "set", "BootOrder", tmp_path / "empty", "--guest", "unix:none")
    says_one_thing(done, 2, "would delete BootOrder", "cvars vars delete BootOrder")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"op": "call", "request": "00" * 23}], "24 to 65536 bytes, not 23"),
        ([{"op": "call", "request": "00" * 0x10001}], "24 to 65536 bytes, not 65537"),
        ([{"op": "start"}], "no calls"),
        ([{"op": "jump"}], "cannot play 'jump'"),
        ([{"op": "call", "request": "xx"}], "not a scenario line"),
    ],
)
def test_a_scenario_that_no_guest_can_play_costs_no_boot(tmp_path, steps, words):
    lines = [json.dumps({"scenario": "s", "step": n} | step) + "\n" for n, step in enumerate(steps)]
    (tmp_path / "s.jsonl").write_text("".join(lines))
    says_one_thing(cvars("guest", "play", tmp_path / "s.jsonl", "--connect", "unix:none"), 3, words)
    done = cvars(
        "guest", "run", "--tee", "snp", "--store", "none.fd", "--broker", "http://127.0.0.1:1", "--init-data",
        "none.toml", "--scenario", tmp_path / "s.jsonl",
    )  # fmt: skip
    says_one_thing(done, 3, words)


def test_a_report_is_never_written_over_a_store(tmp_path):
    store = tmp_path / "vm.fd"
    assert cvars("store", "create", store, "--size", "256K").returncode == 0
    before = store.read_bytes()
    (tmp_path / "link.html").symlink_to(store)
    for out in (store, tmp_path / "link.html"):
        says_one_thing(cvars("audit", "host-view", store, "--out", out), 2, "left alone")
        assert store.read_bytes() == before


def test_what_is_no_store_and_an_empty_folder_are_no(tmp_path):
    (tmp_path / "noise.fd").write_bytes(b"noise" * 100)
    (tmp_path / "empty").mkdir()
    for name in ("noise.fd", "empty"):
        done = cvars("audit", "host-view", tmp_path / name)
        assert done.returncode == 1
        assert "no sealed store here" in done.stdout


def test_a_name_in_the_report_is_text(tmp_path):
    store = tmp_path / "<script>alert(1)</script>.fd".replace("/", "_")
    assert cvars("store", "create", store, "--size", "256K").returncode == 0
    assert cvars("audit", "host-view", store, "--out", tmp_path / "r.html").returncode == 0
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_demo_that_is_told_to_stop_leaves_nothing_behind(tmp_path):
    demo = subprocess.Popen(
        [sys.executable, "-m", "cvars", "demo", "--tee", "tdx", "--out", str(tmp_path / "lab")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "lab" / "processes"
    deadline = time.monotonic() + 60
    while not list(log.glob("*broker.out")) and time.monotonic() < deadline:
        time.sleep(0.02)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(60) == 130
    assert not (tmp_path / "lab").exists()
    assert demo.stderr is not None
    assert demo.stderr.read() == b""
    started = os.popen(f"ps -eo args | grep -F {tmp_path} | grep -v grep").read()
    assert started == ""


def test_what_is_there_already_is_left_alone(tmp_path, simulated_hardware):
    host = tmp_path / "host"
    host.mkdir()
    (host / "b.toml").write_text("mine")
    init = ("--tee", "tdx", "--broker", "broker", "--out", "host", "--hardware", simulated_hardware)
    assert cvars("guest", "init", "a", *init, cwd=tmp_path).returncode == 0
    before = (host / "a.fd").read_bytes()
    for vm, word in (("a", "a.fd is there already"), ("b", "b.toml is there already"), ("a/b", "not a VM id")):
        says_one_thing(cvars("guest", "init", vm, *init, cwd=tmp_path), 2, word)
    (host / "a.fd").rename(host / "kept.fd")
    (host / "a.toml").unlink()
    says_one_thing(cvars("guest", "init", "a", *init, cwd=tmp_path), 2, "enrolled already")
    assert sorted(p.name for p in host.iterdir()) == ["b.toml", "kept.fd"]
    assert ((host / "b.toml").read_text(), (host / "kept.fd").read_bytes()) == ("mine", before)


def test_store_create_overwrites_nothing_and_is_its_owners(tmp_path):
    store, ticket = tmp_path / "vm.fd", tmp_path / "ticket"
    ticket.write_bytes(bytes(449))
    says_one_thing(cvars("store", "create", store, "--size", "256K", "--ticket", ticket), 3, "at most 448 bytes")
    assert not store.exists()
    ticket.write_bytes(bytes(448))
    assert cvars("store", "create", store, "--size", "256K", "--ticket", ticket).returncode == 0
    assert store.stat().st_mode & 0o777 == 0o600
    before = store.read_bytes()
    says_one_thing(cvars("store", "create", store, "--size", "512K"), 2, "left alone")
    assert store.read_bytes() == before


def test_a_labs_key_file_is_its_owners_and_replaces_none(tmp_path, simulated_hardware):
    from cvars.lab.operator import enrol, operating, set_up_broker, write_key_file

    set_up_broker(tmp_path / "broker", simulated_hardware, ["tdx"])
    with operating(tmp_path / "broker") as opened:
        names = {"store": tmp_path / "vm.fd", "init_data": tmp_path / "vm.toml"}
        record = enrol(opened, "vm", image_bytes=256 * 1024, **names)
        write_key_file(opened, record, tmp_path / "key")
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError):
            write_key_file(opened, record, tmp_path / "key")
