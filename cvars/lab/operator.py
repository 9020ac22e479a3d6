"""What a lab's operator puts beside its broker: the policy it starts with, and key files for offline tools.

The policy: this component's measurement, simulated domain, lease required.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
