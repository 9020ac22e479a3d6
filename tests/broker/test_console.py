"""The console in a real browser: headless Chromium (Debian's package), with a screenshot for CI."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cvars.broker.admin import Admin
from cvars.broker.app import create_app
from tests.broker.real import Server

ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts"


@pytest.fixture
def browser():
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium")
        pytest.skip("no chromium: apt-get install chromium")
    return found


def headless(browser, tmp_path, *arguments):
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return done


def test_the_console_renders_without_script_and_breaks_no_policy(browser, world, tmp_path):
    world.broker.add_vm("web-1", mode="strict")
    world.guest("web-1").boot(provision=True)
    with pytest.raises(Exception):  # noqa: B017 - a decision to show
        world.guest("web-1", report_id="02" * 32).boot()
    server = Server(create_app(world.broker, admin=Admin(allow_all=True)))
    try:
        ARTEFACTS.mkdir(exist_ok=True)
        picture = ARTEFACTS / "console.png"
        picture.unlink(missing_ok=True)
        done = headless(
            browser, tmp_path, "--enable-logging=stderr", f"--screenshot={picture}", f"{server.url}/console"
        )
        assert "Content Security Policy" not in done.stderr
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 10_000
        page = headless(browser, tmp_path, "--dump-dom", f"{server.url}/console").stdout
        assert "ANCHOR-LEASE" in page
        assert "web-1" in page
        detail = headless(browser, tmp_path, "--dump-dom", f"{server.url}/console/vm/web-1").stdout
        assert "provision" in detail
    finally:
        server.stop()


def test_the_console_fits_a_narrow_screen(browser, world, tmp_path):
    world.broker.add_vm("web-1", mode="strict")
    server = Server(create_app(world.broker, admin=Admin(allow_all=True)))
    try:
        picture = tmp_path / "narrow.png"
        headless(browser, tmp_path, "--window-size=400,800", f"--screenshot={picture}", f"{server.url}/console")
        assert picture.exists()
    finally:
        server.stop()
