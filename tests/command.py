"""The `cvars` command in a process of its own that is forked from here: real streams, no second import."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import cvars.component.process
import cvars.store.offline
import cvars.variables.manage  # noqa: F401 - here once, not in each child
from cvars.cli import main

SECONDS = 60


def forked(text: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run ``cvars ARGUMENTS`` with ``text`` as standard input."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(text)
        given.seek(0)
        command = ["cvars", *map(str, arguments)]
        child = os.fork()
        if child == 0:
            _be(command, given.fileno(), out.fileno(), err.fileno())
        deadline = time.monotonic() + SECONDS
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise subprocess.TimeoutExpired(command, SECONDS)
            time.sleep(0.005)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(ended[1]), out.read(), err.read())


def said(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """``cvars ARGUMENTS``, its output as text; with ``options`` of `subprocess.run`: started anew."""
    if options:
        start = [sys.executable, "-m", "cvars", *map(str, arguments)]
        return subprocess.run(start, check=False, capture_output=True, text=True, timeout=SECONDS, **options)
    done = forked(b"", *arguments)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def _be(command: list[str], *streams: int) -> None:
    code = 70
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = os.fdopen(0, "r", closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = command
        main.run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
