"""A lab in one process: broker, trusted component, guest and host, with the lab's own clock and randomness.

The parts are the real ones; only the ways between them are direct calls, so that a boot costs milliseconds.
"""

import random as randomness
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvars.broker.app import create_app, open_broker
from cvars.broker.config import load_config
from cvars.broker.setup import init
from cvars.component.boot import Component, Settings, Surroundings, boot
from cvars.component.hardware import SimulatedHardware, launch_measurement, publish_roots, simulated_hardware
from cvars.formats.names import parse_name
from cvars.formats.pcap import CaptureWriter
from cvars.lab.driver import BS, NV, RT, Exchange, VariableDriver
from cvars.lab.operator import write_policy
from cvars.mm.service import VariableService
from cvars.release.client import BrokerClient
from cvars.release.initdata import compose, parse
from cvars.release.transport import asgi_transport
from cvars.store import MemoryMedium
from cvars.store.geometry import Geometry
from cvars.store.offline import creation_image
from cvars.trace import ComponentStopped, Event, silent
from cvars.variables.limits import Limits
from cvars.variables.model import Key
from cvars.variables.profile import Profile
from svsm_bridge.service import ReportSource, Service
from svsm_bridge.transports.inproc import InProcessGuest

NV_BS_RT: Final = NV | BS | RT
IMAGE_BYTES: Final = 256 * 1024
_START_S: Final = 1_767_312_000.0  # 2026-01-02, inside every simulated certificate


@dataclass(slots=True)
class LabClock:
    """The lab's time, in seconds since 1970; it moves only when a test moves it."""

    now: float = _START_S

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class LabTrace:
    """What happened to each guest, in order."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}

    def sink(self, vm_id: str) -> Callable[[Event], None]:
        """Where the component of ``vm_id`` reports."""
        return self.events.setdefault(vm_id, []).append

    def kinds(self, guest: "LabGuest") -> list[str]:
        """The kinds of the guest's events."""
        return [event.kind for event in self.events.get(guest.vm_id, [])]


class LabHost:
    """What the host may do to the flash of a guest that is off, or on."""

    def copy_flash(self, guest: "LabGuest") -> bytes:
        """The image as it is now."""
        return bytes(guest.medium.image)

    def replace_flash(self, guest: "LabGuest", image: bytes) -> None:
        """Put another image in its place."""
        guest.medium = MemoryMedium(image)

    def flip(self, guest: "LabGuest", offset: int, mask: int = 1) -> None:
        """Change bits of one byte."""
        image = bytearray(guest.medium.image)
        image[offset] ^= mask
        self.replace_flash(guest, bytes(image))


class RunningGuest:
    """A booted guest: firmware's calls over the call boundary into the component."""

    def __init__(
        self, component: Component, capture: CaptureWriter | None = None, reports: ReportSource | None = None
    ) -> None:
        self.component = component
        self.machine = InProcessGuest(
            Service(component, manifests=component.manifests, reports=reports, capture=capture)
        )
        self.firmware = VariableDriver(self.machine.mm_request)

    def set_variable(self, name: str, data: bytes, attributes: int = NV_BS_RT) -> None:
        """SetVariable; raises ``StatusError``."""
        self.firmware.set(parse_name(name), attributes, data)

    def get_variable(self, name: str) -> bytes:
        """GetVariable's value; raises ``StatusError``."""
        return self.firmware.get(parse_name(name))[1]

    def delete_variable(self, name: str) -> None:
        """Delete; raises ``StatusError``."""
        self.firmware.delete(parse_name(name))

    def names(self) -> list[Key]:
        """All visible variables."""
        return list(self.firmware.walk())


class LabGuest:
    """A VM of the lab: its identity, its flash, its place in the broker."""

    def __init__(self, lab: "Lab", vm_id: str, tee: str, settings: Settings, image_bytes: int) -> None:
        self._lab = lab
        self.vm_id = vm_id
        self.tee = tee
        self.settings = settings
        self.init_data = parse(compose(vm_id, [lab.pin]))
        geometry = Geometry.of(image_bytes, 1024)
        assert geometry is not None
        self.medium = MemoryMedium(creation_image(geometry, nor=False, aux=b"", request_id=lab.random_bytes(16)))

    @contextmanager
    def boot(self, *, capture: CaptureWriter | None = None) -> Iterator[RunningGuest]:
        """Attest, open the store, serve; power off cleanly at the end.

        Raises:
            StoreError: why the guest was not started.
        """
        hardware = self.launch()
        component = self.start(hardware)
        running = RunningGuest(component, capture, hardware.reports)
        try:
            yield running
        finally:
            running.machine.close()
        component.close()
        self._lab.trace.sink(self.vm_id)(ComponentStopped(clean=True))

    def start(self, hardware: SimulatedHardware | None = None) -> Component:
        """Boot the component alone; nobody closes it: leaving it is a power cut."""
        lab = self._lab
        hardware = hardware or self.launch()
        trace = lab.trace.sink(self.vm_id)
        broker = BrokerClient(
            lab.http,
            pins=self.init_data.broker_keys,
            evidence=hardware,
            random=lab.random_bytes,
            clock=lab.clock,
            trace=trace,
            freshness=self.init_data.freshness,
        )
        around = Surroundings(self.medium, broker, lab.random_bytes, lab.clock, trace, hardware.simulated)
        return boot(self.init_data, self.settings, around)

    def launch(self) -> SimulatedHardware:
        """A new launch on the lab's simulated platform."""
        return simulated_hardware(
            self.tee, self._lab.hardware, self.init_data, random=self._lab.random_bytes, clock=self._lab.clock
        )


class Lab:
    """Broker, host and guests in ``folder``; ``hardware`` keeps the simulated roots and may be shared."""

    def __init__(self, folder: Path, *, hardware: Path, seed: int) -> None:
        self.hardware = hardware
        self.clock = LabClock()
        self._random = randomness.Random(seed)  # noqa: S311 - a lab repeats itself
        self.trace = LabTrace()
        self.host = LabHost()
        self._count = 0
        broker = folder / "broker"
        self.pin = init(broker, random=self.random_bytes)
        publish_roots(hardware, broker, random=self.random_bytes, clock=self.clock)
        write_policy(broker, {tee: launch_measurement(tee) for tee in ("snp", "tdx")})
        self.broker = open_broker(
            load_config(broker / "broker.toml", simulation=True), clock=self.clock, random=self.random_bytes
        )
        self.http = asgi_transport(create_app(self.broker, inline=True))

    def close(self) -> None:
        """Close the broker's database and log."""
        self.broker.db.close()
        self.broker.audit.close()
        self.broker.keyring.close()

    def random_bytes(self, count: int) -> bytes:
        """The lab's randomness: seeded."""
        return self._random.randbytes(count)

    def guest(
        self,
        tee: str = "snp",
        *,
        mode: str = "critical",
        on_rollback: str = "repair",
        takeover: bool = False,
        skip_checks: frozenset[str] = frozenset(),
        image_bytes: int = IMAGE_BYTES,
    ) -> LabGuest:
        """A new VM with a blank flash, enrolled at the broker."""
        self._count += 1
        vm_id = f"lab-{tee}-{self._count}"
        self.broker.add_vm(vm_id, mode=mode)
        settings = Settings(on_rollback=on_rollback, takeover=takeover, skip_checks=skip_checks)
        return LabGuest(self, vm_id, tee, settings, image_bytes)


def volatile_exchange() -> tuple[Exchange, Callable[[], None]]:
    """A guest on a service that stores nothing: ``exchange`` and ``reset``, for recording scenarios."""
    service = VariableService(
        {}, profile=Profile(), limits=Limits.for_capacity(IMAGE_BYTES), commit=lambda _journal: None, trace=silent
    )
    machine = InProcessGuest(Service(service))
    return machine.mm_request, machine.reset
