"""``--test-without``: a check left out to see that verdicts rest on it. Simulation only, and never silent."""

import os
from collections.abc import Collection
from typing import Final

from cvars.cli.output import say
from cvars.errors import UsageMistake

#: the explicit switch; the processes of a demo inherit it
SWITCH: Final = "CVARS_SIMULATION_WEAKENED"


def tests_only(checks: Collection[str], known: Collection[str]) -> frozenset[str]:
    """The checks to leave out, said on standard error before anything starts.

    Raises:
        UsageMistake: an unknown check, or the environment does not say that this is a weakened simulation.
    """
    for check in checks:
        if check not in known:
            raise UsageMistake(f"--test-without: no check {check!r}", hint=f"one of {', '.join(sorted(known))}")
    if checks and os.environ.get(SWITCH) != "1":
        raise UsageMistake(
            "--test-without weakens a simulation for a test, and this environment does not ask for one",
            where=f"{SWITCH} is not 1",
            hint="leave the option out: every check is then made",
        )
    if checks:
        say(weakened_note(checks), err=True)
    return frozenset(checks)


def weakened_note(checks: Collection[str]) -> str:
    """One line that no reader can take for a real run's."""
    return f"WEAKENED for a test: without {', '.join(sorted(checks))}. No verdict of this run counts."
