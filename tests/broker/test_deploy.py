"""The files under deploy/ say what the program can do: no unknown options, no weakened units."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cvars.cli.main import COMMANDS, NOUNS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_compose_starts_two_brokers_on_one_migrated_database():
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = document["services"]
    assert {"database", "migrate", "broker-1", "broker-2"} == set(services)
    for name in ("broker-1", "broker-2"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["ports"][0].startswith("127.0.0.1:")
        mounts = dict(volume.split(":", 1) for volume in services[name]["volumes"])
        assert mounts["./state"] == "/etc/cvars-broker:ro"
        assert mounts[name] == "/var/lib/cvars-broker"  # audit log and checkpoints: its own
    assert services["migrate"]["command"][0] == "migrate"
    assert "password" not in str(services["migrate"]).lower().replace("passfile", "")


def test_units_are_hardened_and_call_commands_that_exist():
    for unit in (DEPLOY / "systemd").glob("*.service"):
        text = unit.read_text()
        for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "DynamicUser=yes"):
            assert line in text, (unit, line)
        for noun in re.findall(r"^ExecStart(?:Pre)?=/usr/bin/cvars (\S+)", text, re.MULTILINE):
            assert noun in (*NOUNS, *COMMANDS)


def test_a_mistake_is_not_tried_again():
    """Exit code 2, of a wrong configuration: a token locks after a few wrong PINs."""
    for unit in (DEPLOY / "systemd").glob("*.service"):
        assert "\nRestartPreventExitStatus=2\n" in unit.read_text(), unit


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_understands_the_units(unit, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/usr/bin/cvars", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def pins(file):
    """What a lock file pins: name -> version, markers and hashes."""
    blocks = re.split(r"\n(?=\S)", file.read_text().strip())
    return {block.partition("==")[0]: block for block in blocks}


def test_images_get_what_runs_and_nothing_that_tests():
    """deploy/requirements.lock: the part of requirements.lock that the program and its broker extras need."""
    mine, all_of_it = pins(DEPLOY / "requirements.lock"), pins(DEPLOY.parent / "requirements.lock")
    assert {name: all_of_it.get(name) for name in mine} == mine
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["pkcs11"] + extras["postgres"] + extras["rego"]
    names = {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in wanted}
    assert names <= set(mine)
    assert not {"pytest", "hypothesis", "atheris", "hatchling"} & set(mine)


def test_containers_do_not_run_as_root():
    for file in DEPLOY.glob("Containerfile.*"):
        text = file.read_text()
        assert "deploy/requirements.lock" in text
        assert "\nUSER cvars\n" in text
        assert "--require-hashes" in text
        assert "STOPSIGNAL SIGTERM" in text
