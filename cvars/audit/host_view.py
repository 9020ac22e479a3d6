"""What an observer of the disk learns from stores and from their changes over time (SS-2, T15).

Works on bytes alone, without any key: the clear fields of headers and records, and when which bytes changed.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from cvars.audit.observer import Observation
from cvars.store.inspecting import LOG, Seen, inspect
from cvars.store.record import PREFIX_BYTES


@dataclass(frozen=True, slots=True)
class StoreView:
    """One image: what its clear bytes say, and how random its sealed bytes look.

    ``sealed_entropy``: bits per byte over all record bodies (8.0 = no structure), None without a record.
    """

    name: str
    sha256: str
    seen: Seen
    sealed_bytes: int
    sealed_entropy: float | None

    @property
    def commits(self) -> list[dict[str, Any]]:
        """Log records in order: what the host knows of each."""
        return [
            {"offset": r.offset, "size": r.size, "session": r.session, "sequence": r.sequence}
            for bank in self.seen.banks
            for r in bank.records
            if r.place == LOG
        ]


@dataclass(frozen=True, slots=True)
class HostView:
    """All images, and the writes seen while the guest ran."""

    stores: tuple[StoreView, ...]
    observations: tuple[Observation, ...]

    def as_json(self) -> dict[str, Any]:
        """Members of the JSON object."""
        return {
            "stores": [
                {
                    "name": s.name,
                    "sha256": s.sha256,
                    "image_bytes": s.seen.image_size,
                    "frame": s.seen.frame,
                    "banks": [b.header for b in s.seen.banks],
                    "commits": s.commits,
                    "sealed_bytes": s.sealed_bytes,
                    "sealed_entropy": s.sealed_entropy,
                }
                for s in self.stores
            ],
            "writes": [{"at": o.at, "offset": o.offset, "length": o.length} for o in self.observations],
        }


def look(images: Mapping[str, bytes], observations: Sequence[Observation] = ()) -> HostView:
    """Describe ``images`` (by name) as their host sees them. Never raises on any bytes."""
    return HostView(tuple(_store(name, image) for name, image in images.items()), tuple(observations))


def _store(name: str, image: bytes) -> StoreView:
    seen = inspect(image)
    bodies = b"".join(
        image[r.offset + PREFIX_BYTES : r.offset + r.size] for bank in seen.banks for r in bank.records
    )
    entropy = _entropy(bodies) if bodies else None
    return StoreView(name, hashlib.sha256(image).hexdigest(), seen, len(bodies), entropy)


def _entropy(data: bytes) -> float:
    """Shannon entropy of the byte distribution, in bits per byte."""
    total = len(data)
    return round(-sum(n / total * log2(n / total) for n in Counter(data).values()), 3)
