"""The files under deploy/ say what the program can do: no unknown options, no weakened units."""

import re
from pathlib import Path

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
    assert services["migrate"]["command"][0] == "migrate"
    assert "password" not in str(services["migrate"]).lower().replace("passfile", "")


def test_units_are_hardened_and_call_commands_that_exist():
    for unit in (DEPLOY / "systemd").glob("*.service"):
        text = unit.read_text()
        for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "DynamicUser=yes"):
            assert line in text, (unit, line)
        for noun in re.findall(r"^ExecStart(?:Pre)?=/usr/bin/cvars (\S+)", text, re.MULTILINE):
            assert noun in (*NOUNS, *COMMANDS)


def test_containers_do_not_run_as_root():
    for file in DEPLOY.glob("Containerfile.*"):
        text = file.read_text()
        assert "\nUSER cvars\n" in text
        assert "--require-hashes" in text
        assert "STOPSIGNAL SIGTERM" in text
