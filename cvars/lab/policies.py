"""The policy that a lab's broker starts with: this component's measurement, simulated domain, lease required."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

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
