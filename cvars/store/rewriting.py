"""rotate, resize and recover: a new image from what an old one holds (SS-26).

The new image carries session 0, which no broker issues, fresh salts, no parent, and a generation and base
sequence above everything it was made from. A guest accepts it only after the operator rebased the anchor to
its root (sealed-store 6.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

from cvars.errors import StoreError, StoreTampered, UsageMistake
from cvars.store import record
from cvars.store.anchor import ORIGIN, AnchorPoint
from cvars.store.checking import check, keys_for
from cvars.store.geometry import HEADER_BLOCK, Geometry
from cvars.store.header import header_block
from cvars.store.history import History
from cvars.store.keyfile import KeyFile
from cvars.store.keys import StoreKeys
from cvars.store.log import new_header, write_snapshot
from cvars.store.operations import Malformed
from cvars.store.selection import Mode
from cvars.store.snapshot import Damage
from cvars.store.survey import Survey, survey


@dataclass(frozen=True, slots=True)
class Source:
    """What an old image gives: the state, and the numbers that the new one must exceed."""

    history: History
    keys: StoreKeys
    highest_generation: int
    highest_sequence: int
    unused_records: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A new image and the point that the anchor must be rebased to."""

    image: bytes
    point: AnchorPoint
    variables: int


def open_sound(image: bytes, key_file: KeyFile) -> Source:
    """The state of a sound image. Raises StoreError: what fsck would find first."""
    report = check(image, key_file)
    if not report.sound or report.history is None:
        first = report.findings[0]
        error = StoreTampered(
            first.message,
            where=f"at {first.offset:#x}",
            hint="cvars store fsck says more; cvars store recover takes out what still verifies",
        )
        error.reason = first.reason
        raise error
    return _source(image, key_file, report.history)


def open_damaged(image: bytes, key_file: KeyFile) -> Source:
    """The longest history of a damaged image that still verifies. Raises StoreError: none does."""
    found = survey(image, keys_for(image, key_file), check_binding=not key_file.raw)
    for bank in found.banks:
        try:
            return _source(image, key_file, bank.read())
        except Damage:
            continue
    if found.refused:
        raise found.refused[0]
    raise StoreTampered("no bank of this image verifies: nothing can be recovered from it")


def _source(image: bytes, key_file: KeyFile, history: History) -> Source:
    keys = keys_for(image, key_file)
    found = survey(image, keys, check_binding=not key_file.raw)
    sequences, unused = _all_sequences(found, history)
    return Source(
        history,
        keys,
        found.highest_generation,
        max(sequences, default=history.point.counter),
        unused,
    )


def _all_sequences(found: Survey, history: History) -> tuple[list[int], int]:
    """Sequences of every authentic record anywhere, and how many newer ones the history does not use."""
    sequences = [history.point.counter]
    unused = 0
    for bank in found.banks:
        keys = bank.keys()
        frame, end = bank.geometry.frame, bank.geometry.bank_size
        for at in range(HEADER_BLOCK, end, frame):
            if bytes(bank.raw[at : at + 4]) != record.MAGIC:
                continue
            try:
                one = record.unseal(bank.raw, at, keys, frame=frame, offset=at, end=end)
            except Malformed:
                continue
            if one is not None:
                sequences.append(one.prefix.sequence)
                unused += one.prefix.sequence > history.point.counter
    return sequences, unused


def rewrite(
    source: Source,
    *,
    geometry: Geometry,
    keys: StoreKeys,
    suite: int,
    random: Callable[[int], bytes],
) -> Rewritten:
    """Seal the state of ``source`` into a new image. Raises UsageMistake: it does not fit."""
    old = source.history
    if old.live > geometry.capacity:
        raise UsageMistake(
            f"the store holds {old.live} bytes, an image of {geometry.image_size} bytes holds {geometry.capacity}",
            hint="choose a larger --size",
        )
    root = keys.root(keys.write_version)
    assert root is not None
    draft = new_header(
        geometry,
        0,
        root=root,
        vm_binding=old.header.vm_binding,
        suite=suite,
        medium=old.header.medium,
        mode=Mode.NONE,
        window=0,
        generation=source.highest_generation + 1,
        session=0,
        base_sequence=source.highest_sequence + 1,
        parent=bytes(32),
        previous_key_version=old.header.key_version,
        anchored=ORIGIN,
        bank_salt=random(32),
    )
    history, raw, sealed = write_snapshot(draft, root, geometry, old.variables, random(16))
    erased = b"\xff" if old.header.medium else b"\0"
    bank = (header_block(raw) + sealed).ljust(geometry.bank_size, erased)
    return Rewritten(bank.ljust(geometry.image_size, erased), history.point, len(history.variables))


def key_for_writing(source: Source, new: KeyFile | None) -> StoreKeys:
    """Keys of the new image: the old ones, or those of another key file for the same store."""
    if new is None:
        version = source.history.header.key_version
        return StoreKeys(source.keys.store_id, source.keys.vm_id, source.keys.keks, version)
    version = source.history.header.key_version + 1
    keys = new.keys(store_id=source.history.header.store_id, key_version=version)
    if keys.store_id != source.history.header.store_id:
        raise StoreError("the new key file names another store", reason="store.wrong_guest")
    return keys
