"""Fuzz TCB info, QE identity and collateral, correctly signed after the change, to reach what lies behind."""

import contextlib
import json
import sys
from datetime import UTC, datetime

from fuzz_attest_common import hardware, recorded, run

from cvars.attest import TdxEvidence, verify
from cvars.attest.simulated import roots
from cvars.attest.simulated.tdx_module import _sign
from cvars.attest.strict_json import JsonError
from cvars.attest.tdx.collateral import Collateral
from cvars.attest.tdx.tcb import parse_qe_identity, parse_tcb_info

_, PLATFORM = hardware()
PLATFORM.clock = datetime(2026, 6, 1, tzinfo=UTC).timestamp
QUOTES = [PLATFORM.launch(bytes(4096)).quote(bytes(64), version) for version in (4, 5)]
GOOD = PLATFORM.collateral()
ROOTS = roots(PLATFORM.folder.path)
AT = datetime(2026, 6, 1, tzinfo=UTC)


def target(data: bytes) -> None:
    for parse in (Collateral.parse, parse_tcb_info, parse_qe_identity):
        with contextlib.suppress(JsonError):
            parse(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    raw = text.encode()
    members = json.loads(GOOD.to_json())
    for name in ("tcb_info", "qe_identity"):
        changed = members | {name: text, f"{name}_signature": _sign(PLATFORM.signer.key, raw).hex()}
        for quote in QUOTES:
            result = verify(TdxEvidence(quote, json.dumps(changed).encode()), roots=ROOTS, at=AT, report_data=None)
            json.dumps(result.as_json())


if __name__ == "__main__":
    corpus = [GOOD.tcb_info, GOOD.qe_identity, GOOD.to_json()]
    sys.exit(run(target, corpus + recorded("tdx/*/collateral.json") + recorded("tdx/*/*.json")))
