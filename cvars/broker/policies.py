"""The set of active policies: an immutable snapshot that is swapped whole, so one request sees one set (K41)."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from cvars.broker.policy.load import Policy, PolicyError, load_policy
from cvars.broker.verifier import Verifier

_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}


class PolicySet:
    """Policies by name. ``refresh`` is called before each decision and may swap the snapshot (other replicas)."""

    def __init__(self, verifier: Verifier, refresh: Callable[["PolicySet"], None] | None = None) -> None:
        self._verifier = verifier
        self._refresh = refresh
        self._active: tuple[Policy, ...] = ()
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def current(self) -> tuple[Policy, ...]:
        """The snapshot."""
        if self._refresh is not None:
            self._refresh(self)
        return self._active

    def load(self, texts: Mapping[str, str], *, references: Mapping[str, Any] | None = None) -> tuple[Policy, ...]:
        """Replace all policies by ``texts``, keyed by where they are from.

        Raises ``PolicyError``; then nothing changed.
        """
        found: dict[str, Policy] = {}
        for where, text in texts.items():
            policy = load_policy(text, verifier=self._verifier, references=references, where=where)
            if policy.name in found:
                raise PolicyError(f"two policies are named {policy.name}", where=where)
            found[policy.name] = policy
        self._active = tuple(found.values())
        return self._active

    def within_rate(self, policy: str, vm_id: str, rate: str, now: float) -> bool:
        """A token bucket per policy and VM, of this process."""
        amount, _, unit = rate.partition("/")
        capacity, per_second = float(amount), float(amount) / _SECONDS[unit]
        with self._lock:
            if len(self._buckets) > 100_000:
                self._buckets.clear()
            level, at = self._buckets.get((policy, vm_id), (capacity, now))
            level = min(capacity, level + max(0.0, now - at) * per_second)
            allowed = level >= 1
            self._buckets[policy, vm_id] = (level - 1 if allowed else level, now)
        return allowed
