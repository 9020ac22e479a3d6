"""Guest and SVSM in one process: a direct call into the dispatcher."""

from svsm_bridge.abi import Outcome, Registers
from svsm_bridge.dispatcher import CallTrace, Dispatcher
from svsm_bridge.handlers import MmHandler
from svsm_bridge.machine import Machine
from svsm_bridge.profile import DEFAULT, BridgeProfile
from svsm_bridge.service import Service
from svsm_bridge.transports.guest import CA_GPA, RAM_BASE, RAM_BYTES, GuestSide
from svsm_bridge.watch import FetchAudit


class InProcessGuest(GuestSide):
    """A guest that calls ``service`` directly. ``machine`` and ``dispatcher`` are there for tests."""

    def __init__(
        self,
        service: Service | MmHandler,
        *,
        profile: BridgeProfile = DEFAULT,
        ram_bytes: int = RAM_BYTES,
        audit: FetchAudit | None = None,
        on_call: CallTrace | None = None,
    ) -> None:
        served = service if isinstance(service, Service) else Service(service)
        self.machine = Machine(served, profile=profile, audit=audit)
        region = self.machine.memory.add(RAM_BASE, ram_bytes)
        self.machine.add_vcpu(0, ca=CA_GPA)
        self.dispatcher = Dispatcher(self.machine, on_call=on_call)
        super().__init__(region.buffer)
        served.reset()

    def enter(self, vcpu: int, regs: Registers) -> Outcome:
        """Straight into the dispatcher."""
        return self.dispatcher.enter(self.machine.vcpus[vcpu], regs)

    def reset(self) -> None:
        """Platform reset (R20)."""
        self.machine.platform_reset()

    def close(self) -> None:
        """Power off."""
        self.machine.close()
