"""How every command speaks: text for people, one JSON object for programs, three lines for an error."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console

from cvars.cli.advice import where_and_hint
from cvars.errors import CvarsError, ExitCode, NotYet
from cvars.trace import SIMULATED_NOTE

__all__ = [
    "SIMULATED_NOTE",
    "SPEECH",
    "JsonOption",
    "QuietOption",
    "VerboseOption",
    "answer",
    "emit",
    "fail",
    "not_yet",
    "plain",
    "say",
    "table",
]


@dataclass(slots=True)
class Speech:
    """What -v, -q and --json asked for. One per process; set by the options' callbacks.

    ``command``: the words of the command that runs, for its errors.
    ``simulated``: the command rests on simulated evidence, so that its error says so too; None: not known yet.
    """

    as_json: bool = False
    simulated: bool | None = None
    command: str = "cvars"
    quiet: bool = False
    verbose: bool = False


SPEECH: Final = Speech()


def _set(name: str) -> Callable[[bool], bool]:
    def callback(value: bool) -> bool:  # noqa: FBT001 - typer's callback shape
        if value:
            setattr(SPEECH, name, True)
        return value

    return callback


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", callback=_set("as_json"), is_eager=True)
]
QuietOption = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Print nothing but errors.", callback=_set("quiet"), is_eager=True),
]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more.", callback=_set("verbose"), is_eager=True)
]


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line for people; nothing under ``--json`` or ``-q``."""
    if not (SPEECH.as_json or SPEECH.quiet) or err:
        print(text, file=sys.stderr if err else sys.stdout, flush=True)


def plain(value: object) -> str:
    """``value`` as text without control characters or surrogates: names and values are the guest's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns, two spaces apart, cut to 100 characters."""
    if SPEECH.as_json or SPEECH.quiet:
        return
    cells = [[plain(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        say("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()[:100])


def emit(schema: str, members: Mapping[str, Any], *, simulated: bool | None = False) -> None:
    """Print the command's one JSON object, when asked for: ``schema`` is ``cvars.NOUN.VERB/1``.

    ``simulated``: simulated evidence was used; None: nobody looked.
    """
    if SPEECH.as_json:
        head: dict[str, Any] = {"schema": schema, "simulated": simulated}
        print(json.dumps(head | dict(members), indent=1), flush=True)  # noqa: T201


def fail(error: CvarsError) -> NoReturn:
    """Print ``error`` in its three lines, with --json as an object too, and end with its exit code."""
    where, hint = where_and_hint(error, SPEECH.command)
    emit(
        "cvars.error/1",
        {
            "error": type(error).__name__,
            "reason": error.reason,
            "message": error.message,
            "where": where,
            "hint": hint,
        },
        simulated=SPEECH.simulated,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(plain(error.message), markup=False)
    console.print("  " + plain(where), markup=False)
    console.print("  " + plain(hint), markup=False)
    raise SystemExit(int(error.exit_code))


def not_yet(what: str) -> NoReturn:
    """Answer for a command that a later issue completes: exit code 2, never a pretence."""
    raise NotYet(f"{what}: not yet")


def answer(*, yes: bool) -> NoReturn:
    """End as `diff` and `grep` do: 0 is yes, 1 is a considered no."""
    raise typer.Exit(int(ExitCode.OK if yes else ExitCode.NO))
