"""What the commands of `cvars attest` share: their first argument, times, hex."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvars.errors import UsageMistake

if TYPE_CHECKING:
    from cvars.attest import Evidence
    from cvars.attest.inputs import Certificates

EvidenceArgument = Annotated[
    Path, typer.Argument(help="Report, quote, HCL envelope or JSON evidence; - reads standard input.")
]
AtOption = Annotated[str | None, typer.Option("--at", help="Time to verify at (default: now).", metavar="TIME")]


def read_evidence(path: Path, found: "Certificates", collateral: Path | None) -> "Evidence":
    """Evidence of any form from a file or standard input."""
    from cvars.attest.evidence import Supplied  # noqa: PLC0415
    from cvars.attest.inputs import MAX_FILE, detect, read_file  # noqa: PLC0415

    data = sys.stdin.buffer.read(MAX_FILE) if str(path) == "-" else read_file(path)
    supplied = (*found.leaves, *(Supplied("CRL", one) for one in found.crls))
    return detect(data, supplied, read_file(collateral) if collateral else None)


def parse_hex(text: str | None, size: int | None, name: str) -> bytes | None:
    """Hex of a given size; None for None. Raises ``UsageMistake``."""
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise UsageMistake(f"{name} is not hex") from None
    if size is not None and len(value) != size:
        raise UsageMistake(f"{name} has {len(value)} bytes, not {size}")
    return value
