"""What one bank tells: its snapshot, then every record that authenticates, follows and chains.

Source: sealed-store section 6 "Mount". A `History` is also the position that the engine appends to and that a
repair replays on: the same checks hold for bytes from the image and from the escrow ring.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cvars.store import record, snapshot
from cvars.store.anchor import AnchorPoint
from cvars.store.geometry import HEADER_BLOCK, HEADER_BYTES, Geometry
from cvars.store.header import BankHeader
from cvars.store.keys import BankKeys
from cvars.store.operations import Malformed, replay
from cvars.store.snapshot import Damage
from cvars.variables.model import Key, Variable

_ZERO_16: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class Commit:
    """One accepted commit. ``raw``: its escrow entry (record, or header and session salt)."""

    point: AnchorPoint
    kind: int
    session: int
    security: bool
    raw: bytes | memoryview
    offset: int


@dataclass(slots=True)
class History:
    """A verified bank and the position behind its last accepted record. Offsets are bank-relative."""

    header: BankHeader
    keys: BankKeys
    geometry: Geometry
    variables: dict[Key, Variable]
    live: int
    commits: list[Commit]
    tail: int
    point: AnchorPoint
    session: int
    #: mode and W by session, as the image records them
    modes: dict[int, tuple[int, int]]
    highest_version: int = 0
    announced: set[int] = field(default_factory=set)
    closed: bool = False
    damage: Damage | None = None
    #: what lies at the tail without being a record of this history: "", "torn" or "stale"
    remnant: str = ""

    def accept(self, one: record.Opened, raw: bytes | memoryview) -> Commit:
        """Take the authentic record ``one`` as the next commit. Raises Damage, and is then useless."""
        number = len(self.commits)
        session = one.prefix.session

        def damage(message: str) -> Damage:
            return Damage(self.tail, number, f"record {number}: {message}")

        if one.prefix.sequence != self.point.counter + 1 or one.previous != self.point.root:
            raise damage("authentic, but it does not continue this history")
        if one.prefix.part or session < self.session:
            raise damage("a part, or an older session, inside the log")
        if one.kind == record.SESSION:
            if session in self.announced or (session == self.session and session != self.header.session):
                raise damage("a session is announced twice")
            self._announce(one, damage)
        elif session != self.session or (self.closed and one.kind == record.TRANSACTION):
            raise damage("written by a session that is not open")
        if one.kind == record.TRANSACTION:
            try:
                self.live = replay(one.body, one.count, self.variables, self.live, puts_only=False)
            except Malformed as error:
                raise damage(str(error)) from None
        elif one.kind == record.CLOSE:
            if one.body or one.flags or one.count or self.closed:
                raise damage("a close record with content")
            self.closed = True
        elif one.kind != record.SESSION:
            raise damage("a snapshot record inside the log")
        if one.live != self.live or self.live > self.geometry.capacity:
            raise damage("its live bytes disagree with its content")
        self.point = AnchorPoint(one.prefix.sequence, self.keys.chain(one.previous, raw))
        commit = Commit(self.point, one.kind, session, bool(one.flags & record.SECURITY), raw, self.tail)
        self.commits.append(commit)
        self.tail += one.size
        return commit

    def _announce(self, one: record.Opened, damage: Callable[[str], Damage]) -> None:
        try:
            announcement = record.Announcement.parse(one.body)
        except Malformed as error:
            raise damage(str(error)) from None
        if one.flags or one.count:
            raise damage("a session record with operations")
        self.session = one.prefix.session
        self.announced.add(self.session)
        self.modes[self.session] = (announcement.mode, announcement.window)
        self.highest_version = max(self.highest_version, announcement.anchor_version)
        self.closed = False

    @property
    def room(self) -> int:
        """Bytes left in the log."""
        return self.geometry.bank_size - self.tail

    @property
    def highest_session(self) -> int:
        """Sessions never fall inside a history."""
        return max(self.session, self.header.session)

    @property
    def points(self) -> list[AnchorPoint]:
        """All points of this history, the parent that the header names first."""
        parent = self.header.parent_point
        return ([] if parent is None else [parent]) + [c.point for c in self.commits]


def begin(
    header: BankHeader, keys: BankKeys, geometry: Geometry, snap: snapshot.Read, raw_header: bytes
) -> History:
    """The history that a verified snapshot starts."""
    entry = raw_header + snap.salt
    first = Commit(header.base, record.SNAPSHOT_END, header.session, False, entry, 0)
    return History(
        header,
        keys,
        geometry,
        snap.variables,
        snap.live,
        [first],
        HEADER_BLOCK + header.snapshot_bytes,
        header.base,
        header.session,
        {header.session: (header.mode, header.window)},
    )


def read_bank(
    header: BankHeader, keys: BankKeys, geometry: Geometry, bank: memoryview, *, probe: bool = True
) -> History:
    """Read a bank whose header has verified.

    Raises Damage when the snapshot does not verify. Damage in the log is kept in `History.damage`: the
    history then holds what precedes it. ``probe=False`` skips the search for authentic records behind the
    end (a test's switch: damage in the middle then looks like the end of the log).
    """
    history = begin(
        header,
        keys,
        geometry,
        snapshot.read(header, keys, geometry, bank),
        bytes(bank[:HEADER_BYTES]),
    )
    frame, end = geometry.frame, geometry.bank_size
    try:
        while history.tail < end:
            at = history.tail
            one = record.unseal(bank, at, keys, frame=frame, offset=at, end=end)
            if one is None:
                if bytes(bank[at : at + 4]) == record.MAGIC:
                    history.remnant = "torn"
                break
            chains = one.prefix.sequence == history.point.counter + 1 and one.previous == history.point.root
            if not chains and one.prefix.session < history.session:
                history.remnant = "stale"
                break
            history.accept(one, bank[at : at + one.size])
        if probe:
            _probe(history, bank)
    except Malformed as error:
        history.damage = Damage(history.tail, len(history.commits), f"record: {error}")
    except Damage as damage:
        history.damage = damage
    return history


def _probe(history: History, bank: memoryview) -> None:
    """Look for authentic records behind the end: a hole in front of one is damage (T1, T13)."""
    frame, end = history.geometry.frame, history.geometry.bank_size
    for at in range(history.tail + frame, end, frame):
        if bytes(bank[at : at + 4]) != record.MAGIC:
            continue
        one = record.unseal(bank, at, history.keys, frame=frame, offset=at, end=end)
        if one is not None and one.prefix.session >= history.session:
            raise Damage(
                history.tail,
                len(history.commits),
                f"record {len(history.commits)}: authentication failed in front of record "
                f"{one.prefix.sequence} at {at:#x}",
            )
