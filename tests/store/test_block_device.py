"""A store on a real block device: a loop device, where the system lets us make one (root, Linux).

A regular file hides what a device shows: a size that `stat` does not tell, writes that end at sectors, no growing.
"""

import os
import shutil
import subprocess
import sys

import pytest

from cvars.cli import main
from cvars.errors import StoreError
from cvars.store import FileMedium, Mode
from tests.store.world import SMALL, World, blank, put, state


def losetup(*arguments: str) -> str:
    done = subprocess.run(["losetup", *arguments], check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def device(tmp_path):
    """A blank store on a loop device: its path."""
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    backing = tmp_path / "backing"
    backing.write_bytes(blank(SMALL, 512))
    name = losetup("--find", "--show", str(backing))
    yield name
    subprocess.run(["losetup", "--detach", name], check=True, timeout=20)


@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.STRICT])
@pytest.mark.rule("SS-8", "SS-11")
def test_a_store_lives_on_a_block_device(device, mode) -> None:
    world = World(mode=mode)
    for boot in range(3):
        medium = FileMedium.open(device)
        assert medium.size() == SMALL
        store = world.boot(medium=medium)
        for number in range(40):  # more than a bank holds at 512-byte frames: compactions too
            store.commit((put(f"V{number % 5}", bytes([boot, number]) * 200),))
        want = state(store)
        generation = store.generation
        store.close()
        medium.close()
    assert generation > 1
    medium = FileMedium.open(device)
    assert state(world.boot(medium=medium)) == want
    medium.close()


@pytest.mark.rule("SS-7", "SS-26")
def test_the_tools_read_a_block_device_and_a_second_writer_is_refused(device, capsys, monkeypatch) -> None:
    world = World(mode=Mode.PER_BOOT)
    medium = FileMedium.open(device)
    world.boot(medium=medium).commit((put("V", b"value"),))
    with pytest.raises(StoreError, match="locked by a running guest"):
        FileMedium.open(device)
    medium.close()
    before = FileMedium.open(device, writable=False)
    image = before.read(0, SMALL)
    before.close()
    monkeypatch.setattr(sys, "argv", ["cvars", "store", "inspect", device])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert not ended.value.code
    assert f"{SMALL} bytes" in capsys.readouterr().out
    after = FileMedium.open(device, writable=False)
    assert after.read(0, SMALL) == image
    after.close()


@pytest.mark.rule("SS-7")
def test_a_device_of_another_size_and_a_read_only_one_are_refused(tmp_path, device) -> None:
    world = World(mode=Mode.PER_BOOT)
    medium = FileMedium.open(device)
    world.boot(medium=medium).close()
    medium.close()
    whole = (tmp_path / "backing").read_bytes()
    larger = tmp_path / "larger"
    larger.write_bytes(whole + bytes(SMALL))
    name = losetup("--find", "--show", str(larger))
    try:
        medium = FileMedium.open(name)
        with pytest.raises(StoreError):
            world.boot(medium=medium)
        medium.close()
        assert larger.read_bytes() == whole + bytes(SMALL)
    finally:
        losetup("--detach", name)
    larger.write_bytes(whole)
    name = losetup("--find", "--show", "--read-only", str(larger))
    try:
        with pytest.raises(StoreError):  # some kernels say no at open, some at the first write
            world.boot(medium=FileMedium.open(name))
    finally:
        losetup("--detach", name)
