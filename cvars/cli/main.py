"""The ``cvars`` command: gathers the nouns and gives every ending its exit code."""

import importlib
import os
import sys
import traceback
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from cvars import __version__
from cvars.cli.later import LATER, noun_app
from cvars.cli.output import SPEECH, fail, say
from cvars.errors import CvarsError, ExitCode, OutsideFailure

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Persistent UEFI variables for confidential VMs, on a host that only ever stores ciphertext.",
)

#: noun modules of this package, each with an ``app``; and single commands, each with a function ``command``
NOUNS: Final[tuple[str, ...]] = (
    "attest",
    "audit",
    "broker",
    "guest",
    "profile",
    "store",
    "vars",
)
COMMANDS: Final[tuple[str, ...]] = (
    "aproxy",
    "demo",
    "replay",
)


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback shape
    if value:
        say(f"cvars {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _version_asked: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Gather the nouns."""


for noun in NOUNS:
    app.add_typer(importlib.import_module(f"cvars.cli.{noun}").app, name=noun)
for noun in LATER:
    if noun not in NOUNS:
        app.add_typer(noun_app(noun), name=noun)
for name in COMMANDS:
    app.command(name)(importlib.import_module(f"cvars.cli.{name}").command)


def run() -> None:
    """Run the command line; every way out has one of the exit codes of `errors.ExitCode`."""
    SPEECH.command = _command(sys.argv[1:])
    try:
        code = app(prog_name="cvars", standalone_mode=False)
    except CvarsError as error:
        fail(error)
    except TyperException as error:
        SPEECH.as_json |= "--json" in sys.argv[1:]  # the mistake may stand before it
        if type(error).__name__ == "NoArgsIsHelpError":  # a noun alone: its help, and nothing was done
            say(error.format_message(), err=True)
            raise SystemExit(int(ExitCode.USAGE)) from None
        fail(_usage(error))
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(int(ExitCode.OUTSIDE)) from None  # nobody reads what we say; typer would say 1, a "no"
    except OSError as error:
        fail(OutsideFailure(f"{error.strerror or error}", where=str(error.filename or "")))
    except Exception as bug:
        if SPEECH.verbose:
            traceback.print_exc()
        fail(
            CvarsError(
                f"internal error: {type(bug).__name__}: {bug}",
                reason="internal",
                exit_code=ExitCode.BUG,
            )
        )
    raise SystemExit(code if isinstance(code, int) else 0)


def _command(arguments: list[str]) -> str:
    """``cvars`` and the leading words of ``arguments`` that name a command."""
    found: object = get_command(app)
    words = ["cvars"]
    for word in arguments:
        found = getattr(found, "commands", {}).get(word)
        if found is None:
            break
        words.append(word)
    return " ".join(words)


def _usage(error: TyperException) -> CvarsError:
    return CvarsError(error.format_message(), reason="usage", exit_code=ExitCode.USAGE)
