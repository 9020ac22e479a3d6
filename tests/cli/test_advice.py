"""Every error that a command can end with says what, where and what to try."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

import cvars.cli.main
from cvars import errors
from cvars.cli.advice import WAYS_OUT, where_and_hint
from cvars.errors import CvarsError
from cvars.store.explaining import EXPLANATIONS
from tests.cli.test_bad_input import cvars as run
from tests.cli.test_output import commands

SOURCE = Path(errors.__file__).parent


def families():
    """Name -> class of every error of the family, wherever it is defined."""
    found, todo = {}, [CvarsError]
    while todo:
        one = todo.pop()
        found.setdefault(one.__name__, []).append(one)
        todo += one.__subclasses__()
    return found


def sites():
    """(where, reason, has a where, has a hint) of every place that makes such an error."""
    for file in sorted(SOURCE.rglob("*.py")):
        module = ".".join(("cvars", *file.relative_to(SOURCE).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                classes = [c for c in FAMILIES.get(name, []) if name != "Refused" or c.__module__ == module]
                given = {k.arg: k.value for k in node.keywords}
                for one in classes:
                    reason = given["reason"].value if isinstance(given.get("reason"), ast.Constant) else one.reason
                    yield f"{file.relative_to(SOURCE)}:{node.lineno}", reason, "where" in given, "hint" in given


for name in (
    "broker.app",
    "broker.migrate",
    "broker.checkpoints",
    "attest.remote",
    "lab.demo",
    "variables.manage",
):
    __import__(f"cvars.{name}")
FAMILIES = families()
SITES = list(sites())


def test_every_error_has_its_three_lines():
    assert len(SITES) > 250
    for place, reason, has_where, has_hint in SITES:
        error = CvarsError("what", where="w" * has_where, hint="h" * has_hint, reason=reason)
        where, hint = where_and_hint(error, "cvars store fsck")
        assert where == ("w" if has_where else "cvars store fsck"), place
        assert hint, place
        assert has_hint or reason in EXPLANATIONS or reason in WAYS_OUT, f"{place}: no way out of {reason}"


def test_every_class_of_error_has_a_way_out():
    for classes in FAMILIES.values():
        for one in classes:
            if one is not CvarsError:
                assert one.reason in EXPLANATIONS.keys() | WAYS_OUT.keys(), one


def test_advice_names_commands_that_exist():
    known = {" ".join(words) for words, _ in commands(get_command(cvars.cli.main.app))}
    named = [m for text in WAYS_OUT.values() for m in re.findall(r"cvars ((?:[a-z]+ )+[a-z]+)", text)]
    assert len(named) >= 8
    for words in named:
        assert any(words.startswith(command) for command in known), words


@pytest.mark.parametrize(
    ("line", "code", "where", "advice"),
    [
        ("store explain nonsense", 2, "cvars store explain", "known: store.tampered"),
        ("store fsck none.fd --key-file none", 2, "cvars store fsck", "see: cvars store fsck --help"),
        ("broker vm show web-1 --config none", 2, "", ""),
        ("attest inspect none", 2, "cvars attest inspect", "see: cvars attest inspect --help"),
        ("replay noise", 3, "noise", "is it the right file"),
        ("attest inspect noise", 3, "cvars attest inspect", "is it the right file"),
        ("vars get db --guest unix:none.sock", 4, "unix:none.sock", "is `cvars guest run`"),
        ("attack run", 2, "cvars attack run", "CHANGELOG.md"),
        ("store create noise", 2, "cvars store create", "choose another name"),
        ("store inspect .", 4, ".", "cvars store explain store.io"),
    ],
)
def test_mistakes_are_answered_in_three_lines(tmp_path, line, code, where, advice):
    (tmp_path / "noise").write_bytes(b"\xff noise")
    done = run(*line.split(), cwd=tmp_path)
    said = done.stderr.splitlines()
    assert (done.returncode, len(said)) == (code, 3), done.stderr
    assert where in said[1]
    assert advice in said[2]
