"""Broker and one VM as processes, for tests that kill or question them."""

from pathlib import Path

from cvars.lab.operator import enrol, operating, set_up_broker
from cvars.lab.processes import Processes
from svsm_bridge.transports.client import GuestClient


class Machine:
    """Broker and one VM as processes; the test is its guest and its power supply."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        self.processes = Processes(folder / "processes")
        broker = folder / "broker"
        set_up_broker(broker, folder / "hardware", ["tdx"], takeover=True)
        with operating(broker) as opened:
            enrol(opened, "vm", store=folder / "vm.fd", init_data=folder / "vm.toml", image_bytes=256 * 1024)
        serve = self.processes.start(
            "broker", "broker", "serve", "--config", str(broker), "--simulation", "--listen", "127.0.0.1:0"
        )
        self.url = serve.wait_for("ready on").split("ready on ", 1)[1].split()[0]

    def launch(self, name: str, *options: str):
        """Start the component and do not wait."""
        return self.processes.start(
            "component", "guest", "run", "--tee", "tdx", "--store", str(self.folder / "vm.fd"),
            "--broker", self.url, "--init-data", str(self.folder / "vm.toml"),
            "--listen", f"unix:{self.sockets / name}.sock", "--hardware", str(self.folder / "hardware"),
            "--json", *options,
        )  # fmt: skip

    def start(self, name: str, *options: str, code: int | None = None):
        """Start the component; (process, socket). ``code``: it is expected to end at once with that exit code."""
        component, socket = self.launch(name, *options), self.sockets / f"{name}.sock"
        if code is None:
            component.wait_for('"ready": true')
        else:
            assert component.wait() == code, component.err.read_text()
        return component, socket

    def boot(self, number: int):
        component, socket = self.start(str(number), "--takeover")
        return component, GuestClient.start(socket)
