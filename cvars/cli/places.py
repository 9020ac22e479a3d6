"""Where a user's files live, and how a path on the command line is read (ux: "Configuration and files")."""

import os
import sys
from pathlib import Path

import typer

from cvars.errors import BadInput, OutsideFailure, UsageMistake


def state_dir() -> Path:
    """``$XDG_STATE_HOME/cvars``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cvars"


def runtime_dir() -> Path:
    """``$XDG_RUNTIME_DIR/cvars``, or a folder of our own below the state folder."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "cvars" if base else state_dir() / "run"


def unix_path(text: str) -> Path:
    """The path in ``unix:PATH``.

    Raises:
        UsageMistake: another kind of address, or a path too long for a socket (107 bytes).
    """
    scheme, colon, path = text.partition(":")
    if scheme != "unix" or not colon or not path:
        raise UsageMistake(f"{text!r} is not unix:PATH")
    if len(os.fsencode(path)) > 107:
        raise UsageMistake(f"a socket's path has at most 107 bytes: {path}", hint="use a shorter folder")
    return Path(path)


def present(value: Path | list[Path] | None) -> Path | list[Path] | None:
    """For `typer`'s ``callback``: files that are there, or ``-``.

    Raises:
        typer.BadParameter: one is not there.
    """
    for path in value if isinstance(value, list) else [value]:
        if path is not None and str(path) != "-" and not path.exists():
            raise typer.BadParameter(f"{path} does not exist")
    return value


def read_bytes(path: Path) -> bytes:
    """A file's bytes; ``-`` is standard input, once."""
    if str(path) == "-":
        if sys.stdin.closed:
            raise UsageMistake("standard input can be read once", hint="give one of the files by its name")
        with sys.stdin.buffer as stdin:
            return stdin.read()
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageMistake(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UsageMistake(f"{path} is a folder") from None
    except OSError as error:
        raise OutsideFailure(f"cannot be read: {error.strerror}", where=str(path)) from error


def read_text(path: Path) -> str:
    """A file's UTF-8 text; ``-`` is standard input."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadInput("not UTF-8 text", where=str(path)) from None
