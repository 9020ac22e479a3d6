"""What the component states of itself in the manifests of the attestation protocol (svsm-calls 3.2).

Every claim is derived from the state it speaks of, when it is asked for (P37, S32).
"""

import hashlib
from dataclasses import dataclass

from cvars.mm.service import VariableService
from cvars.release.client import ReleaseIdentity
from cvars.store import Mode, Outcome, Store
from cvars.store.header import MAJOR
from cvars.variables.model import Key
from cvars.variables.names import AUDIT_MODE, DB, DBX, DEPLOYED_MODE, KEK, PK, SECURE_BOOT
from cvars.variables.state import MorLock
from svsm_bridge.manifests import (
    BootOutcome,
    BootPhase,
    Claims,
    KeySource,
    RollbackProtection,
    SecureBootMode,
    secure_boot_digest,
)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Takes claims from one store and one service. ``window_s``: T of bounded mode."""

    vm_id: str
    store: Store
    service: VariableService
    identity: ReleaseIdentity
    window_s: float
    simulated: bool

    def __call__(self) -> Claims:
        """The claims as they are now."""
        state, store = self.service.state, self.store
        anchored = store.anchored
        secure_boot = self._byte(SECURE_BOOT) == 1
        return Claims(
            persistent=True,
            secure_boot=secure_boot,
            db_updatable=secure_boot,
            policy_locked=state.policies.locked,
            policy_may_be_disabled=state.profile.allows_disable,
            mor_locked=state.mor.lock is not MorLock.UNLOCKED,
            custom_mode=state.in_custom_mode,
            factory_state=store.boot.outcome is Outcome.CREATED,
            simulated=self.simulated,
            store_format=MAJOR,
            rollback_protection=RollbackProtection(store.mode if store.boot.verified else Mode.NONE),
            key_source=KeySource.BROKER,
            secure_boot_mode=self._mode(),
            boot_phase=BootPhase(state.phase),
            window_ms=int(self.window_s * 1000) if store.mode is Mode.BOUNDED else 0,
            epoch=store.session,
            counter=anchored.counter if anchored else 0,
            vm_identity=hashlib.sha256(self.vm_id.encode()).digest(),
            key_release_id=self.identity.release_id,
            tee_key_thumbprint=self.identity.tee_key,
            secure_boot_digest=secure_boot_digest(*(self._data(key) for key in (PK, KEK, DB, DBX))),
            boot_outcome=BootOutcome(store.boot.outcome),
            commits_repaired=store.boot.commits_repaired,
        )

    def _mode(self) -> SecureBootMode:
        if self._byte(DEPLOYED_MODE) == 1:
            return SecureBootMode.DEPLOYED
        if self._byte(AUDIT_MODE) == 1:
            return SecureBootMode.AUDIT
        return SecureBootMode.SETUP if self.service.state.in_setup_mode else SecureBootMode.USER

    def _data(self, key: Key) -> bytes | None:
        found = self.service.state.table.find(key)
        return found.data if found else None

    def _byte(self, key: Key) -> int | None:
        data = self._data(key)
        return data[0] if data and len(data) == 1 else None
