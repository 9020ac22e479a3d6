"""Commands that the plan names and a later issue builds: each answers "not yet" with exit code 2."""

from collections.abc import Callable
from typing import Final

import typer

from cvars.cli.output import not_yet

#: noun -> verbs, as in the plan; a noun that exists elsewhere takes its missing verbs from here
LATER: Final[dict[str, tuple[str, ...]]] = {
    "attack": ("list", "run"),
    "audit": ("watch",),
    "config": ("show",),
    "lab": ("new", "up", "down", "status"),
    "machine": ("run",),
    "trace": ("show", "validate"),
    "vars": ("diff", "import", "export", "enroll", "sign", "verify", "explain"),
}
_ANYTHING: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_missing(app: typer.Typer, noun: str) -> None:
    """Give ``app`` the verbs of ``noun`` that are not there yet."""
    for verb in LATER[noun]:
        app.command(verb, context_settings=dict(_ANYTHING), help="Not yet.")(_answer(f"cvars {noun} {verb}"))


def noun_app(noun: str) -> typer.Typer:
    """An app for a noun of which nothing is there yet."""
    app = typer.Typer(no_args_is_help=True, help="Not yet.")
    app.callback()(_keep_verbs)
    add_missing(app, noun)
    return app


def _keep_verbs() -> None:
    """Not yet."""


def _answer(what: str) -> Callable[[], None]:
    def command() -> None:
        not_yet(what)

    command.__doc__ = "Not yet."
    return command
