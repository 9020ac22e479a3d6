"""What a lab's operator puts beside its broker: the policy it starts with, and key files for offline tools.

The policy: this component's measurement, simulated domain, lease required.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cvars.broker.anchors import Exists
from cvars.broker.app import open_broker
from cvars.broker.config import load_config
from cvars.broker.policy.evaluate import attached
from cvars.broker.problems import Problem
from cvars.broker.setup import init
from cvars.component.hardware import launch_measurement, publish_roots
from cvars.errors import UsageMistake
from cvars.release.initdata import MODES, compose
from cvars.store.geometry import Geometry
from cvars.store.offline import creation_image

if TYPE_CHECKING:
    from cvars.broker.record import Record
    from cvars.broker.service import Broker

_HEAD: Final = """\
# Written by the lab: releases a VM's own store key to the measured component of this installation only.
policy: lab
version: 1
applies_to: ["vms/*/store-kek"]
trust_domains: [simulated]
require:
  anchor: {{lease: required, max_epoch_gap: 0, takeover: {takeover}}}
any_of:
"""
_LEAVES: Final = {
    "snp": """\
  - snp:
      product: [Milan, Genoa, Turin]
      vmpl: [0]
      measurement_in: ["{measurement}"]
      guest_policy: {{debug: false, migrate_ma: false}}
      min_tcb:
        Milan: {{bootloader: 0, tee: 0, snp: 0, microcode: 0}}
        Genoa: {{bootloader: 0, tee: 0, snp: 0, microcode: 0}}
        Turin: {{fmc: 0, bootloader: 0, tee: 0, snp: 0, microcode: 0}}
""",
    "tdx": """\
  - tdx:
      mr_td_in: ["{measurement}"]
      rtmr: {{0: any, 1: any, 2: any, 3: any}}
      tcb_status: [UpToDate]
      attributes: {{debug: false}}
""",
}


def write_policy(broker: Path, measurements: Mapping[str, bytes], *, takeover: bool = False) -> None:
    """Write ``policies/lab.yaml`` below the broker's folder, one leaf per TEE in ``measurements``."""
    text = _HEAD.format(takeover="allow" if takeover else "refuse")
    for tee, measurement in measurements.items():
        text += _LEAVES[tee].format(measurement=measurement.hex())
    text += "release:\n  per_vm: true\n"
    (broker / "policies" / "lab.yaml").write_text(text)


def set_up_broker(broker: Path, hardware: Path, tees: Sequence[str], *, takeover: bool = False) -> str:
    """Make a broker's folder that trusts the simulated platform in ``hardware`` and this component on it.

    Returns the pin of its signing key. Raises ``UsageMistake``: there is a broker already.
    """
    pin = init(broker)
    publish_roots(hardware, broker, tees)
    write_policy(broker, {tee: launch_measurement(tee) for tee in tees}, takeover=takeover)
    return pin


@contextmanager
def operating(broker: Path) -> "Iterator[Broker]":
    """The broker's parts in an operator's hands; it writes no audit log of a running service."""
    config = load_config(broker / "broker.toml", simulation=True)
    quiet = config.model_copy(update={"audit": config.audit.model_copy(update={"file": None})})
    opened = open_broker(quiet, clock=time.time, random=secrets.token_bytes)
    try:
        yield opened
    finally:
        opened.db.close()
        opened.audit.close()


def check_wishes(image_bytes: int, mode: str) -> Geometry:
    """The geometry of an image. Raises ``UsageMistake``: no store has that size, or there is no such mode."""
    geometry = Geometry.of(image_bytes, 1024)
    if geometry is None:
        raise UsageMistake(f"no store has {image_bytes} bytes", hint="256K, 512K, 1M, 2M, 4M or 8M")
    if mode not in MODES:
        raise UsageMistake(f"no mode {mode}", hint=f"one of {', '.join(MODES)}")
    return geometry


def check_tee(opened: "Broker", vm_id: str, tee: str) -> None:
    """Raises ``UsageMistake``: the policies for the VM's store key have no alternative for ``tee``."""
    for policy in attached(opened.policies.current().policies, f"vms/{vm_id}/store-kek"):
        known = sorted({leaf.tee for leaf in policy.leaves})
        if tee not in known:
            raise UsageMistake(
                f"this broker releases no store key to {tee}: its policy {policy.name} knows {', '.join(known)}",
                where=f"VM {vm_id}",
                hint=f"--tee {known[0]}, another folder for the broker, or an alternative for {tee} in the policy",
            )


def enrol(
    opened: "Broker", vm_id: str, *, store: Path, init_data: Path, image_bytes: int, mode: str = "critical"
) -> "Record":
    """Enrol ``vm_id`` at the broker; give the host a blank flash and the init-data that pins the broker.

    Raises:
        UsageMistake: a file is there already, or no store has that size.
    """
    geometry = check_wishes(image_bytes, mode)
    for file in (store, init_data):
        if file.exists():
            raise UsageMistake(f"{file} is there already: it is left alone", hint="choose another VM id or folder")
    try:
        record = opened.add_vm(vm_id, mode=mode)
    except Exists:
        raise UsageMistake(f"{vm_id} is enrolled already", hint="cvars broker vm reset starts it anew") from None
    except Problem:
        raise UsageMistake(f"not a VM id: {vm_id!r}", hint="1..128 of [A-Za-z0-9._-]") from None
    store.write_bytes(creation_image(geometry, nor=False, aux=b"", request_id=secrets.token_bytes(16)))
    init_data.write_text(compose(vm_id, [opened.signer.kid]))
    return record


def write_key_file(broker: "Broker", record: "Record", file: Path) -> None:
    """Write the store key of a lab's VM for `cvars store fsck --key-file` and its like; mode 0600.

    A lab's keys protect nothing; a real broker gives a store key to its attested VM only.
    """
    keys = broker.anchors.store_keys(record.vm_id, [record.key_version])
    assert keys is not None
    members = {
        "store_id": record.store_id.hex(),
        "vm_id": record.vm_id,
        "key_version": record.key_version,
        "kek": keys[0].hex(),
    }
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(json.dumps(members, indent=1) + "\n")
