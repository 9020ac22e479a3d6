"""What the pages say is held against the code."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_reason_is_explained_and_no_other():
    reasons = tool("reasons")
    said = reasons.said()
    assert set(said) - reasons.explained() == set(), "said but not explained"
    assert reasons.explained() - set(said) == set(), "explained but never said"


def threats():
    """(id, tests) of every row of the tables in threat-model.md."""
    for line in (ROOT / "threat-model.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[A-Z]\d+", cells[0]):
            yield cells[0], re.findall(r"`([\w/]+\.py)::(\w+)`", cells[-1])


def test_every_threat_names_a_test_that_exists():
    rows = list(threats())
    assert len(rows) == len({threat for threat, _ in rows}) >= 26
    for threat, tests in rows:
        assert tests, f"{threat} names no test"
        for file, name in tests:
            source = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^\s*def {name}\(", source, re.MULTILINE), f"{threat}: {file}::{name}"


def test_every_threat_of_the_store_is_there():
    assert {f"T{n}" for n in range(1, 27)} <= {threat for threat, _ in threats()}


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "threat-model.md"]
)
def test_links_and_paths_of_the_pages_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:cvars|svsm_bridge|tests|docs|deploy|scripts)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_readme_commands_exist():
    """Every `cvars …` line of the README is a command that has a help page."""
    commands = set(
        re.findall(r"^\$? ?cvars ((?:[a-z][a-z-]*)(?: [a-z][a-z-]+)?)", (ROOT / "README.md").read_text(), re.M)
    )
    assert len(commands) >= 5
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "cvars", *command.split(), "--help"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, command
