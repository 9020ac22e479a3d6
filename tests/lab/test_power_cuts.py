"""kill -9 of the component at random moments of an endless write loop: no acknowledged write is ever lost."""

import itertools
import threading
from uuid import UUID

import pytest

from cvars.lab.driver import BS, NV, RT, VariableDriver
from cvars.variables.model import Key
from svsm_bridge.transports.client import ServerGone
from svsm_bridge.transports.guest import CallFailed

VENDOR = UUID("aaaaaaaa-0001-4000-8000-00000000000a")


@pytest.mark.rule("SS-8", "SS-9", "T9")
def test_no_acknowledged_write_is_lost_by_a_power_cut(machine, rng, exhaustive):
    kills = 50 if exhaustive else 6
    acknowledged: dict[str, bytes] = {}
    in_flight: tuple[str, bytes] | None = None
    between = 0
    writes = itertools.count()
    for number in range(kills):
        component, guest = machine.boot(number)
        firmware = VariableDriver(guest.mm_request)
        found = {key.name: firmware.get(key)[1] for key in firmware.walk() if key.vendor_guid == VENDOR}
        allowed = dict(acknowledged)
        if in_flight is not None and found.get(in_flight[0]) == in_flight[1]:
            allowed[in_flight[0]] = in_flight[1]  # durable, never acknowledged: may be there
            between += 1
        assert found == allowed, f"kill {number}"
        acknowledged, in_flight = found, None
        cut = threading.Timer(rng.uniform(0.02, 0.35), component.popen.kill)
        cut.start()
        try:
            for count in writes:
                name = f"Counter{rng.randrange(8)}"
                value = count.to_bytes(8, "little") + rng.randbytes(rng.choice((0, 56, 900, 3000)))
                in_flight = (name, value)
                firmware.set(Key(VENDOR, name), NV | BS | RT, value)
                acknowledged[name], in_flight = value, None
        except (ServerGone, CallFailed):
            pass
        finally:
            cut.join()
            component.wait()
            guest.close()
    print(f"{kills} kills, {between} of them between write and acknowledgement, {next(writes)} writes")
    assert between >= (10 if exhaustive else 0)
