"""Fuzz quotes: a result, never an exception; nothing that differs in a meaningful byte is authentic."""

import json
import sys
from datetime import UTC, datetime

from fuzz_attest_common import hardware, recorded, run

from cvars.attest import read_tdx, verify
from cvars.attest.simulated import roots

_, PLATFORM = hardware()
PLATFORM.clock = datetime(2026, 6, 1, tzinfo=UTC).timestamp
TD = PLATFORM.launch(bytes(4096))
QUOTES = [TD.quote(bytes(64), 4), TD.quote(bytes(64), 5)]
SIGNED = {quote[: 48 + 384] for quote in QUOTES + recorded("tdx/*/quote.bin")}
COLLATERAL = TD.collateral()
ROOTS = roots(PLATFORM.folder.path)
AT = datetime(2026, 6, 1, tzinfo=UTC)


def target(data: bytes) -> None:
    result = verify(read_tdx(data, COLLATERAL), roots=ROOTS, at=AT, report_data=None)
    if result.authentic:
        assert result.parsed.raw[: 48 + 384] in SIGNED
    json.dumps(result.as_json())


if __name__ == "__main__":
    sys.exit(run(target, [*QUOTES, json.dumps(TD.collect(bytes(64))).encode(), *recorded("tdx/*/quote.bin")]))
