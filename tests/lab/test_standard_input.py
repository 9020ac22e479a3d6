"""- is standard input wherever a command takes a file (ux: "Commands")."""

import json

import pytest

from cvars.lab.scenario import bundled
from tests.command import forked as piped


@pytest.fixture
def store(tmp_path):
    """A store and its key file: (image path, key path)."""
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"store_id": "01" * 16, "vm_id": "vm", "kek": "02" * 32}))
    image = tmp_path / "vm.fd"
    assert piped(b"", "store", "create", image, "--size", "256K", "--key-file", key).returncode == 0
    return image, key


def test_a_store_is_read_from_standard_input(store):
    image, key = store
    for command in (
        ("audit", "host-view", "-"),
        ("store", "inspect", "-"),
        ("store", "fsck", "-", "--key-file", key),
    ):
        done = piped(image.read_bytes(), *command, "--json")
        assert done.returncode == 0, (command, done.stderr)
        by_name = json.loads(piped(b"", *[image if c == "-" else c for c in command], "--json").stdout)
        assert json.loads(done.stdout.replace(b'"name": "-"', f'"name": "{image}"'.encode())) == by_name
    assert piped(b"noise", "audit", "host-view", "-").returncode == 1


def test_a_key_is_read_from_standard_input_and_nothing_twice(store):
    image, key = store
    assert piped(key.read_bytes(), "store", "fsck", image, "--key-file", "-").returncode == 0
    done = piped(b"02" * 32, "store", "fsck", image, "--key-file", "-")
    assert done.returncode == 3
    assert b"02" * 32 not in done.stderr
    done = piped(image.read_bytes(), "store", "fsck", "-", "--key-file", "-")
    assert done.returncode == 2
    assert b"standard input can be read once" in done.stderr


def test_a_guest_takes_init_data_or_a_scenario_from_standard_input(machine):
    init_data = (machine.folder / "vm.toml").read_bytes()
    (machine.folder / "first.jsonl").write_text(bundled("demo-first-boot"))
    run = (
        "guest", "run", "--tee", "tdx", "--store", machine.folder / "vm.fd", "--broker", machine.url,
        "--hardware", machine.folder / "hardware", "--listen", f"unix:{machine.sockets}/g.sock", "--json",
    )  # fmt: skip
    done = piped(init_data, *run, "--init-data", "-", "--scenario", machine.folder / "first.jsonl")
    assert done.returncode == 0, done.stderr
    read_back = bundled("demo-read-back").encode()
    done = piped(read_back, *run, "--init-data", machine.folder / "vm.toml", "--scenario", "-")
    assert done.returncode == 0, done.stderr
    assert b"answered as recorded" in done.stderr
    both = piped(init_data, *run, "--init-data", "-", "--scenario", "-")
    assert both.returncode == 2
    assert b"standard input can be read once" in both.stderr
    assert piped(b"not init-data", *run, "--init-data", "-").returncode == 3
