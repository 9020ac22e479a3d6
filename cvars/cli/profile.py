"""`cvars profile`: what each profile decides where the rules leave a choice."""

# ruff: noqa: PLC0415 - the rooms are imported when the command runs: `cvars --help` stays fast

from enum import Enum
from typing import Annotated, Any

import typer

from cvars.cli.output import JsonOption, QuietOption, VerboseOption, emit, say, table

app = typer.Typer(no_args_is_help=True, help="Choice points of the variable service.")


@app.callback()
def profile() -> None:
    """Choice points of the variable service."""


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="spec, edk2, qemu or sct.")] = "spec",
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Print every choice point with its rule id and value; * marks what differs from profile spec.

    Example: cvars profile show edk2
    """
    from cvars.variables.profile import SPEC, profile_named

    chosen = profile_named(name)
    rows = []
    for (rule, option, what, value), (*_, standard) in zip(chosen.choices(), SPEC.choices(), strict=True):
        mark = "*" if value != standard else ""
        rows.append((rule, option, _plain(value), mark, what))
    say(f"profile {chosen.name}")
    table(("RULE", "CHOICE", "VALUE", "", "DECIDES"), rows)
    emit(
        "cvars.profile.show/1",
        {
            "profile": chosen.name,
            "choices": [
                {"rule": rule, "name": option, "value": _plain(value), "decides": what}
                for rule, option, what, value in chosen.choices()
            ],
        },
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - the value of any choice point
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name
    return value
