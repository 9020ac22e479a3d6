"""Protocol 0, core. Source: AMD 58019 "Core protocol"; svsm-calls 3.1."""

from typing import Final

from svsm_bridge.abi import Outputs
from svsm_bridge.dispatcher import VERSIONS, Call, Handler


def query_protocol(call: Call) -> Outputs:
    """Call 6: RCX[63:32] protocol, [31:0] version; RCX = max << 32 | min, or 0. Always SUCCESS."""
    protocol, version = call.regs.rcx >> 32, call.regs.rcx & 0xFFFFFFFF
    least, most = VERSIONS.get(protocol, (1, 0))
    return (most << 32 | least if least <= version <= most else 0, None, None)


CALLS: Final[dict[int, Handler]] = {6: query_protocol}
