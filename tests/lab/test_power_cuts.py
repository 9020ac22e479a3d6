"""kill -9 of the component at random moments of an endless write loop: no acknowledged write is ever lost."""

import itertools
import threading
from pathlib import Path
from uuid import UUID

import pytest

from cvars.lab.driver import BS, NV, RT, VariableDriver
from cvars.lab.operator import enrol, open_for_operator, set_up_broker
from cvars.lab.processes import Processes
from cvars.variables.model import Key
from svsm_bridge.transports.client import GuestClient, ServerGone
from svsm_bridge.transports.guest import CallFailed

VENDOR = UUID("aaaaaaaa-0001-4000-8000-00000000000a")


class Machine:
    """Broker and one VM as processes; the test is its guest and its power supply."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        self.processes = Processes(folder / "processes")
        broker = folder / "broker"
        set_up_broker(broker, folder / "hardware", ["tdx"], takeover=True)
        opened = open_for_operator(broker)
        enrol(opened, "vm", store=folder / "vm.fd", init_data=folder / "vm.toml", image_bytes=256 * 1024)
        opened.db.close()
        serve = self.processes.start(
            "broker", "broker", "serve", "--config", str(broker), "--simulation", "--listen", "127.0.0.1:0"
        )
        self.url = serve.wait_for("ready on").split("ready on ", 1)[1].split()[0]

    def boot(self, number: int):
        socket = self.sockets / f"{number}.sock"
        component = self.processes.start(
            "component", "guest", "run", "--tee", "tdx", "--store", str(self.folder / "vm.fd"),
            "--broker", self.url, "--init-data", str(self.folder / "vm.toml"),
            "--listen", f"unix:{socket}", "--takeover",
            "--hardware", str(self.folder / "hardware"), "--json",
        )  # fmt: skip
        component.wait_for('"ready": true')
        return component, GuestClient.start(socket)


@pytest.fixture
def machine(tmp_path, tmp_path_factory):
    made = Machine(tmp_path, Path(tmp_path_factory.mktemp("s")))
    yield made
    made.processes.stop_all()


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
            between += in_flight is not None
        finally:
            cut.join()
            component.wait()
            guest.close()
    print(f"{kills} kills, {between} of them between write and acknowledgement, {next(writes)} writes")
    assert between >= kills // 5
