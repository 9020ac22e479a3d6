"""Mistakes a newcomer makes: one sentence each, the right exit code, nothing half-made."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from cvars.cli.later import LATER
from cvars.errors import OutsideFailure, UsageMistake
from cvars.lab.demo import MARK, _make_folder
from tests.command import said as cvars

ROOT = Path(__file__).resolve().parents[2]


def says_one_thing(done, code, *words):
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 3  # what, where, what to try
    assert all(line.startswith("  ") and line.strip() for line in lines[1:])
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_port_in_use_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert cvars("broker", "init", tmp_path / "broker").returncode == 0
        done = cvars("broker", "serve", "--config", tmp_path / "broker", "--listen", where)
        says_one_thing(done, 4, "cannot listen", where)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    says_one_thing(cvars("demo", "--out", tmp_path / "file" / "lab"), 4, "cannot be made")
    says_one_thing(cvars("demo", "--out", "/proc/lab"), 4, "cannot be made")


def test_a_half_written_lab_folder_is_made_anew_and_a_foreign_one_left_alone(tmp_path):
    half = tmp_path / "lab"
    (half / "host").mkdir(parents=True)
    (half / MARK).write_text("")
    (half / "host" / "web-1.fd").write_bytes(b"torn")
    _make_folder(half)
    assert [p.name for p in half.iterdir()] == [MARK]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes").write_text("mine")
    with pytest.raises(UsageMistake, match="left alone"):
        _make_folder(foreign)
    with pytest.raises(UsageMistake, match="left alone"):
        _make_folder(foreign / "notes")
    assert (foreign / "notes").read_text() == "mine"


def test_the_lab_folder_may_be_where_we_stand_and_is_never_reached_through_a_link(tmp_path, monkeypatch):
    lab = tmp_path / "lab"
    (lab / "host").mkdir(parents=True)
    (lab / MARK).write_text("")
    (tmp_path / "precious").write_text("mine")
    (lab / "link").symlink_to(tmp_path)
    monkeypatch.chdir(lab)
    before = lab.stat().st_ino
    _make_folder(Path())
    assert [p.name for p in lab.iterdir()] == [MARK]
    assert lab.stat().st_ino == before
    assert lab.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "precious").read_text() == "mine"
    (tmp_path / "to-lab").symlink_to(lab)
    (tmp_path / "to-nothing").symlink_to(tmp_path / "nothing")
    for link in ("to-lab", "to-nothing"):
        with pytest.raises(UsageMistake, match="symbolic link"):
            _make_folder(tmp_path / link)
    assert [p.name for p in lab.iterdir()] == [MARK]
    assert not (tmp_path / "nothing").exists()
    (lab / MARK).unlink()
    (lab / MARK).symlink_to(tmp_path)  # no file: whoever made it, it was no demo
    with pytest.raises(UsageMistake, match="left alone"):
        _make_folder(lab)


def test_a_demo_that_cannot_start_leaves_nothing_behind(tmp_path, monkeypatch):
    from cvars.lab import demo

    def broken(*_):
        raise OutsideFailure("no port left")

    monkeypatch.setattr(demo._Demo, "run", broken)
    with pytest.raises(OutsideFailure):
        demo.run("snp", tmp_path / "lab", without=None, tell=print)
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("version_info", "too old"),
        ("ensurepip", "python3-venv"),
    ],
)
def test_set_up_says_what_python_lacks(tmp_path, missing, words):
    """A stand-in for an old Python, and for Debian's without python3-venv."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("requirements.lock", "requirements-build.lock", "pyproject.toml", "Makefile", "scripts/setup.sh"):
        shutil.copy(ROOT / name, checkout / name)
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *{missing}*) exit 1;; --version) echo Python 3.9.2;; esac\nexit 0\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "demo", f"PYTHON={python}"], check=False, cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("make")]) == 2
    assert not (checkout / ".venv").exists()


def test_set_up_says_when_there_is_no_python(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "scripts/setup.sh")],
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "is not installed" in done.stderr


GUEST = ["guest", "run", "--tee", "snp", "--broker", "http://127.0.0.1:1"]


def test_guest_run_names_what_is_missing(tmp_path):
    init_data = tmp_path / "vm.toml"
    store = tmp_path / "vm.fd"
    common = [*GUEST, "--store", store, "--init-data", init_data, "--hardware", tmp_path / "hardware"]
    says_one_thing(cvars(*common), 2, "no such init-data")
    init_data.write_text("version = 1")
    says_one_thing(cvars(*common), 3, "init-data")
    good = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"cvars.vm-id" = "vm"\n"cvars.broker-key" = "{}"\n'
    init_data.write_text(good.format("0" * 64))
    says_one_thing(cvars(*common), 2, "no such store", "cvars store create")
    assert cvars("store", "create", store, "--size", "256K").returncode == 0
    before = store.read_bytes()
    done = cvars(*common, "--json", "--listen", f"unix:{tmp_path}/s/guest.sock")
    says_one_thing(done, 4, "no answer from the broker")
    assert json.loads(done.stdout)["reason"] == "anchor.unreachable"
    assert store.read_bytes() == before
    assert not (tmp_path / "s" / "guest.sock").exists()
    says_one_thing(cvars(*common, "--on-rollback", "perhaps"), 2, "--on-rollback")
    says_one_thing(cvars(*common, "--listen", "tcp:1"), 2, "unix:PATH")
    says_one_thing(cvars(*common, "--listen", "unix:/" + "x" * 120), 2, "107 bytes")
    says_one_thing(cvars(*common, "--store", tmp_path), 4, "cannot be opened")


def test_a_store_locked_by_a_running_guest_is_said(tmp_path):
    import fcntl

    init_data = tmp_path / "vm.toml"
    init_data.write_text('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"cvars.vm-id" = "vm"\n')
    store = tmp_path / "vm.fd"
    assert cvars("store", "create", store, "--size", "256K").returncode == 0
    with store.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cvars(*GUEST, "--store", store, "--init-data", init_data, "--hardware", tmp_path / "hardware")
        says_one_thing(done, 4, "locked by a running guest")


def test_a_wrong_command_line_ends_2():
    for words in ("demo --bogus", "nonsense", "replay", "store inspect /none", "guest run"):
        says_one_thing(cvars(*words.split()), 2, "see: cvars")


@pytest.mark.parametrize("wish", ["--size 1", "--mode perhaps", "--size 3M --mode perhaps"])
def test_guest_init_makes_nothing_for_a_wish_that_cannot_be(tmp_path, wish):
    done = cvars(
        "guest", "init", "vm", "--tee", "tdx", *wish.split(), "--broker", "broker", "--out", "host", cwd=tmp_path
    )
    says_one_thing(done, 2)
    assert list(tmp_path.iterdir()) == []


def test_guest_init_for_a_tee_that_the_broker_does_not_serve_makes_nothing(tmp_path, simulated_hardware):
    from cvars.lab.operator import set_up_broker

    set_up_broker(tmp_path / "broker", simulated_hardware, ["tdx"])
    before = sorted(path for path in tmp_path.rglob("*") if "broker.db" not in path.name)
    init = ("guest", "init", "vm", "--broker", "broker", "--out", "host", "--hardware", simulated_hardware)
    done = cvars(*init, "--tee", "snp", cwd=tmp_path)
    says_one_thing(done, 2, "releases no store key to snp", "policy lab knows tdx", "--tee tdx")
    assert sorted(path for path in tmp_path.rglob("*") if "broker.db" not in path.name) == before
    assert cvars("broker", "vm", "list", "--config", "broker", "--json", cwd=tmp_path).stdout.count("vm_id") == 0
    assert cvars(*init, "--tee", "tdx", cwd=tmp_path).returncode == 0
    assert (tmp_path / "host" / "vm.fd").exists()


def test_vars_without_a_component_is_said(tmp_path):
    says_one_thing(cvars("vars", "list"), 2, "--guest unix:PATH")
    says_one_thing(cvars("vars", "list", "--guest", f"unix:{tmp_path}/none.sock"), 4, "none.sock")
    says_one_thing(cvars("vars", "get", "MyOwn", "--guest", f"unix:{tmp_path}/none.sock"), 2, "UEFI specification")


@pytest.mark.parametrize(("noun", "verb"), [(noun, verb) for noun, verbs in LATER.items() for verb in verbs])
def test_what_is_planned_answers_not_yet(noun, verb):
    from typer.testing import CliRunner

    from cvars.cli.main import app
    from cvars.errors import NotYet

    done = CliRunner().invoke(app, [noun, verb, "--whatever", "x"])
    assert isinstance(done.exception, NotYet)
    assert done.exception.exit_code == 2


def test_make_lists_every_target_of_the_plan():
    listed = subprocess.run(["make", "-s"], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    targets = {line.split()[0] for line in listed.splitlines()}
    design = "setup demo test lint types rules bench bench-compare docs clean"
    later = "test-exhaustive mutants test-postgres test-guest smi-plugin fuzz soak chaos"
    assert set(f"{design} {later}".split()) <= targets
