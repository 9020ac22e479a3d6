"""The component's boot: evidence, lease, key, store, and only then the guest.

Nothing here opens a file, a socket or a clock: everything is handed in. Source: design section 2, key-release 5.4.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from cvars.component.claims import Claimant
from cvars.errors import AnchorFenced, StoreError, UsageMistake
from cvars.mm.service import VariableService
from cvars.release.client import BrokerClient, ReleaseIdentity
from cvars.release.http_anchor import HttpAnchor
from cvars.release.initdata import InitData
from cvars.store import Medium, Mode, Store, StoreConfig, StoreKeys, mount
from cvars.trace import ComponentWeakened, GuestBooted, GuestBootRefused, Trace
from cvars.variables.limits import Limits
from cvars.variables.profile import Profile
from svsm_bridge.errors import GuestMustStop
from svsm_bridge.manifests import manifest_source
from svsm_bridge.service import ManifestSource

TESTABLE_CHECKS: Final = frozenset({"record-authentication", "anchor-comparison", "vm-binding"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator asked for. ``on_rollback`` can only be stricter than the measured init-data."""

    on_rollback: str = "repair"
    takeover: bool = False
    engine: str = "cvars"
    profile: Profile = field(default_factory=Profile)
    skip_checks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the process hands in: ``random(n)`` gives n bytes, ``clock()`` seconds that never go back.

    ``simulated``: the evidence is that of simulated hardware.
    """

    medium: Medium
    broker: BrokerClient
    random: Callable[[int], bytes]
    clock: Callable[[], float]
    trace: Trace
    simulated: bool


class Component:
    """A booted component: serves MM messages of one guest until it is stopped or fenced."""

    def __init__(self, store: Store, service: VariableService, claims: Claimant) -> None:
        self.claims = claims
        self.manifests: ManifestSource = manifest_source(claims)
        self._store = store
        self._service = service
        self._lock = threading.Lock()
        self._stopped: StoreError | None = None

    @property
    def store(self) -> Store:
        """The mounted store."""
        return self._store

    @property
    def service(self) -> VariableService:
        """The variable service."""
        return self._service

    def handle(self, guid: UUID, message: bytes) -> bytes:
        """`svsm_bridge.handlers.MmHandler`: one message in, its reply out.

        Raises:
            CallError: the message was not executed.
            GuestMustStop: the store cannot be trusted any more, or this instance was fenced.
        """
        with self._lock:
            self._must_run()
            try:
                self._store.require_lease()
                return self._service.handle(guid, message)
            except StoreError as error:
                raise self._stop(error) from error

    def reset(self) -> None:
        """Platform reset (R20)."""
        with self._lock:
            self._service.reset()

    def tick(self) -> float:
        """Renew the lease and anchor what a mode's time limit asks for.

        Returns the seconds until it wants to be called again. Raises GuestMustStop as `handle` does.
        """
        with self._lock:
            self._must_run()
            try:
                return self._store.tick()
            except StoreError as error:
                raise self._stop(error) from error

    def close(self) -> None:
        """Clean shutdown: close record, last anchor, lease given back. Raises ``StoreError``: not clean."""
        with self._lock:
            if self._stopped is None:
                self._stopped = AnchorFenced("the component was stopped")
                self._store.close()

    def _must_run(self) -> None:
        if self._stopped is not None:
            raise GuestMustStop(str(self._stopped)) from self._stopped

    def _stop(self, error: StoreError) -> GuestMustStop:
        self._stopped = error
        return GuestMustStop(str(error))


def boot(init_data: InitData, settings: Settings, around: Surroundings) -> Component:
    """Attest, take the lease, receive the key, open the store, and build the service.

    Raises:
        StoreError: why the guest is not started (SS-7); the lease was handed back where one was taken.
        CvarsError: the broker refused or did not answer, or the configuration is wrong.
    """
    try:
        return _boot(init_data, settings, around)
    except Exception as error:
        reason = getattr(error, "reason", "internal")
        around.trace(GuestBootRefused(reason=reason, detail=str(error)))
        raise


def _boot(init_data: InitData, settings: Settings, around: Surroundings) -> Component:
    if settings.skip_checks:
        checks = tuple(sorted(settings.skip_checks))
        if not around.simulated:
            raise UsageMistake(
                f"only a simulated component runs without a check: {', '.join(checks)}", hint="keep every check"
            )
        around.trace(ComponentWeakened(checks=checks))
    vm_id = init_data.vm_id
    if vm_id is None:
        raise UsageMistake("init-data names no VM", hint='add "cvars.vm-id" to its [data]')
    broker = around.broker
    broker.attest(init_data.body)
    acquired = broker.acquire(vm_id, takeover=settings.takeover)
    anchor = HttpAnchor(broker, acquired)
    try:
        config = StoreConfig(
            mode=Mode.named(acquired.mode),
            on_rollback=_stricter(settings.on_rollback, init_data),
            engine=settings.engine,
            skip_checks=settings.skip_checks & TESTABLE_CHECKS,
        )
        provision = acquired.state == "new"
        keys = StoreKeys(
            store_id=acquired.store_id,
            vm_id=vm_id,
            keks=broker.store_key(vm_id, provision=provision),
            write_version=acquired.key_version,
        )
        identity = broker.identity(vm_id)
    except BaseException:
        with suppress(StoreError):
            anchor.seal(epoch=acquired.epoch, point=acquired.point)
        raise
    store = mount(
        around.medium,
        keys=keys,
        config=config,
        acquired=acquired,
        anchor=anchor,
        provision=provision,
        random=around.random,
        clock=around.clock,
        trace=around.trace,
    )
    try:
        return _serving(vm_id, store, identity, config, settings, around)
    except BaseException:  # the store is open and the lease is ours: give both back
        with suppress(StoreError):
            store.close()
        raise


def _serving(
    vm_id: str,
    store: Store,
    identity: ReleaseIdentity,
    config: StoreConfig,
    settings: Settings,
    around: Surroundings,
) -> Component:
    """Build the service on the mounted store."""
    service = VariableService(
        store.variables,
        profile=settings.profile,
        limits=Limits.for_capacity(store.capacity, largest=store.largest),
        commit=store.commit,
        trace=around.trace,
    )
    around.trace(GuestBooted(epoch=store.session, counter=store.point.counter, variables=len(store.variables)))
    claims = Claimant(vm_id, store, service, identity, config.window_s, simulated=around.simulated)
    return Component(store, service, claims)


def _stricter(asked: str, init_data: InitData) -> str:
    measured = init_data.data.get("cvars.on-rollback", "repair")
    if measured not in ("repair", "refuse"):
        raise UsageMistake(f"measured init-data: cvars.on-rollback is repair or refuse, not {measured!r}")
    return "refuse" if "refuse" in (asked, measured) else "repair"
