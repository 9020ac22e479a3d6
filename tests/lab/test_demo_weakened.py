"""A demo with one check taken out says so: its verdicts rest on the checks. It cannot pass for a real one."""

import json
import os
import subprocess
import sys

import pytest

from cvars.cli.weakened import SWITCH
from cvars.errors import UsageMistake

CHECKS = [("record-authentication", 6), ("anchor-comparison", 7), ("vm-binding", 8), ("lease", 9)]


@pytest.mark.parametrize(("check", "step"), CHECKS)
def test_with_one_check_taken_out_its_step_fails_and_the_demo_ends_1(run_demo, tmp_path, monkeypatch, check, step):
    monkeypatch.setenv(SWITCH, "1")
    ran = run_demo(tmp_path / "lab", "tdx", "--test-without", check)
    assert ran.code == 1
    assert ran.step(step)["ok"] is False
    assert ran.step(step)["observed"] != ran.step(step)["expected"]
    assert [s["ok"] for s in ran.report["steps"][: step - 1]] == [True] * (step - 1)
    assert ran.report["weakened"] == [check]
    assert f"WEAKENED for a test: without {check}" in (ran.folder / "host-view.html").read_text()
    broker = (ran.folder / "processes" / "01-broker.out").read_text()
    assert ("WEAKENED for a test: without lease" in broker) is (check == "lease")
    traces = [path.read_text() for path in (ran.folder / "component").glob("*.trace.jsonl")]
    assert all(('"component.weakened"' in trace) is (check != "lease") for trace in traces)


def test_no_environment_that_asks_for_it_no_weakened_run(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    for command in ("demo --out lab", "guest run --tee snp --store s --broker http://127.0.0.1:1 --init-data i"):
        done = subprocess.run(
            [sys.executable, "-m", "cvars", *command.split(), "--test-without", "vm-binding"],
            check=False, cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"{SWITCH} is not 1" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_weakened_component_says_so_wherever_it_speaks(machine, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    trace = machine.folder / "trace.jsonl"
    component, _ = machine.start("a", "--test-without", "vm-binding", "--trace", str(trace))
    assert component.answer()["weakened"] == ["vm-binding"]
    assert "WEAKENED for a test: without vm-binding" in component.err.read_text()
    assert component.stop() == 0
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [e["checks"] for e in events if e["kind"] == "component.weakened"] == [["vm-binding"]]
    component, _ = machine.start("b", "--trace", str(machine.folder / "whole.jsonl"))
    assert component.answer()["weakened"] == []
    assert "WEAKENED" not in component.err.read_text()
    assert component.stop() == 0
    assert "weakened" not in (machine.folder / "whole.jsonl").read_text()


def test_hardware_that_is_not_simulated_never_boots_weakened(lab, monkeypatch):
    """The processor is the simulated one, said to be a real one."""
    guest = lab.guest(skip_checks=frozenset({"vm-binding"}))
    hardware = guest.launch()
    monkeypatch.setattr(type(hardware), "simulated", False)
    with pytest.raises(UsageMistake, match="only a simulated component"):
        guest.start(hardware)
    assert "attest.accepted" not in lab.trace.kinds(guest)
    monkeypatch.undo()
    guest.start(hardware)
    assert "component.weakened" in lab.trace.kinds(guest)
