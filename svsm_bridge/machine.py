"""One guest: its memory, its vCPUs, and the pages that belong to the calling convention."""

from threading import Condition, RLock
from typing import Final, Protocol

from svsm_bridge.abi import LAUNCH_VMSA, PAGE
from svsm_bridge.errors import InvalidAddress
from svsm_bridge.memory import GuestMemory
from svsm_bridge.pages import R, State, W
from svsm_bridge.profile import DEFAULT, BridgeProfile
from svsm_bridge.service import Patience, Service
from svsm_bridge.watch import FetchAudit, Observer, Observers

#: SEV_FEATURES of a guest that runs under an SVSM: SNP active
SEV_FEATURES: Final = 1


class Vcpu:
    """One vCPU at one guest VMPL.

    ``vmsa`` is the copy taken when it was created: a process that maps the backing can rewrite the page,
    so only the copy is used afterwards (2.3).
    """

    __slots__ = ("apic_id", "ca", "calls", "inside", "patience", "sev_features", "vmpl", "vmsa", "vmsa_gpa")

    def __init__(self, apic_id: int, vmpl: int, *, ca: int | None, sev_features: int) -> None:
        self.apic_id = apic_id
        self.vmpl = vmpl
        self.ca = ca
        self.vmsa_gpa: int | None = None
        self.vmsa: bytes | None = None
        self.sev_features = sev_features
        self.calls: set[object] = set()  #: under way; one, unless a call was given up at its deadline (S62)
        self.inside: object | None = None  #: the call that VMPL0 is in on this vCPU
        self.patience = Patience()

    @property
    def running(self) -> bool:
        """The SVSM is in a call of this vCPU."""
        return bool(self.calls)


class Machine:
    """A guest and the service behind it. ``audit`` watches for double fetches (S22)."""

    def __init__(
        self,
        service: Service,
        *,
        memory: GuestMemory | None = None,
        profile: BridgeProfile = DEFAULT,
        guest_vmpl: int = 2,
        audit: FetchAudit | None = None,
        call_deadline_s: float = 5.0,
    ) -> None:
        if not 1 <= guest_vmpl <= 3:
            raise ValueError(f"guest VMPL {guest_vmpl} is not 1, 2 or 3")
        self.service = service
        self.memory = memory or GuestMemory()
        self.profile = profile
        self.guest_vmpl = guest_vmpl
        self.audit = audit
        self.call_deadline_s = call_deadline_s
        self.vcpus: dict[int, Vcpu] = {}
        self.vmsas: dict[int, Vcpu] = {}  #: VMSA page -> vCPU, only those made by CREATE_VCPU
        self.launch_vmsa = LAUNCH_VMSA
        self.idle = Condition(RLock())  #: notified when a vCPU leaves the SVSM while somebody waits for it
        self.waiting = 0
        self.entry_filter: EntryFilter | None = None
        self._observers: list[Observer] = []
        if audit is not None:
            self.watch(audit)

    def watch(self, observer: Observer) -> None:
        """Tell ``observer`` of every access to guest memory."""
        self._observers.append(observer)
        self._tell()

    def unwatch(self, observer: Observer) -> None:
        """Tell it no more."""
        if observer in self._observers:
            self._observers.remove(observer)
        self._tell()

    def _tell(self) -> None:
        watching = tuple(self._observers)
        self.memory.observer = Observers(*watching) if len(watching) > 1 else next(iter(watching), None)

    def add_vcpu(
        self, apic_id: int, *, ca: int | None = None, vmpl: int | None = None, sev_features: int = SEV_FEATURES
    ) -> Vcpu:
        """Add a vCPU; with ``ca`` it can call at once, without it waits for CREATE_VCPU.

        Raises:
            InvalidAddress: the calling area fails S20 or S21, or is somebody's already.
            ValueError: the APIC id is taken.
        """
        with self.memory.rights:
            if apic_id in self.vcpus:
                raise ValueError(f"APIC id {apic_id} is taken")
            vcpu = Vcpu(apic_id, vmpl or self.guest_vmpl, ca=ca, sev_features=sev_features)
            if ca is not None:
                self.require_free_page(ca, vcpu.vmpl)
                self.memory.svsm_write(ca, bytes(8))
                self.memory.rmp.claim(ca, State.CA)
            self.vcpus[apic_id] = vcpu
            return vcpu

    def require_free_page(self, gpa: int, vmpl: int) -> None:
        """A page that may become a calling area or a VMSA: S20 and S21, and neither of them already.

        Raises:
            InvalidAddress: it may not. The caller holds the rights lock.
        """
        if gpa % PAGE:
            raise InvalidAddress(f"{gpa:#x} is not page aligned")
        if not self.memory.is_ram(gpa):
            raise InvalidAddress(f"{gpa:#x} is not guest RAM, or a calling area or a VMSA")
        self.memory.check(gpa, PAGE, vmpl=vmpl, need=R | W)

    def wait_idle(self, vcpu: Vcpu, seconds: float) -> bool:
        """Wait until ``vcpu`` has left the SVSM."""
        with self.idle:
            self.waiting += 1
            try:
                return self.idle.wait_for(lambda: not vcpu.calls, seconds)
            finally:
                self.waiting -= 1

    def left(self, vcpu: Vcpu, call: object) -> None:
        """``vcpu`` leaves the SVSM."""
        vcpu.calls.discard(call)
        if self.waiting:
            with self.idle:
                self.idle.notify_all()

    def platform_reset(self) -> None:
        """R20: volatile state goes; memory, page states and calling areas are the guest's own matter."""
        self.service.reset()

    def close(self) -> None:
        """Power off: unmap the guest."""
        self.memory.close()


class EntryFilter(Protocol):
    """What an adversarial hypervisor does with entries into the SVSM."""

    def enter(self, vcpu: Vcpu) -> bool:
        """False: the vCPU comes back without VMPL0 having run (``drop_entry``)."""
        ...

    def leave(self, vcpu: Vcpu) -> None:
        """After a served call. May raise ``NeverResumed`` (``stop_reply``)."""
        ...
