"""Fuzz SNP reports in all their wire forms: a result, never an exception; only the originals are authentic."""

import json
import sys
from datetime import UTC, datetime

from fuzz_attest_common import hardware, recorded, run

from cvars.attest import Supplied, read_snp, verify
from cvars.attest.simulated import roots
from cvars.attest.snp.report import SIGNED_BYTES

SP, _ = hardware()
GUEST = SP.launch(bytes(4096))
REPORT = GUEST.report(bytes(64))
ROOTS = roots(SP.folder.path)
AT = datetime(2026, 6, 1, tzinfo=UTC)
CERTIFICATES = GUEST.supplied()


def target(data: bytes) -> None:
    result = verify(read_snp(data, CERTIFICATES), roots=ROOTS, at=AT, report_data=None)
    if result.authentic:  # only what the key signed
        assert result.parsed.raw[:SIGNED_BYTES] == REPORT[:SIGNED_BYTES]
    json.dumps(result.as_json())
    verify(read_snp(data, (Supplied("unknown", data),)), roots=ROOTS, at=AT, report_data=bytes(64))


if __name__ == "__main__":
    evidence = [json.dumps(GUEST.collect(bytes(64))).encode()]
    sys.exit(run(target, [REPORT, *evidence, *recorded("snp/*/report.bin"), *recorded("snp/*/evidence.json")]))
