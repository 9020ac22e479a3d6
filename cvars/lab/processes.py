"""Operating-system processes of a lab: each party is one, and the folder keeps what became of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvars.errors import OutsideFailure

_GRACE_S = 15.0


@dataclass(slots=True)
class Running:
    """One child process: its role, and where its standard output and error go."""

    role: str
    popen: subprocess.Popen[bytes]
    out: Path
    err: Path
    started: float
    on_end: Callable[["Running"], None]
    ended: bool = field(default=False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def wait_for(self, word: str, *, seconds: float = 30.0) -> str:
        """The first line of its standard output that contains ``word``.

        Raises:
            Ended: it ended first; the exit code and its last words are inside.
            OutsideFailure: it neither said so nor ended in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            code = self.popen.poll()
            for line in self.out.read_text(errors="replace").splitlines():
                if word in line:
                    return line
            if code is not None:
                self._end()
                raise Ended(self.role, code, self.answer(), self.err.read_text(errors="replace").strip())
            time.sleep(0.01)
        self.kill()
        raise OutsideFailure(f"the {self.role} did not become ready in {seconds:.0f} s", where=str(self.err))

    def stop(self) -> int:
        """SIGTERM and wait; SIGKILL after a grace time. Returns the exit code (negative: by signal)."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.wait(_GRACE_S)

    def kill(self) -> int:
        """SIGKILL, as a power cut, and wait."""
        self.popen.kill()
        return self.wait(_GRACE_S)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for its end; kills it after ``seconds``. Returns the exit code."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._end()
        return self.popen.returncode

    def answer(self) -> dict[str, Any]:
        """The JSON object on its standard output, empty without one."""
        try:
            found = json.loads(self.out.read_text(errors="replace"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_end(self)


class Ended(Exception):
    """A process ended before it was ready; ``answer`` is the JSON object it printed."""

    def __init__(self, role: str, code: int, answer: dict[str, Any], words: str) -> None:
        self.role = role
        self.code = code
        self.answer = answer
        self.words = words
        super().__init__(f"the {role} ended with {code}: {words.splitlines()[0] if words else 'no word'}")

    @property
    def reason(self) -> str:
        """The ``reason`` it gave, else the exit code."""
        return str(self.answer.get("reason", f"exit {self.code}"))


class Processes:
    """Starts ``cvars`` commands and writes down each one's role, command, pid, times and exit code."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "processes.jsonl"
        self._live: list[Running] = []
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, role: str, *arguments: str) -> Running:
        """Run ``cvars ARGUMENTS…`` with this interpreter; its output goes to files of this folder."""
        self._count += 1
        stem = f"{self._count:02d}-{role}"
        out, err = self._folder / f"{stem}.out", self._folder / f"{stem}.err"
        command = [sys.executable, "-m", "cvars", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment
            )
        child = Running(role, popen, out, err, time.time(), lambda done: self._ended(done, arguments))
        self._live.append(child)
        return child

    def run(self, role: str, *arguments: str, seconds: float = 60.0) -> Running:
        """Run to the end."""
        child = self.start(role, *arguments)
        child.wait(seconds)
        return child

    def stop_all(self) -> None:
        """Stop what still runs, last started first."""
        for child in reversed(list(self._live)):
            child.stop()

    def _ended(self, child: Running, arguments: tuple[str, ...]) -> None:
        if child in self._live:
            self._live.remove(child)
        line = {
            "role": child.role,
            "command": ["cvars", *arguments],
            "pid": child.pid,
            "started": child.started,
            "ended": time.time(),
            "exit_code": child.popen.returncode,
            "out": child.out.name,
        }
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
