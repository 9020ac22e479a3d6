"""The component as a process, as an operator runs it: ready, questions, SIGTERM, fencing, refusal."""

import json
import subprocess
import sys
import time

from cvars.lab.scenario import bundled


def cvars(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "cvars", *map(str, arguments)],
        check=False,
        capture_output=True,
        input=stdin,
        timeout=60,
    )


def test_variables_of_a_running_guest_from_the_command_line(machine):
    component, socket = machine.start("a", "--trace", str(machine.folder / "trace.jsonl"))
    assert component.answer()["secure_boot"] == "setup"  # P20: never silent
    at = ("--guest", f"unix:{socket}")
    done = json.loads(cvars("vars", "set", "BootOrder", "-", "--json", *at, stdin=b"\1\0").stdout)
    assert (done["schema"], done["simulated"]) == ("cvars.vars.set/1", True)
    assert cvars("vars", "get", "BootOrder", "--raw", *at).stdout == b"\1\0"
    listed = json.loads(cvars("vars", "list", "--json", *at).stdout)
    assert (listed["schema"], listed["simulated"]) == ("cvars.vars.list/1", True)
    got = json.loads(cvars("vars", "get", "BootOrder", "--json", *at).stdout)
    assert (got["schema"], got["simulated"], got["data"]) == ("cvars.vars.get/1", True, "0100")
    assert [v["data"] for v in listed["variables"] if v["name"] == "BootOrder"] == ["0100"]
    assert cvars("vars", "set", "BootOrder", "-", "--append", *at, stdin=b"\2\0").returncode == 0
    assert cvars("vars", "get", "BootOrder", "--raw", *at).stdout == b"\1\0\2\0"
    done = json.loads(cvars("vars", "delete", "BootOrder", "--json", *at).stdout)
    assert (done["schema"], done["simulated"]) == ("cvars.vars.delete/1", True)
    gone = cvars("vars", "get", "BootOrder", *at)
    assert gone.returncode == 1
    assert gone.stderr.startswith(b"error: NOT_FOUND")
    refused = cvars("vars", "set", "SecureBoot", "-", "--attributes", "BS,RT", *at, stdin=b"\1")
    assert refused.returncode == 1
    assert b"WRITE_PROTECTED" in refused.stderr
    assert component.stop() == 0
    assert not socket.exists()
    trace = [json.loads(line) for line in (machine.folder / "trace.jsonl").read_text().splitlines()]
    assert trace[-1]["kind"] == "component.stopped"
    assert trace[-1]["clean"] is True
    assert not any("data" in event or "value" in event for event in trace)


def test_a_scenario_is_played_by_a_guest_of_its_own_and_then_the_power_goes(machine):
    (machine.folder / "first.jsonl").write_text(bundled("demo-first-boot"))
    component, _ = machine.start("a", "--scenario", str(machine.folder / "first.jsonl"))
    assert component.wait(30) == 0
    (machine.folder / "read.jsonl").write_text(bundled("demo-read-back"))
    lines = bundled("demo-read-back").splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"reply": "00" * 40})
    (machine.folder / "wrong.jsonl").write_text("\n".join(lines))
    component, _ = machine.start("wrong", "--scenario", str(machine.folder / "wrong.jsonl"))
    assert component.wait(30) == 1  # the guest's verdict is the command's, and the power went all the same
    component, socket = machine.start("b")
    played = cvars("guest", "play", machine.folder / "read.jsonl", "--connect", f"unix:{socket}")
    assert played.returncode == 0, played.stdout
    steps = [json.loads(line) for line in bundled("demo-read-back").splitlines()]
    steps[-1]["reply"] = steps[-1]["reply"][:-2] + "ee"
    changed = "".join(json.dumps(step) + "\n" for step in steps).encode()
    other = cvars("guest", "play", "-", "--connect", f"unix:{socket}", stdin=changed)
    assert other.returncode == 1
    assert b"another answer" in other.stdout


def test_a_fenced_component_ends_by_itself_with_exit_code_1(machine):
    first, _ = machine.start("a")
    second, _ = machine.start("b", "--takeover", code=4)  # the host's own lock on the blob stops it first
    assert b"locked by a running guest" in second.err.read_bytes()
    (machine.folder / "clone.fd").write_bytes((machine.folder / "vm.fd").read_bytes())
    refused, _ = machine.start("c", "--store", str(machine.folder / "clone.fd"), code=1)
    assert json.loads(refused.out.read_text())["reason"] == "anchor.leased"
    taken, _ = machine.start("d", "--takeover", "--store", str(machine.folder / "clone.fd"))
    assert first.wait(40) == 1
    assert taken.stop() == 0


def test_a_component_that_is_told_to_stop_while_it_boots_gives_its_lease_back(machine):
    """SIGTERM at several moments of a boot: the next boot is never kept out by a lease that nobody holds."""
    for number, delay in enumerate((0.4, 0.7, 1.0, 1.3)):
        component = machine.launch(str(number))
        time.sleep(delay)
        assert component.stop() in (0, -15)
        if component.popen.returncode == -15:
            continue  # before the handler was there: nothing had been asked of the broker
        retry, _ = machine.start(f"again-{number}")
        assert retry.stop() == 0


def test_the_measured_configuration_can_only_be_made_stricter(machine):
    component, _ = machine.start("a")
    old = (machine.folder / "vm.fd").read_bytes()
    assert component.stop() == 0
    (machine.folder / "vm.fd").write_bytes(old)
    refused, _ = machine.start("b", "--on-rollback", "refuse", code=1)
    assert json.loads(refused.out.read_text())["reason"] == "store.rolled_back"
    repaired, _ = machine.start("c")
    assert repaired.stop() == 0
