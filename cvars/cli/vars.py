"""``cvars vars``: read and change variables through the call boundary of a running component."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvars.cli.later import add_missing
from cvars.cli.output import SPEECH, JsonOption, QuietOption, VerboseOption, emit, not_yet, plain, say, table
from cvars.cli.places import read_bytes, unix_path
from cvars.errors import CvarsError, ExitCode, OutsideFailure, UsageMistake

if TYPE_CHECKING:
    from cvars.lab.driver import VariableDriver

app = typer.Typer(no_args_is_help=True, help="List, read, set and delete variables of a live guest.")

GuestOption = Annotated[str | None, typer.Option("--guest", help="unix:PATH of a running component.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="A sealed store, offline: not yet.")]
FdOption = Annotated[Path | None, typer.Option("--fd", help="A plain variable file: not yet.")]
NameArgument = Annotated[str, typer.Argument(help="BootOrder, NAME-GUID or GUID-NAME.")]


class Refused(CvarsError):
    """The service answered with an error status: its name comes first."""

    reason = "variable.refused"
    exit_code = ExitCode.NO


@app.command("list")
def list_(
    guest: GuestOption = None,
    store: StoreOption = None,
    fd: FdOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """List all variables.

    Example: cvars vars list --guest unix:/run/user/1000/cvars/guest.sock
    """
    from cvars.formats.meaning import meaning  # noqa: PLC0415
    from cvars.formats.names import attribute_words, guid_word  # noqa: PLC0415

    with _firmware(guest, store, fd) as firmware:
        found = [(key, *firmware.get(key)) for key in firmware.walk()]
    rows = [
        (k.name, guid_word(k.vendor_guid), attribute_words(a), f"{len(d):6}", meaning(k, d)) for k, a, d in found
    ]
    table(("NAME", "GUID", "ATTRIBUTES", " BYTES", "VALUE"), rows)
    emit(
        "cvars.vars.list/1",
        {
            "variables": [
                {"name": k.name, "guid": str(k.vendor_guid), "attributes": a, "data": d.hex()} for k, a, d in found
            ]
        },
        simulated=SPEECH.simulated,
    )


@app.command()
def get(
    name: NameArgument,
    guest: GuestOption = None,
    store: StoreOption = None,
    fd: FdOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write the value's bytes to standard output.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Print one variable. Exit code 1: there is no such variable.

    Example: cvars vars get BootOrder --guest unix:guest.sock --raw
    """
    from cvars.formats.meaning import meaning  # noqa: PLC0415
    from cvars.formats.names import attribute_words, guid_word, parse_name  # noqa: PLC0415

    key = parse_name(name)
    with _firmware(guest, store, fd) as firmware:
        attributes, data = firmware.get(key)
    if raw and not SPEECH.as_json:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    say(f"Name        {plain(key.name)}")
    say(f"GUID        {key.vendor_guid} ({guid_word(key.vendor_guid)})")
    say(f"Attributes  {attribute_words(attributes)} ({attributes:#x})")
    say(f"Bytes       {len(data)}")
    say(f"Value       {plain(meaning(key, data))}")
    emit(
        "cvars.vars.get/1",
        {"name": key.name, "guid": str(key.vendor_guid), "attributes": attributes, "data": data.hex()},
        simulated=SPEECH.simulated,
    )


@app.command("set")
def set_(
    name: NameArgument,
    file: Annotated[
        Path, typer.Argument(help="The value's bytes; with AT in --attributes a signed update; -: standard input.")
    ],
    guest: GuestOption = None,
    store: StoreOption = None,
    fd: FdOption = None,
    attributes: Annotated[
        str, typer.Option("--attributes", help="Words or a number: NV,BS,RT (default), NV,BS,RT,AT, 0x7.")
    ] = "NV,BS,RT",
    append: Annotated[bool, typer.Option("--append", help="Append to the value.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Set one variable to the bytes of a file.

    Example: cvars vars set BootOrder order.bin --guest unix:guest.sock
    """
    from cvars.formats.names import parse_attributes, parse_name  # noqa: PLC0415

    key = parse_name(name)
    bits = parse_attributes(attributes) | (0x40 if append else 0)
    data = read_bytes(file)
    if not data:
        raise UsageMistake(
            f"{file} is empty: setting it would delete {key.name}", hint=f"cvars vars delete {name}"
        )
    with _firmware(guest, store, fd) as firmware:
        firmware.set(key, bits, data)
    say(f"{key.name}: {len(data)} bytes {'appended' if append else 'set'}")
    emit(
        "cvars.vars.set/1",
        {"name": key.name, "guid": str(key.vendor_guid), "bytes": len(data)},
        simulated=SPEECH.simulated,
    )


@app.command()
def delete(
    name: NameArgument,
    guest: GuestOption = None,
    store: StoreOption = None,
    fd: FdOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Delete one variable that needs no signature. Exit code 1: there is none, or the service refuses.

    Example: cvars vars delete Boot0001 --guest unix:guest.sock
    """
    from cvars.formats.names import parse_name  # noqa: PLC0415

    key = parse_name(name)
    with _firmware(guest, store, fd) as firmware:
        firmware.delete(key)
    say(f"{key.name}: deleted")
    emit("cvars.vars.delete/1", {"name": key.name, "guid": str(key.vendor_guid)}, simulated=SPEECH.simulated)


@contextmanager
def _firmware(guest: str | None, store: Path | None, fd: Path | None) -> Iterator["VariableDriver"]:
    """A small guest that boots on the component, asks, and powers off."""
    from cvars.lab.driver import StatusError, VariableDriver  # noqa: PLC0415
    from svsm_bridge.transports.client import GuestClient, ServerGone, TransportError  # noqa: PLC0415
    from svsm_bridge.transports.guest import CallFailed  # noqa: PLC0415

    if store is not None or fd is not None:
        not_yet("cvars vars on --store or --fd")
    if guest is None:
        raise UsageMistake("which guest?", hint="--guest unix:PATH, as `cvars guest run` prints it")
    path = unix_path(guest)
    SPEECH.simulated = True
    try:
        client = GuestClient.start(path)
        try:
            yield VariableDriver(client.mm_request)
        finally:
            client.close()
    except StatusError as error:
        raise Refused(f"{error.name}: {str(error).partition(':')[0]}", where=guest) from error
    except (ServerGone, CallFailed) as error:
        raise OutsideFailure(str(error), where=guest, hint="is `cvars guest run` still there?") from error
    except TransportError as error:
        raise OutsideFailure(f"the component refused the connection: {error}", where=guest) from error


add_missing(app, "vars")
