"""Creation of a store, once, with the broker's permission (SS-22, T17). Source: sealed-store 6.1.

Bank 1, barrier, announcement, barrier, first `advance`, and only then bank 0's first block is zeroed. Until
that `advance` the anchor is new and creation starts over.
"""

from collections.abc import Callable, Mapping

from cvars.store.anchor import ORIGIN, Acquired, AnchorPoint
from cvars.store.config import Boot, Outcome, StoreConfig
from cvars.store.engine import Store
from cvars.store.freshness import Freshness
from cvars.store.geometry import HEADER_BLOCK
from cvars.store.header import CreationHeader
from cvars.store.keys import StoreKeys
from cvars.store.log import Log, new_header, write_snapshot
from cvars.store.medium import Medium, flush, write_all
from cvars.store.record import SESSION, Announcement
from cvars.trace import StoreCreated, Trace
from cvars.variables.model import Key, Variable


def create(
    medium: Medium,
    creation: CreationHeader,
    *,
    keys: StoreKeys,
    config: StoreConfig,
    acquired: Acquired | None,
    freshness: Freshness | None,
    initial: Mapping[Key, Variable],
    random: Callable[[int], bytes],
    clock: Callable[[], float],
    trace: Trace,
) -> Store:
    """Write a new store that holds ``initial``. Raises StoreIoError and what the anchor raises."""
    geometry = creation.geometry
    root = keys.root(keys.write_version)
    assert root is not None
    session = acquired.epoch if acquired else 1
    salt = random(16)
    draft = new_header(
        geometry,
        geometry.bank_size,
        root=root,
        vm_binding=keys.binding,
        suite=config.suite,
        medium=creation.medium,
        mode=config.mode,
        window=config.window,
        generation=1,
        session=session,
        base_sequence=0,
        parent=bytes(32),
        previous_key_version=0,
        anchored=ORIGIN,
        bank_salt=random(32),
    )
    history, raw, sealed = write_snapshot(draft, root, geometry, dict(initial), salt)
    log = Log(
        medium,
        history,
        root=root,
        suite=config.suite,
        session=session,
        salt=salt,
        mode=config.mode,
        window=config.window,
        highest_generation=1,
        random=random,
        trace=trace,
    )
    log.write_bank(history, raw, sealed)
    base = AnchorPoint(0, history.header.snapshot_digest)
    history.commits = []
    announce(log, config, acquired, freshness, before=base)
    zero_first_block(medium)
    trace(StoreCreated(image_bytes=geometry.image_size))
    verified = freshness is not None and config.mode != 0
    boot = Boot(Outcome.CREATED, config.mode, verified, 0, 0)
    return Store(
        log,
        config=config,
        boot=boot,
        freshness=freshness,
        attached=freshness is not None,
        clock=clock,
        trace=trace,
    )


def announce(
    log: Log,
    config: StoreConfig,
    acquired: Acquired | None,
    freshness: Freshness | None,
    *,
    before: AnchorPoint | None = None,
) -> None:
    """Append the session record and anchor it (section 4 item 3)."""
    announcement = Announcement(
        acquired.version if acquired else 0,
        acquired.statement_sha256 if acquired else bytes(32),
        config.mode,
        config.window,
        config.engine,
    )
    begun = log.begin(SESSION, 0, announcement.encode(), count=0, live=log.history.live, security=False)
    log.finish(begun)
    if freshness is not None:
        freshness.add(begun.point, begun.raw, data=False, key_version=log.key_version, before=before)
        freshness.advance(patience=config.doubt_s)


def zero_first_block(medium: Medium) -> None:
    """Take the creation header away."""
    write_all(medium, 0, bytes(HEADER_BLOCK))
    flush(medium)
