"""One object on standard output under --json, help for a noun alone: what programs and people are promised."""

import json

import pytest
from typer.main import get_command

from cvars.cli.main import NOUNS, app
from tests.cli.test_bad_input import cvars

ERROR = {"schema", "simulated", "error", "reason", "message", "where", "hint"}


@pytest.mark.parametrize(
    ("command", "simulated"),
    [
        ("profile show", False),
        ("guest measure --tee tdx", False),
        ("store create new.fd --size 256K", False),
        ("store explain store.tampered", False),
        ("audit host-view blank.fd", False),
    ],
)
def test_every_object_names_its_schema_and_says_whether_evidence_was_simulated(tmp_path, command, simulated):
    assert cvars("store", "create", tmp_path / "blank.fd", "--size", "256K").returncode == 0
    done = cvars(*command.split(), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == f"cvars.{'.'.join(w for w in command.split()[:2])}/1"
    assert found["simulated"] is simulated


@pytest.mark.parametrize(
    ("command", "reason", "simulated"),
    [
        ("demo --tee sgx --json", "usage", True),
        ("demo --bogus --json", "usage", None),
        ("guest run --json --tee sgx --store s --broker b --init-data i", "usage", True),
        ("vars list --json --guest unix:none.sock", "outside.failed", True),
        ("replay --json none.pcap", "usage", None),
        ("vars --json", "usage", None),
    ],
)
def test_an_error_is_an_object_too(tmp_path, command, reason, simulated):
    done = cvars(*command.split(), cwd=tmp_path)
    assert done.returncode in (2, 4)
    found = json.loads(done.stdout)
    assert set(found) == ERROR
    assert (found["schema"], found["reason"], found["simulated"]) == ("cvars.error/1", reason, simulated)
    said = done.stderr.splitlines()
    assert said[0] == f"error: {found['message']}"
    assert [line.strip() for line in said[1:]] == [found["where"], found["hint"]]


def test_an_error_cannot_steer_the_terminal(tmp_path):
    done = cvars("store", "explain", "a\x1b[2Jb\nc")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert done.stderr.startswith("error: no such reason: a\\x1b[2Jb\\nc\n")


@pytest.mark.parametrize("noun", ["", *NOUNS, "broker vm", "trace"])
def test_a_noun_alone_shows_its_help(noun):
    done = cvars(*noun.split())
    asked = cvars(*noun.split(), "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert asked.returncode == 0
    assert done.stderr == asked.stdout
    assert "error" not in done.stderr.splitlines()[0]


def commands(command, path=()):
    """(words, command) of every command that there is."""
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield (*path, name), one


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(w, c, id=" ".join(w)) for w, c in commands(get_command(app))]
)
def test_every_command_has_json_quiet_verbose_and_an_example(words, command):
    if command.help == "Not yet.":
        return
    options = {name for parameter in command.params for name in parameter.opts}
    assert {"--json", "-q", "-v"} <= options
    assert "Example: cvars " + " ".join(words) in command.help
