"""The writing half: one record per commit, and compaction into the other bank.

Source: sealed-store section 6. Order of every compaction: snapshot, barrier, header, barrier. A record that
failed is written again byte for byte or its bank is left (SS-11); a header that failed is completed, or
nothing is ever written again.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from cvars.errors import StoreIoError
from cvars.store import record, snapshot
from cvars.store.anchor import AnchorPoint
from cvars.store.geometry import CLASSES, HEADER_BLOCK, HEADER_BYTES, Geometry
from cvars.store.header import MAJOR, MEDIUM_FILE, MINOR, BankHeader, header_block
from cvars.store.history import History, begin
from cvars.store.keys import RootKeys
from cvars.store.medium import Medium, flush, write_all
from cvars.trace import StoreCompacted, Trace
from cvars.variables.model import Key, Variable

ATTEMPTS: Final = 3


class Broken(StoreIoError):
    """Writing failed where going on could hide or lose a commit: nothing more is written."""


class Begun(NamedTuple):
    """A sealed record that the medium was given; nothing is claimed about it before `Log.finish`."""

    point: AnchorPoint
    raw: bytes
    place: int
    live: int
    failed: StoreIoError | None


class Log:
    """The active bank of one session, and the medium under it."""

    def __init__(
        self,
        medium: Medium,
        history: History,
        *,
        root: RootKeys,
        suite: int,
        session: int,
        salt: bytes,
        mode: int,
        window: int,
        highest_generation: int,
        random: Callable[[int], bytes],
        trace: Trace,
    ) -> None:
        self._medium = medium
        self._root = root
        self._suite = suite
        self._salt = salt
        self._mode = mode
        self._window = window
        self._random = random
        self._trace = trace
        self.history = history
        self.session = session
        self.highest_generation = highest_generation
        self.broken = False
        self._stuck = False
        self._erased_to = history.geometry.bank_size

    @property
    def key_version(self) -> int:
        """Key version of the active bank."""
        return self.history.header.key_version

    def fits(self, class_index: int) -> bool:
        """Whether this bank takes a record of that class behind its tail (on NOR: in erased cells)."""
        history = self.history
        return not self.broken and history.tail + CLASSES[class_index] * history.geometry.frame <= self._erased_to

    def find_erased(self, image: bytes, *, repaired: bool) -> None:
        """On NOR only erased cells take a record: see at mount how far they reach behind the tail."""
        header, tail = self.history.header, self.history.tail
        if header.medium == MEDIUM_FILE:
            return
        rest = image[header.bank_offset + tail : header.bank_offset + header.bank_size]
        self._erased_to = tail + (0 if repaired else len(rest) - len(rest.lstrip(b"\xff")))

    def begin(self, kind: int, class_index: int, body: bytes, *, count: int, live: int, security: bool) -> Begun:
        """Seal one record and hand it to the medium, which works on it until `finish` waits for it.

        The caller made sure that it fits. Raises Broken: an earlier write failed, and this bank takes no other
        record. A write that fails here is made again by `finish`.
        """
        if self.broken:
            raise Broken("an earlier write failed: this bank takes no more records")
        history = self.history
        before, keys, tail = history.point, history.keys, history.tail
        sequence = before.counter + 1
        raw = record.seal(
            keys,
            frame=history.geometry.frame,
            offset=tail,
            class_index=class_index,
            part=0,
            session=self.session,
            salt=self._salt,
            sequence=sequence,
            previous=before.root,
            kind=kind,
            flags=record.SECURITY if security else 0,
            count=count,
            live=live,
            body=body,
        )
        place = history.header.bank_offset + tail
        self.broken = True  # until it is finished: whatever interrupts us, no other record takes this sequence
        failed: StoreIoError | None = None
        try:
            write_all(self._medium, place, raw)
        except StoreIoError as error:
            failed = error
        return Begun(AnchorPoint(sequence, keys.chain(before.root, raw)), raw, place, live, failed)

    def finish(self, begun: Begun) -> None:
        """The barrier: the record is durable and the history ends with it. One write and one barrier in all.

        Raises StoreIoError after the last attempt: then this bank takes no other record (`broken`), only a
        compaction leads on.
        """
        try:
            if begun.failed is not None:
                raise begun.failed
            flush(self._medium)
        except StoreIoError:
            self._durable(((begun.place, begun.raw),), ATTEMPTS - 1)
        history = self.history
        history.point = begun.point
        history.tail += len(begun.raw)
        history.live = begun.live
        self.broken = False

    def _durable(self, writes: tuple[tuple[int, bytes], ...], attempts: int = ATTEMPTS) -> None:
        """Write each with a barrier behind it; on an error all of it again, byte for byte (SS-11, T26)."""
        for left in reversed(range(attempts)):
            try:
                for offset, data in writes:
                    write_all(self._medium, offset, data)
                    flush(self._medium)
            except StoreIoError:
                if not left:
                    raise
            else:
                return

    def compact(self, variables: dict[Key, Variable], anchored: AnchorPoint) -> tuple[AnchorPoint, bytes]:
        """Write the live state into the other bank; return the new point and its escrow entry.

        ``anchored``: the last verified anchor point. Raises StoreIoError: before the header nothing has
        changed (`Broken` is not raised); `Broken`: at the header, and nothing is written any more.
        """
        if self._stuck:
            raise Broken("an earlier compaction was not completed")
        old = self.history
        geometry = old.geometry
        offset = geometry.other(old.header.bank_offset)
        self.highest_generation += 1
        draft = new_header(
            geometry,
            offset,
            root=self._root,
            vm_binding=old.header.vm_binding,
            suite=self._suite,
            medium=old.header.medium,
            mode=self._mode,
            window=self._window,
            generation=self.highest_generation,
            session=self.session,
            base_sequence=old.point.counter + 1,
            parent=old.point.root,
            previous_key_version=old.header.key_version,
            anchored=anchored,
            bank_salt=self._random(32),
        )
        history, raw, sealed = write_snapshot(draft, self._root, geometry, variables, self._salt)
        self.write_bank(history, raw, sealed)
        self._erased_to = geometry.bank_size
        self._trace(
            StoreCompacted(
                generation=history.header.generation,
                counter=history.point.counter,
                root=history.point.root,
                snapshot_bytes=history.header.snapshot_bytes,
            )
        )
        return history.point, raw + self._salt

    def write_bank(self, history: History, raw: bytes, sealed: bytes) -> None:
        """Snapshot, barrier, header block, barrier: from then on ``history`` is the one that is written to."""
        offset = history.header.bank_offset
        self.prepare_bank(offset)
        body, head = (offset + HEADER_BLOCK, sealed), (offset, header_block(raw))
        write_all(self._medium, *body)
        flush(self._medium)
        self.broken = self._stuck = True  # the header may be durable from here on: the other bank is over
        try:
            write_all(self._medium, *head)
            flush(self._medium)
        except StoreIoError:
            try:  # complete everything once more, or stop
                self._durable((body, head))
            except StoreIoError as error:
                raise Broken(f"a compaction could not be completed: {error.message}") from error
        self.history = history
        self.broken = self._stuck = False

    def prepare_bank(self, offset: int) -> None:
        """Make the bank ready to be written: NOR cells are erased first."""
        if self.history.header.medium != MEDIUM_FILE:
            erase(self._medium, offset, self.history.geometry.bank_size)


def erase(medium: Medium, offset: int, size: int) -> None:
    """Erase NOR cells: by the medium's own call when it has one, else by writing ones. Then a barrier."""
    own = getattr(medium, "erase", None)
    if own is not None:
        try:
            own(offset, size)
        except OSError as error:
            raise StoreIoError(f"erase: {error.strerror or error}") from error
    else:
        write_all(medium, offset, b"\xff" * size)
    flush(medium)


def new_header(
    geometry: Geometry,
    offset: int,
    *,
    root: RootKeys,
    vm_binding: bytes,
    suite: int,
    medium: int,
    mode: int,
    window: int,
    generation: int,
    session: int,
    base_sequence: int,
    parent: bytes,
    previous_key_version: int,
    anchored: AnchorPoint,
    bank_salt: bytes,
) -> BankHeader:
    """A header whose sizes and digest `snapshot.build` fills in."""
    return BankHeader(
        MAJOR,
        MINOR,
        suite,
        medium,
        geometry.log2_frame,
        mode,
        geometry.image_size,
        offset,
        geometry.bank_size,
        generation,
        root.store_id,
        vm_binding,
        root.version,
        0,
        base_sequence,
        session,
        bank_salt,
        parent,
        0,
        0,
        previous_key_version,
        anchored,
        bytes(32),
        root.key_check,
        window,
    )


def write_snapshot(
    draft: BankHeader,
    root: RootKeys,
    geometry: Geometry,
    variables: dict[Key, Variable],
    salt: bytes,
) -> tuple[History, bytes, bytes]:
    """Seal ``variables`` under ``draft``: the history it starts, the 512-byte header, the sealed snapshot."""
    keys = root.bank(
        generation=draft.generation,
        bank_salt=draft.bank_salt,
        suite=draft.suite,
        geometry=geometry,
        bank_offset=draft.bank_offset,
    )
    built = snapshot.build(draft, keys, geometry, variables, salt=salt)
    raw = built.header.seal(root.header_key)
    assert len(raw) == HEADER_BYTES
    history = begin(built.header, keys, geometry, snapshot.Read(dict(variables), built.live, salt), raw)
    return history, raw, built.sealed
