"""Simulated evidence as files: what `cvars attest simulate` writes, with what an independent check needs."""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cvars.attest.certificates import write_pem
from cvars.attest.simulated.amd_sp import DEFAULT_POLICY, SimulatedAmdSp
from cvars.attest.simulated.tdx_module import DEFAULT_ATTRIBUTES, SimulatedTdx
from cvars.attest.snp.products import Line, Tcb, components
from cvars.attest.snp.report import SIGNED_BYTES
from cvars.attest.tdx.tcb import STATUSES


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the evidence says."""

    report_data: bytes
    measurement: bytes
    host_data: bytes = b""
    policy: int | None = None
    version: int = 0


def parse_tcb(text: str, line: Line) -> Tcb:
    """``bootloader.tee.snp.microcode``, with ``fmc`` first on Turin.

    Raises:
        ValueError: another number of parts, or a part that is not 0..255.
    """
    names = components(line)
    parts = text.split(".")
    if len(parts) != len(names) or not all(part.isdigit() and int(part) <= 255 for part in parts):
        raise ValueError(f"--tcb is {'.'.join(names)} for {line}")
    return Tcb(**dict(zip(names, map(int, parts), strict=True)))


def export_snp(
    folder: Path,
    wanted: Wanted,
    *,
    product: Line,
    tcb: str = "",
    vmpl: int = 0,
    vlek: str | None = None,
    clock: Callable[[], float],
) -> dict[str, bytes]:
    """Report, certificates, evidence in the structured form, and the parts that openssl can check.

    Raises:
        ValueError: something that the hardware would not do.
    """
    processor = SimulatedAmdSp.load_or_create(folder, product=product, random=os.urandom, clock=clock)
    if tcb:
        processor.reported = processor.committed = processor.current = parse_tcb(tcb, product)
    if vlek is not None:
        processor.load_vlek(vlek)
    guest = processor.launch(
        measurement=wanted.measurement,
        host_data=(wanted.host_data or bytes(32)),
        policy=DEFAULT_POLICY if wanted.policy is None else wanted.policy,
    )
    if wanted.version not in (0, 2, 3, 4, 5):
        raise ValueError("--version is 2, 3, 4 or 5")
    report = guest.report(wanted.report_data, vmpl, version=wanted.version or None)
    supplied = guest.supplied()
    names = {"VCEK": "vcek", "VLEK": "vlek", "ASK": "ask", "ARK": "ark"}
    files = {
        "report.bin": report,
        "evidence.json": json.dumps(guest.collect(wanted.report_data)).encode(),
        "certificates.bin": guest.certificates(),
        "signed.bin": report[:SIGNED_BYTES],
    }
    for one in supplied:
        files[f"certs/{names[one.role]}.pem"] = write_pem(one.data)
    return files


def export_tdx(folder: Path, wanted: Wanted, *, status: str, clock: Callable[[], float]) -> dict[str, bytes]:
    """Quote, collateral, evidence in the form of current clients, and the root.

    Raises:
        ValueError: something that the hardware would not do.
    """
    platform = SimulatedTdx.load_or_create(folder, random=os.urandom, clock=clock)
    if status not in STATUSES:
        raise ValueError(f"--tcb-status is one of {', '.join(STATUSES)}")
    if wanted.version not in (0, 4, 5):
        raise ValueError("--version is 4 or 5")
    td = platform.launch(
        measurement=wanted.measurement,
        mr_config_id=(wanted.host_data or bytes(48)),
        attributes=DEFAULT_ATTRIBUTES if wanted.policy is None else wanted.policy,
    )
    quote = td.quote(wanted.report_data, wanted.version or 4)
    collateral = platform.collateral(status=status).to_json()
    evidence = {
        "quote": base64.b64encode(quote).decode(),
        "cc_eventlog": None,
        "collateral": json.loads(collateral),
    }
    return {
        "quote.bin": quote,
        "collateral.json": collateral,
        "evidence.json": json.dumps(evidence).encode(),
        "certs/root.pem": write_pem(platform.root_certificate),
    }
