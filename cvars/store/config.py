"""What measured configuration decides about a store; the image decides nothing (SS-20)."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cvars import __version__
from cvars.store.selection import Mode
from cvars.store.suites import GCM_SIV, SUITES
from cvars.variables.model import Key

SKIP_RECORD: Final = "record-authentication"
SKIP_ANCHOR: Final = "anchor-comparison"
SKIP_BINDING: Final = "vm-binding"
SKIPPABLE: Final = frozenset({SKIP_RECORD, SKIP_ANCHOR, SKIP_BINDING})


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One store's settings.

    Attributes:
        mode: freshness mode of this session (SS-14).
        window_commits, window_s: W and T of bounded mode.
        on_rollback: ``repair`` (reported) or ``refuse`` (section 4 item 7).
        suite: cipher of new banks; a bank under another one is compacted at mount.
        engine: text that the session record names, at most 32 bytes.
        extra_security: variables that the owner adds to the security-relevant ones.
        rekey_each_boot: compact under a new bank key at every mount (T25).
        doubt_s: how long a commit waits for an unanswered `advance`; later attempts are made by `tick`.
        skip_checks: for tests that prove verdicts; production refuses anything but the empty set.
    """

    mode: Mode = Mode.CRITICAL
    window_commits: int = 16
    window_s: float = 2.0
    on_rollback: str = "repair"
    suite: int = GCM_SIV
    engine: str = f"cvars {__version__}"
    extra_security: frozenset[Key] = frozenset()
    rekey_each_boot: bool = False
    doubt_s: float = 5.0
    skip_checks: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.on_rollback not in ("repair", "refuse"):
            raise ValueError(f"on_rollback is repair or refuse, not {self.on_rollback!r}")
        if self.suite not in SUITES:
            raise ValueError(f"suite {self.suite} does not exist")
        if not 1 <= self.window_commits <= 0xFFFF or self.window_s <= 0:
            raise ValueError("W is 1..65535, T is positive")
        if len(self.engine.encode()) > 32:
            raise ValueError("the engine text has at most 32 bytes")
        unknown = self.skip_checks - SKIPPABLE
        if unknown:
            raise ValueError(f"no such check to skip: {', '.join(sorted(unknown))}")

    @property
    def window(self) -> int:
        """W as the image records it: 0 outside bounded mode."""
        return self.window_commits if self.mode is Mode.BOUNDED else 0


class Outcome(IntEnum):
    """Boot result, with the numbers of TLV 1 (SS-17)."""

    CLEAN = 0
    ROLLED_FORWARD = 1
    REPAIRED = 2
    CREATED = 3


@dataclass(frozen=True, slots=True)
class Boot:
    """How a mount ended, for the guest, its manifest and the operator (SS-17).

    ``verified``: the anchor vouched for the state. ``found``: sequence that the image ended at;
    ``anchored``: sequence that the anchor held.
    """

    outcome: Outcome
    mode: Mode
    verified: bool
    found: int
    anchored: int
    commits_repaired: int = 0
    rolled_forward: int = 0
