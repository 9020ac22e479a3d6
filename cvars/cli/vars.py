"""``cvars vars``: variables of a running guest, through the call boundary, or of a store that no guest runs on."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvars.cli.later import add_missing
from cvars.cli.output import SPEECH, JsonOption, QuietOption, VerboseOption, emit, not_yet, plain, say, table
from cvars.cli.places import read_bytes, unix_path
from cvars.errors import CvarsError, ExitCode, OutsideFailure, UsageMistake

if TYPE_CHECKING:
    from cvars.lab.driver import VariableDriver
    from cvars.variables.model import Key, Variable

app = typer.Typer(
    no_args_is_help=True, help="List, read, set and delete variables of a live guest, or of a store at rest."
)

GuestOption = Annotated[str | None, typer.Option("--guest", help="unix:PATH of a running component.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="A sealed store that no guest runs on.")]
KeyOption = Annotated[Path | None, typer.Option("--key-file", help="Key of --store (- for standard input).")]
BypassOption = Annotated[
    bool,
    typer.Option(
        "--bypass-authentication", help="With --store: change an authenticated variable unsigned. Needs --trace."
    ),
]
TraceOption = Annotated[Path | None, typer.Option("--trace", help="With --store: append events as JSON Lines.")]
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
    key_file: KeyOption = None,
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

    if store is not None:
        found = [(k, v.attributes, v.data) for k, v in _stored(store, key_file, guest, fd).items()]
    else:
        with _firmware(guest, key_file, fd) as firmware:
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
        simulated=bool(SPEECH.simulated),
    )


@app.command()
def get(
    name: NameArgument,
    guest: GuestOption = None,
    store: StoreOption = None,
    key_file: KeyOption = None,
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
    if store is not None:
        held = _stored(store, key_file, guest, fd).get(key)
        if held is None:
            raise Refused(f"NOT_FOUND: {key.name}", where=str(store), hint="cvars vars list shows what there is")
        attributes, data = held.attributes, held.data
    else:
        with _firmware(guest, key_file, fd) as firmware:
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
        simulated=bool(SPEECH.simulated),
    )


@app.command("set")
def set_(
    name: NameArgument,
    file: Annotated[
        Path, typer.Argument(help="The value's bytes; with AT in --attributes a signed update; -: standard input.")
    ],
    guest: GuestOption = None,
    store: StoreOption = None,
    key_file: KeyOption = None,
    fd: FdOption = None,
    attributes: Annotated[
        str, typer.Option("--attributes", help="Words or a number: NV,BS,RT (default), NV,BS,RT,AT, 0x7.")
    ] = "NV,BS,RT",
    append: Annotated[bool, typer.Option("--append", help="Append to the value.")] = False,
    bypass: BypassOption = False,
    trace: TraceOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Set one variable to the bytes of a file.

    Example: cvars vars set BootOrder order.bin --guest unix:guest.sock
    """
    from cvars.formats.names import parse_attributes, parse_name  # noqa: PLC0415

    key = parse_name(name)
    bits = parse_attributes(attributes)
    data = read_bytes(file)
    if not data:
        raise UsageMistake(
            f"{file} is empty: setting it would delete {key.name}", hint=f"cvars vars delete {name}"
        )
    members: dict[str, Any] = {"name": key.name, "guid": str(key.vendor_guid), "bytes": len(data)}
    if store is not None:
        from cvars.variables.manage import written  # noqa: PLC0415

        def change(held: "Mapping[Key, Variable]") -> "Variable":
            return written(held.get(key), bits, data, append=append)

        members |= _managed(store, key_file, (guest, fd), key, change, bypass=bypass, trace=trace)
    else:
        from cvars.variables.names import APPEND  # noqa: PLC0415
        from cvars.variables.placeholder import placeholder  # noqa: PLC0415

        if words := placeholder(key, data):  # for a store at rest the management path says so
            raise Refused(
                f'{key.name} would trust a placeholder key: its certificate says "{words}" (P20)',
                where=str(file),
                hint="enrol a key whose private half is yours alone",
                reason="management.refused",
            )
        with _firmware(guest, key_file, fd) as firmware:
            firmware.set(key, bits | APPEND if append else bits, data)
    say(f"{plain(key.name)}: {len(data)} bytes {'appended' if append else 'set'}")
    emit("cvars.vars.set/1", members, simulated=bool(SPEECH.simulated))


@app.command()
def delete(
    name: NameArgument,
    guest: GuestOption = None,
    store: StoreOption = None,
    key_file: KeyOption = None,
    fd: FdOption = None,
    bypass: BypassOption = False,
    trace: TraceOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Delete one variable that needs no signature. Exit code 1: there is none, or the service refuses.

    Example: cvars vars delete Boot0001 --guest unix:guest.sock
    """
    from cvars.formats.names import parse_name  # noqa: PLC0415

    key = parse_name(name)
    members: dict[str, Any] = {"name": key.name, "guid": str(key.vendor_guid)}
    if store is not None:
        members |= _managed(store, key_file, (guest, fd), key, lambda _held: None, bypass=bypass, trace=trace)
    else:
        with _firmware(guest, key_file, fd) as firmware:
            firmware.delete(key)
    say(f"{plain(key.name)}: deleted")
    emit("cvars.vars.delete/1", members, simulated=bool(SPEECH.simulated))


def _stored(store: Path, key_file: Path | None, guest: str | None, fd: Path | None) -> "dict[Key, Variable]":
    """The variables of a store at rest."""
    from cvars.cli.store import read_image, read_key  # noqa: PLC0415
    from cvars.component.managing import stored_variables  # noqa: PLC0415

    return stored_variables(read_image(store), read_key(_one_source(key_file, guest, fd)))


def _managed(
    store: Path,
    key_file: Path | None,
    others: tuple[str | None, Path | None],
    key: "Key",
    change: "Callable[[Mapping[Key, Variable]], Variable | None]",
    *,
    bypass: bool,
    trace: Path | None,
) -> dict[str, Any]:
    """Change one variable of a store at rest; what the object says of it."""
    import os  # noqa: PLC0415
    import time  # noqa: PLC0415

    from cvars.cli.store import read_key  # noqa: PLC0415
    from cvars.component.managing import manage  # noqa: PLC0415
    from cvars.component.process import open_trace  # noqa: PLC0415

    loaded = read_key(_one_source(key_file, *others))
    if bypass and trace is None:
        raise UsageMistake("a change without its signature is logged", hint="name the log: --trace FILE")
    with open_trace(trace) as events:
        done = manage(
            store,
            loaded,
            lambda held: {key: change(held)},
            bypass_authentication=bypass,
            random=os.urandom,
            clock=time.monotonic,
            trace=events,
        )
    for name in done.bypassed:
        say(f"{plain(name.name)}: changed without authentication, in the trace", err=True)
    for warning in done.warnings:
        say(warning, err=True)
    counter, root = done.point.counter, done.point.root.hex()
    if done.anchored:
        say(f"Its guest accepts this image only after: cvars broker vm rebase, to {counter} {root}")
    return {
        "sequence": counter,
        "root": root,
        "rebase": done.anchored,
        "bypassed": [name.name for name in done.bypassed],
        "warnings": list(done.warnings),
    }


def _one_source(key_file: Path | None, guest: str | None, fd: Path | None) -> Path:
    """The key file of --store, which stands alone."""
    if guest is not None or fd is not None:
        raise UsageMistake("--store, --guest and --fd exclude each other", hint="name one")
    if key_file is None:
        raise UsageMistake("a sealed store is read with its key", hint="--key-file FILE")
    return key_file


@contextmanager
def _firmware(guest: str | None, key_file: Path | None, fd: Path | None) -> Iterator["VariableDriver"]:
    """A small guest that boots on the component, asks, and powers off."""
    from cvars.lab.driver import StatusError, VariableDriver  # noqa: PLC0415
    from svsm_bridge.transports.client import GuestClient, ServerGone, TransportError  # noqa: PLC0415
    from svsm_bridge.transports.guest import CallFailed  # noqa: PLC0415

    if fd is not None:
        not_yet("cvars vars on --fd")
    if guest is None or key_file is not None:
        raise UsageMistake(
            "which guest, or which store?",
            hint="--guest unix:PATH, as `cvars guest run` prints it, or --store FILE --key-file FILE",
        )
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
