"""`cvars store`: make, describe, check, rescue sealed stores. None writes to the file it reads (SS-26)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvars.cli.output import JsonOption, QuietOption, VerboseOption, answer, emit, say, table
from cvars.cli.places import present, read_bytes
from cvars.errors import BadInput, OutsideFailure, UsageMistake

if TYPE_CHECKING:
    from cvars.store.keyfile import KeyFile

app = typer.Typer(
    no_args_is_help=True,
    help="Sealed variable stores: create, inspect, check, dump, re-key, resize, recover.",
)

ImageArgument = Annotated[
    Path,
    typer.Argument(callback=present, metavar="FILE", help="Store image (.fd, .store)."),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        callback=present,
        help="JSON or TOML with store_id, vm_id, key_version, kek (hex), or 32 raw bytes: the key alone.",
    ),
]


NeededKey = Annotated[
    Path,
    typer.Option(
        "--key-file",
        callback=present,
        help="JSON or TOML with store_id, vm_id, key_version, kek (hex), or 32 raw bytes: the key alone.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="The new image; it must not exist yet.")]


def image_size(text: str) -> int:
    """Read ``256K``, ``1M`` or a number of bytes."""
    units = {"K": 1 << 10, "M": 1 << 20}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(number) * unit
    except ValueError:
        raise UsageMistake(f"not a size: {text}", hint="bytes, or with K or M: --size 1M") from None


def read_image(path: Path) -> bytes:
    """A store's bytes, read once; ``-`` is standard input."""
    from cvars.store import MemoryMedium, medium, offline  # noqa: PLC0415

    return medium.read_image(MemoryMedium(read_bytes(path))) if str(path) == "-" else offline.read_file(path)


def read_key(path: Path) -> "KeyFile":
    """A key file; ``-`` is standard input."""
    from cvars.store import keyfile  # noqa: PLC0415

    return keyfile.parse(read_bytes(path), str(path))


def _new_file(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageMistake(f"{path} exists and is left alone", hint="choose another name") from None
    except OSError as error:
        raise OutsideFailure(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutsideFailure(f"{path}: {error.strerror}") from None


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to make the store.")],
    size: Annotated[str, typer.Option(help="Image size: a multiple of 256 frames; K and M are known.")] = "1M",
    frame: Annotated[int, typer.Option(help="Frame size: 512, 1024, 2048 or 4096 bytes.")] = 1024,
    suite: Annotated[
        int, typer.Option(help="1 AES-256-GCM-SIV, 2 XChaCha20-Poly1305, 3 AES-256-GCM.", min=1, max=3)
    ] = 1,
    nor: Annotated[bool, typer.Option("--nor", help="For NOR flash: erased cells are ones.")] = False,
    key_file: KeyOption = None,
    ticket: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Opaque bytes for the broker (at most 448)."),
    ] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Make a store image.

    With --key-file: a usable store in mode "none" (development: freshness is not verified). Without a key: a
    creation header only, which a guest's first boot turns into a store when its broker grants that.

    Example: cvars store create vm.fd --size 1M
    """
    from cvars.store import offline  # noqa: PLC0415
    from cvars.store.geometry import Geometry  # noqa: PLC0415

    size_bytes = image_size(size)
    geometry = Geometry.of(size_bytes, frame)
    if geometry is None:
        raise UsageMistake(
            f"no store has {size_bytes} bytes in frames of {frame}",
            hint="an image is a multiple of 256 frames, 256 to 8192 of them; e.g. --size 256K, --size 1M",
        )
    aux = ticket.read_bytes() if ticket else b""
    if len(aux) > 448:
        raise BadInput(f"{ticket}: a ticket has at most 448 bytes, not {len(aux)}")
    blank = offline.creation_image(geometry, nor=nor, aux=aux, request_id=os.urandom(16))
    made = "a creation header"
    if key_file is not None:
        blank = offline.create_unanchored(blank, read_key(key_file), suite=suite, random=os.urandom)
        made = 'a store in mode "none": its freshness is not verified'
    _new_file(file, blank)
    say(f"{file}: {made}, {size_bytes} bytes, capacity {geometry.capacity} bytes")
    emit(
        "cvars.store.create/1",
        {
            "file": str(file),
            "image_bytes": size_bytes,
            "frame": frame,
            "capacity": geometry.capacity,
            "creation_header_only": key_file is None,
        },
    )


@app.command()
def inspect(
    file: ImageArgument,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Describe an image without any key: exactly what its host can learn. Nothing here is authenticated.

    Example: cvars store inspect vm.fd
    """
    from dataclasses import asdict  # noqa: PLC0415

    from cvars.store.inspecting import inspect as look  # noqa: PLC0415

    image = read_image(file)
    seen = look(image)
    say(f"{file}: {seen.image_size} bytes, frames of {seen.frame or '?'} bytes, without a key:")
    if seen.creation is not None:
        ticket = seen.creation["AuxLength"]
        say(f"  creation header, request {seen.creation['RequestId']}, ticket of {ticket} bytes")
    for bank in seen.banks:
        if bank.header is None:
            say(f"  bank {bank.number} at {bank.offset:#x}: no header")
            continue
        head = bank.header
        say(
            f"  bank {bank.number} at {bank.offset:#x}: generation {head['Generation']}, suite {head['Suite']}, "
            f"mode {head['Mode']}, key version {head['KeyVersion']}, store {head['StoreId']}"
        )
        logged = [r for r in bank.records if r.place == "log"]
        say(
            f"    snapshot of {head['SnapshotLength']} bytes at sequence {head['BaseSequence']}, then "
            f"{len(logged)} records to sequence {logged[-1].sequence if logged else head['BaseSequence']}"
        )
        if verbose:
            rows = [(f"{r.offset:#x}", r.size, r.place, r.part, r.session, r.sequence) for r in bank.records]
            table(("    OFFSET", "BYTES", "PLACE", "PART", "SESSION", "SEQUENCE"), rows)
    emit(
        "cvars.store.inspect/1",
        {
            "image_bytes": seen.image_size,
            "frame": seen.frame,
            "creation": seen.creation,
            "banks": [asdict(b) for b in seen.banks],
        },
    )


@app.command()
def fsck(
    file: ImageArgument,
    key_file: NeededKey,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Check an image record by record. Changes nothing. Exit code 1: damage was found.

    Example: cvars store fsck vm.fd --key-file key.json
    """
    from dataclasses import asdict  # noqa: PLC0415

    from cvars.store.checking import check  # noqa: PLC0415

    report = check(read_image(file), read_key(key_file))
    say(f"{file}: {'sound' if report.sound else 'not sound'}")
    for finding in report.findings:
        what = f"record {finding.record}" if finding.record is not None else "image"
        say(f"  {what} at {finding.offset:#x}  {finding.reason}  {finding.message}")
    for note in report.notes:
        say(f"  note: {note}")
    if report.history is not None:
        newest = report.history
        say(
            f"  generation {newest.header.generation}, sequence {newest.point.counter}, "
            f"{len(newest.variables)} variables, {newest.live} of {newest.geometry.capacity} bytes"
        )
    say("  anchor: not checked: no broker was asked, so a rollback would not be seen here")
    if not report.sound:
        say(f"Nothing was changed. `cvars store explain {report.findings[0].reason}` says what this can mean.")
    emit(
        "cvars.store.fsck/1",
        {
            "sound": report.sound,
            "findings": [asdict(f) for f in report.findings],
            "notes": list(report.notes),
            "sequence": report.history.point.counter if report.history else None,
            "root": report.history.point.root.hex() if report.history else None,
        },
    )
    answer(yes=report.sound)


@app.command()
def dump(
    file: ImageArgument,
    key_file: NeededKey,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Print the variables of a sound image (--json: with their values).

    Example: cvars store dump vm.fd --key-file key.json --json
    """
    from cvars.store import rewriting  # noqa: PLC0415
    from cvars.variables.security import PRIVATE  # noqa: PLC0415

    source = rewriting.open_sound(read_image(file), read_key(key_file))
    live = sorted(source.history.variables.items(), key=lambda item: item[0].sort_bytes)
    rows = [
        (k.name.encode("unicode_escape").decode(), k.vendor_guid, f"{v.attributes:#x}", len(v.data))
        for k, v in live
    ]
    table(("NAME", "GUID", "ATTRIBUTES", "BYTES"), rows)
    emit(
        "cvars.store.dump/1",
        {
            "sequence": source.history.point.counter,
            "root": source.history.point.root.hex(),
            "variables": [
                {
                    "name": k.name,
                    "guid": str(k.vendor_guid),
                    "attributes": v.attributes,
                    "data": v.data.hex(),
                    "time": v.timestamp.hex(),
                    "signer": v.signer.hex() if v.signer else None,
                    "private": k.vendor_guid == PRIVATE,
                }
                for k, v in live
            ],
        },
    )


def _rewritten(verb: str, out: Path, source: object, **how: object) -> None:
    import os as system  # noqa: PLC0415

    from cvars.store import rewriting  # noqa: PLC0415

    made = rewriting.rewrite(source, random=system.urandom, **how)  # type: ignore[arg-type]
    _new_file(out, made.image)
    counter, root = made.point.counter, made.point.root.hex()
    say(f"{out}: {len(made.image)} bytes, {made.variables} variables, sequence {counter}")
    say(f"A guest with an anchor accepts it only after: cvars broker vm rebase, to {counter} {root}")
    emit(
        f"cvars.store.{verb}/1",
        {
            "out": str(out),
            "image_bytes": len(made.image),
            "variables": made.variables,
            "sequence": counter,
            "root": root,
        },
    )


@app.command()
def rotate(
    file: ImageArgument,
    key_file: NeededKey,
    out: OutOption,
    new_key_file: Annotated[
        Path | None,
        typer.Option(
            callback=present,
            help="Key file of the new key; without it only new salts.",
        ),
    ] = None,
    suite: Annotated[int | None, typer.Option(min=1, max=3, help="Another cipher suite.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Seal the state anew into another file: under another key, other salts, or another suite.

    Needs a sound image. The running component rotates online; this is for images that no guest runs on.

    Example: cvars store rotate vm.fd --key-file key.json --new-key-file new.json --out rotated.fd
    """
    from cvars.store import rewriting  # noqa: PLC0415

    source = rewriting.open_sound(read_image(file), read_key(key_file))
    new = read_key(new_key_file) if new_key_file else None
    _rewritten(
        "rotate",
        out,
        source,
        geometry=source.history.geometry,
        keys=rewriting.key_for_writing(source, new),
        suite=suite or source.history.header.suite,
    )


@app.command()
def resize(
    file: ImageArgument,
    key_file: NeededKey,
    out: OutOption,
    size: Annotated[str, typer.Option(help="New image size; K and M are known.")],
    frame: Annotated[int | None, typer.Option(help="New frame size.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Write the state into an image of another size. Needs a sound image; refuses when it does not fit.

    Example: cvars store resize vm.fd --key-file key.json --size 2M --out larger.fd
    """
    from cvars.store import rewriting  # noqa: PLC0415
    from cvars.store.geometry import Geometry  # noqa: PLC0415

    source = rewriting.open_sound(read_image(file), read_key(key_file))
    geometry = Geometry.of(image_size(size), frame or source.history.geometry.frame)
    if geometry is None:
        raise UsageMistake(
            f"no store has {size} in frames of {frame or source.history.geometry.frame}",
            hint="an image is a multiple of 256 frames, 256 to 8192 of them",
        )
    _rewritten(
        "resize",
        out,
        source,
        geometry=geometry,
        keys=rewriting.key_for_writing(source, None),
        suite=source.history.header.suite,
    )


@app.command()
def recover(
    file: ImageArgument,
    key_file: NeededKey,
    out: OutOption,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Take out of a damaged image the longest history that still verifies, into a new one.

    Example: cvars store recover vm.fd --key-file key.json --out rescued.fd
    """
    from cvars.store import rewriting  # noqa: PLC0415

    source = rewriting.open_damaged(read_image(file), read_key(key_file))
    say(
        f"{file}: verifies to sequence {source.history.point.counter}; "
        f"{source.unused_records} later records are authentic but lie behind damage and are not used"
    )
    _rewritten(
        "recover",
        out,
        source,
        geometry=source.history.geometry,
        keys=rewriting.key_for_writing(source, None),
        suite=source.history.header.suite,
    )


@app.command()
def explain(
    reason: Annotated[str, typer.Argument(help="A reason, for example store.tampered.")],
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Say what a reason means, what can have caused it, and what to do.

    Example: cvars store explain store.tampered
    """
    from cvars.store.explaining import EXPLANATIONS  # noqa: PLC0415

    if reason not in EXPLANATIONS:
        raise UsageMistake(f"no such reason: {reason}", hint="known: " + ", ".join(EXPLANATIONS))
    meaning, causes, way_out = EXPLANATIONS[reason]
    say(f"{reason}: {meaning}")
    say(f"  can be   {causes}")
    say(f"  way out  {way_out}")
    emit("cvars.store.explain/1", {"reason": reason, "meaning": meaning, "causes": causes, "way_out": way_out})
