"""One demo per TEE, run once and shared: the tests look at the folder that it leaves behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ran:
    """A demo that ran: where, how it ended, what it said."""

    folder: Path
    code: int
    report: dict

    def lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def step(self, number: int) -> dict:
        return self.report["steps"][number - 1]


def _run_demo(folder: Path, tee: str = "snp", *options: str) -> Ran:
    command = [sys.executable, "-m", "cvars", "demo", "--tee", tee, "--out", str(folder), "--json", *options]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=240, cwd=folder.parent, env=os.environ
    )
    assert done.stdout, done.stderr
    return Ran(folder, done.returncode, json.loads(done.stdout))


@pytest.fixture(scope="session", params=["snp", "tdx"])
def demo(request, tmp_path_factory) -> Ran:
    return _run_demo(tmp_path_factory.mktemp("demo") / "lab", request.param)


@pytest.fixture(scope="session")
def run_demo():
    """Run another demo: (folder, tee, *options) -> Ran."""
    return _run_demo


@pytest.fixture
def machine(tmp_path, tmp_path_factory):
    """Broker and one VM as processes."""
    from tests.lab.machine import Machine

    made = Machine(tmp_path, tmp_path_factory.mktemp("s"))
    yield made
    made.processes.stop_all()
