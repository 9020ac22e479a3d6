"""``cvars demo``: the whole story in ten steps."""

from pathlib import Path
from typing import Annotated

import typer

from cvars.cli.output import SIMULATED_NOTE, SPEECH, JsonOption, QuietOption, VerboseOption, answer, emit, say
from cvars.cli.weakened import tests_only, weakened_note
from cvars.errors import UsageMistake


def command(
    tee: Annotated[str, typer.Option("--tee", help="snp or tdx (simulated).")] = "snp",
    out: Annotated[Path, typer.Option("--out", help="The lab folder; an earlier demo's is replaced.")] = Path(
        "cvars-demo"
    ),
    test_without: Annotated[str | None, typer.Option("--test-without", hidden=True)] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Show that it works: a guest keeps its variables on a hostile host, in ten steps.

    Broker, trusted component and guest are processes of their own, the host is a folder. Needs no root, no
    network beyond loopback, no confidential hardware. Exit code 1: a step did not go as expected.

    Example: cvars demo --tee tdx
    """
    SPEECH.simulated = True
    from cvars.lab.demo import CHECKS, run  # noqa: PLC0415

    if tee not in ("snp", "tdx"):
        raise UsageMistake(f"--tee is one of snp, tdx, not {tee!r}")
    without = tests_only([test_without] if test_without else [], CHECKS)
    report = run(tee, out, without=test_without, tell=say)
    say()
    say(f"{report.host_saw:<70} {out / 'host-view.html'}")
    say(f"Everything that crossed the call boundary, for Wireshark or replay:     {out / 'boot.pcap'}")
    say(SIMULATED_NOTE)
    if without:
        say(weakened_note(without))
    emit("cvars.demo/1", report.as_json(), simulated=True)
    answer(yes=report.ok)
