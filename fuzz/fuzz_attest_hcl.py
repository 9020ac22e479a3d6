"""Fuzz the HCL envelope and the TD's event log."""

import contextlib
import sys

from fuzz_attest_common import hardware, recorded, run

from cvars.attest import read_snp
from cvars.attest.evidence import FormError
from cvars.attest.snp.hcl import HCL_HEADER, RUNTIME_AT, RUNTIME_HEADER, parse_envelope
from cvars.attest.tdx import eventlog


def envelope() -> bytes:
    runtime = b'{"keys":[]}'
    head = HCL_HEADER.build(
        {
            "signature": int.from_bytes(b"HCLA", "little"),
            "version": 1,
            "report_size": 0,
            "request_type": 2,
            "status": 0,
            "reserved": [0, 0, 0],
        }
    )
    sizes = {"data_size": 20 + len(runtime), "variable_data_size": len(runtime)}
    tail = RUNTIME_HEADER.build(sizes | {"version": 1, "report_type": 2, "hash_type": 1})
    return (head + bytes(1184)).ljust(RUNTIME_AT, b"\0") + tail + runtime


def target(data: bytes) -> None:
    with contextlib.suppress(FormError):
        found = parse_envelope(data)
        assert len(found.report_data) == 64
    read_snp(data)
    with contextlib.suppress(eventlog.EventLogError):
        eventlog.replay(eventlog.parse(data))


if __name__ == "__main__":
    _, platform = hardware()
    td = platform.launch(bytes(4096))
    td.extend(0, b"a")
    td.extend(3, b"b")
    sys.exit(run(target, [envelope(), td.event_log(), *recorded("snp/*/hcl-report.bin")]))
