"""Which history may be served, given what the broker vouches for. Source: sealed-store 4 items 5 and 7.

The rule in one sentence: a history is acceptable when it contains the anchored point, and what lies beyond it
is no more than the mode of the session that wrote it allows.
"""

from dataclasses import dataclass
from enum import IntEnum

from cvars.errors import AnchorRolledBack, StoreError, StoreForked, StoreRolledBack
from cvars.store import record
from cvars.store.anchor import Acquired
from cvars.store.escrow import ring_points
from cvars.store.history import Commit, History


class Mode(IntEnum):
    """Freshness modes, with the numbers of the extension manifest (SS-14)."""

    NONE = 0
    PER_BOOT = 1
    BOUNDED = 2
    CRITICAL = 3
    STRICT = 4

    @property
    def label(self) -> str:
        """As written in policies and on the command line."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def named(cls, label: str) -> "Mode":
        """Read ``per-boot`` and its like. Raises KeyError."""
        return cls[label.upper().replace("-", "_")]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The history contains the anchored point; ``beyond`` may be kept."""

    beyond: tuple[Commit, ...]

    @property
    def rolled_forward(self) -> int:
        """Data commits beyond the anchored point."""
        return sum(c.kind == record.TRANSACTION for c in self.beyond)


def check_broker_remembers(history: History, acquired: Acquired) -> None:
    """Refuse when the image names what the broker has not done yet (SS-16, T21). Raises AnchorRolledBack."""
    named = history.highest_session
    if named >= acquired.epoch:
        raise AnchorRolledBack(f"the image names session {named}, the broker opened only {acquired.epoch} now")
    if history.highest_version >= acquired.version:
        raise AnchorRolledBack(
            f"the image names version {history.highest_version} of the broker's record, "
            f"the broker is at {acquired.version}"
        )
    if history.header.anchored.counter > acquired.point.counter:
        raise AnchorRolledBack(
            f"the image saw the anchor at {history.header.anchored.counter}, "
            f"the broker is at {acquired.point.counter}"
        )


def judge(history: History, acquired: Acquired) -> Accepted | None:
    """Apply item 5. None: the anchored point is not in this history. Raises AnchorRolledBack."""
    check_broker_remembers(history, acquired)
    points = [c.point for c in history.commits]
    if acquired.point in points:
        beyond = tuple(history.commits[points.index(acquired.point) + 1 :])
    elif acquired.point == history.header.parent_point:
        beyond = tuple(history.commits)
    else:
        return None
    excess = _excess(history, beyond)
    if excess:
        raise AnchorRolledBack(f"{excess} beyond the anchored sequence {acquired.point.counter}")
    return Accepted(beyond)


def _excess(history: History, beyond: tuple[Commit, ...]) -> str:
    """Say what exceeds item 5, or nothing."""
    data = [c for c in beyond if c.kind == record.TRANSACTION]
    if not data:
        return ""
    announced = next((i for i, c in enumerate(beyond) if c.kind == record.SESSION), len(beyond))
    if any(c.kind == record.TRANSACTION for c in beyond[announced:]):
        return "data of a session whose announcement is not anchored"
    number, window = history.modes[data[0].session]
    mode = Mode(number)
    if mode is Mode.STRICT and len(data) > 1:
        return f"{len(data)} commits of a strict session"
    if mode is Mode.BOUNDED and len(data) > window:
        return f"{len(data)} commits of a session bounded to {window}"
    if mode is Mode.CRITICAL and any(c.security for c in data[:-1]):
        return "a security-relevant commit and others"
    return ""


def refusal(history: History, acquired: Acquired, *, repairable: bool) -> StoreError:
    """Why a history without the anchored point is refused: a fork or a rollback (T5, T6)."""
    found, anchored = history.point, acquired.point
    if not repairable:
        if found.counter >= anchored.counter:
            return StoreForked(
                f"the image ends at sequence {found.counter} on another branch; anchored is {anchored.counter}"
            )
        ring = ring_points(history, acquired)
        if found not in ring and any(point in ring for point in history.points):
            return StoreForked(
                f"the image left the anchored history before sequence {found.counter}; "
                f"anchored is {anchored.counter}"
            )
    return StoreRolledBack(
        f"the image ends at sequence {found.counter}, anchored is {anchored.counter}",
        hint="cvars store explain store.rolled_back",
    )
