"""`cvars store`: make, describe, check, rescue sealed stores. None writes to the file it reads (SS-26)."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cvars.cli.output import JsonOption, QuietOption, VerboseOption, emit, say, table
from cvars.errors import BadInput, OutsideFailure, UsageMistake

app = typer.Typer(
    no_args_is_help=True,
    help="Sealed variable stores: create, inspect, check, dump, re-key, resize, recover.",
)

ImageArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="Store image (.fd, .store).")
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        exists=True,
        dir_okay=False,
        help="JSON or TOML with store_id, vm_id, key_version, kek (hex), or 32 raw bytes: the key alone.",
    ),
]


def _size(text: str) -> int:
    """Read ``256K``, ``1M`` or a number of bytes."""
    units = {"K": 1 << 10, "M": 1 << 20}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(number) * unit
    except ValueError:
        raise UsageMistake(f"not a size: {text}", hint="bytes, or with K or M: --size 1M") from None


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
def create(  # noqa: PLR0917 - a command's options
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
    """
    from cvars.store import keyfile, offline  # noqa: PLC0415
    from cvars.store.geometry import Geometry  # noqa: PLC0415

    image_size = _size(size)
    geometry = Geometry.of(image_size, frame)
    if geometry is None:
        raise UsageMistake(
            f"no store has {image_size} bytes in frames of {frame}",
            hint="an image is a multiple of 256 frames, 256 to 8192 of them; e.g. --size 256K, --size 1M",
        )
    aux = ticket.read_bytes() if ticket else b""
    if len(aux) > 448:
        raise BadInput(f"{ticket}: a ticket has at most 448 bytes, not {len(aux)}")
    blank = offline.creation_image(geometry, nor=nor, aux=aux, request_id=os.urandom(16))
    made = "a creation header"
    if key_file is not None:
        blank = offline.create_unanchored(blank, keyfile.load(key_file), suite=suite, random=os.urandom)
        made = 'a store in mode "none": its freshness is not verified'
    _new_file(file, blank)
    say(f"{file}: {made}, {image_size} bytes, capacity {geometry.capacity} bytes")
    emit(
        "cvars.store.create/1",
        {
            "file": str(file),
            "image_bytes": image_size,
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
    """Describe an image without any key: exactly what its host can learn. Nothing here is authenticated."""
    from dataclasses import asdict  # noqa: PLC0415

    from cvars.store import offline  # noqa: PLC0415
    from cvars.store.inspecting import inspect as look  # noqa: PLC0415

    image = offline.read_file(file)
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
