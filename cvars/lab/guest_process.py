"""The simulated guest as a process: guest memory in a memfd, calls through the component's socket."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from cvars.errors import OutsideFailure
from cvars.lab.scenario import Played, Step, play
from svsm_bridge.transports.client import GuestClient, ServerGone, TransportError
from svsm_bridge.transports.guest import CallFailed


def play_through(socket: Path, steps: list[Step], answers: Path | None) -> list[Played]:
    """Connect, play ``steps``, and write each answer to ``answers`` as it comes (flushed, for crash tests).

    Raises:
        OutsideFailure: no component there, or it went away in the middle.
    """
    played: list[Played] = []
    out = answers.open("w") if answers else None
    try:
        with closing(GuestClient.start(socket)) as guest:
            for one in play(steps, guest.mm_request, guest.reset):
                played.append(one)
                if out:
                    line = {
                        "scenario": one.step.scenario,
                        "step": one.step.number,
                        "rax": 0,
                        "reply": one.reply.hex(),
                    }
                    out.write(json.dumps(line) + "\n")
                    out.flush()
    except (ServerGone, TransportError, CallFailed) as error:
        raise OutsideFailure(
            f"the component went away: {error}", where=f"unix:{socket}", hint="is cvars guest run still there?"
        ) from error
    finally:
        if out:
            out.close()
    return played


def play_beside(socket: Path, scenario: str, codes: list[int]) -> None:
    """Start a guest process that plays ``scenario`` (its text). When it ends, SIGTERM comes here: power off.

    Its exit code is appended to ``codes``.
    """
    guest = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-m", "cvars", "guest", "play", "-", "--connect", f"unix:{socket}"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        text=True,
    )

    def wait() -> None:
        guest.communicate(scenario)
        codes.append(guest.returncode)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="scenario", daemon=True).start()
