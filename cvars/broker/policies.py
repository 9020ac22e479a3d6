"""The set of active policies: an immutable snapshot that is swapped whole, so one request sees one set (K41)."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cvars.broker.policy.load import Policy, PolicyError, load_policy
from cvars.broker.verifier import Verifier

_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_MAX_BUCKETS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one decision sees. ``restriction``: a Rego text that may only say no."""

    policies: tuple[Policy, ...] = ()
    restriction: str | None = None

    @property
    def restriction_digest(self) -> str:
        """Hex SHA-256 of the restriction."""
        return hashlib.sha256((self.restriction or "").encode()).hexdigest()


class PolicySet:
    """Policies by name. ``refresh`` is called before each decision and may swap the snapshot (other replicas)."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.refresh: Callable[[PolicySet], None] | None = None
        self._active = Snapshot()
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def current(self) -> Snapshot:
        """The snapshot."""
        if self.refresh is not None:
            self.refresh(self)
        return self._active

    def load(
        self,
        texts: Mapping[str, str],
        *,
        references: Mapping[str, Any] | None = None,
        restriction: str | None = None,
    ) -> None:
        """Replace all policies by ``texts``, keyed by where they are from.

        Raises ``PolicyError``; then nothing changed.
        """
        found: dict[str, Policy] = {}
        for where, text in texts.items():
            policy = load_policy(text, verifier=self._verifier, references=references, where=where)
            if policy.name in found:
                raise PolicyError(f"two policies are named {policy.name}", where=where)
            found[policy.name] = policy
        self._active = Snapshot(tuple(found.values()), restriction)

    def within_rate(self, policy: str, vm_id: str, rate: str, now: float) -> bool:
        """A token bucket per policy and VM, of this process."""
        amount, _, unit = rate.partition("/")
        capacity, per_second = float(amount), float(amount) / _SECONDS[unit]
        with self._lock:
            if len(self._buckets) > _MAX_BUCKETS:
                self._buckets.clear()
            level, at = self._buckets.get((policy, vm_id), (capacity, now))
            level = min(capacity, level + max(0.0, now - at) * per_second)
            allowed = level >= 1
            self._buckets[policy, vm_id] = (level - 1 if allowed else level, now)
        return allowed
