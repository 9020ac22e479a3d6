"""The anchor's rules: one pure function per call, record in, record out (key-release 5).

A function decides on a record as it was read or last written, and may be asked again: `anchors.AnchorStore`
makes the result durable by one conditional UPDATE of that record, or reads and decides anew. Time is the broker's.
"""

from typing import Any, Final, NamedTuple

from cvars.store.anchor import ORIGIN, AnchorPoint

LEASE_S: Final = 30.0
RING_BYTES: Final = 64 * 1024
#: by how much the ring may exceed that before its oldest items leave it, several at once
RING_SLACK: Final = RING_BYTES // 8
#: the largest record of the largest geometry (66 frames of 4 KiB) with its length word, bytes
MAX_ESCROW: Final = 66 * 4096 + 4
U64: Final = (1 << 63) - 1  # counters fit the database's signed 64 bits


class Refused(Exception):
    """The record says no. ``status`` is HTTP's, ``reason`` a stable word, ``rule`` what the log says."""

    def __init__(self, status: int, reason: str, rule: str, detail: str = "") -> None:
        super().__init__(detail or rule)
        self.status = status
        self.reason = reason
        self.rule = rule
        self.detail = detail or rule


class Lease(NamedTuple):
    """Who may move the record: ``holder``, thumbprint of the attested key; ``instance``, SNP report_id or None."""

    holder: str
    instance: str | None
    expires: float


class Record(NamedTuple):
    """One VM's anchor record (key-release 5.1). A tuple, since each call makes several."""

    vm_id: str
    store_id: bytes
    policy: str | None = None
    mode: str = "critical"
    state: str = "new"
    thawed: str | None = None
    epoch: int = 0
    point: AnchorPoint = ORIGIN
    previous: AnchorPoint = ORIGIN
    advance_epoch: int = 0
    base: AnchorPoint = ORIGIN
    ring_bytes: int = 0
    ring_from: int = 1
    key_version: int = 1
    key_old: int | None = None
    key_written_epoch: int | None = None
    floor_format: int = 1
    floor_suites: tuple[int, ...] = (1, 2, 3)
    version: int = 0
    lease: Lease | None = None
    acquires: int = 0
    provision_epoch: int = 0
    identity: str | None = None
    history: bytes = bytes(32)


class Item(NamedTuple):
    """One entry of the escrow ring: sealed bytes that lead on from ``start``."""

    start: AnchorPoint
    key_version: int
    data: bytes


class Change(NamedTuple):
    """What a call does. ``record.version`` is still the one decided on; the store adds one.

    ``detail`` goes into the history as it is: its names, and those within, are in order.
    ``item``: goes into the ring, after it was emptied if ``restart``. ``drop_below``: items of older key versions
    leave it. ``destroy``: key versions to delete. ``create``: a key version to create. ``same``: nothing changes.
    """

    record: Record
    kind: str
    detail: dict[str, Any]
    item: Item | None = None
    restart: bool = False
    drop_below: int | None = None
    destroy: tuple[int, ...] = ()
    create: int | None = None
    same: bool = False
    renewal: bool = False


def live(record: Record, now: float) -> bool:
    """Whether somebody holds an unexpired lease."""
    return record.lease is not None and record.lease.expires > now


def _open(record: Record) -> None:
    if record.state == "retired":
        raise Refused(410, "anchor.retired", "ANCHOR-RETIRED")
    if record.state == "frozen":
        raise Refused(423, "anchor.frozen", "ANCHOR-FROZEN")


def acquire(
    record: Record,
    *,
    holder: str,
    instance: str | None,
    now: float,
    takeover: bool = False,
    max_epoch_gap: int = 0,
    resume: int | None = None,
    ignore_lease: bool = False,
) -> Change:
    """Open a session: a new epoch, which fences all older ones (5.4).

    ``takeover``: asked for and allowed by policy. ``resume``: continue that epoch; only the same SNP instance may.
    ``ignore_lease`` is the broken broker that tests of the demo's verdicts need.
    """
    _open(record)
    lease = Lease(holder, instance, now + LEASE_S)
    if resume is not None:
        current = record.lease
        if current is None or instance is None or current.instance != instance or record.epoch != resume:
            raise Refused(412, "anchor.fenced", "ANCHOR-EPOCH", "not the session that may be continued")
        return Change(record._replace(lease=lease), "resume", {"epoch": resume, "holder": holder})
    mine = record.lease is not None and record.lease.holder == holder  # its own answer was lost: it fences itself
    if live(record, now) and not mine and not takeover and not ignore_lease:
        raise Refused(409, "anchor.leased", "ANCHOR-LEASE", "another live instance holds the lease")
    if max_epoch_gap and record.acquires >= max_epoch_gap:
        raise Refused(403, "release.refused", "POL-EPOCHGAP", "too many acquisitions since the last advance")
    after = record._replace(
        epoch=record.epoch + 1,
        lease=lease,
        acquires=record.acquires + 1,
        state="active" if record.state == "released" else record.state,
    )
    took = live(record, now)
    return Change(after, "acquire", {"epoch": after.epoch, "holder": holder, "takeover": took})


def _held(record: Record, *, epoch: int, holder: str) -> Lease:
    """The lease of the caller's session. The epoch fences; an expired lease that nobody took may be renewed."""
    if record.state in ("retired", "frozen"):
        raise Refused(412, f"anchor.{record.state}", f"ANCHOR-{record.state.upper()}")
    if record.epoch != epoch:
        raise Refused(412, "anchor.fenced", "ANCHOR-EPOCH", "a newer session exists")
    if record.lease is None or record.lease.holder != holder:
        raise Refused(412, "anchor.fenced", "ANCHOR-HOLDER", "this session holds no lease")
    return record.lease


def _renewed(record: Record, *, epoch: int, holder: str, now: float) -> Lease:
    """The same, from now on."""
    return Lease(holder, _held(record, epoch=epoch, holder=holder).instance, now + LEASE_S)


def advance(
    record: Record,
    *,
    epoch: int,
    holder: str,
    start: AnchorPoint,
    to: AnchorPoint,
    base: AnchorPoint,
    key_version: int,
    escrow: bytes,
    now: float,
) -> Change:
    """Move the committed point; renews the lease; idempotent within the epoch."""
    lease = _renewed(record, epoch=epoch, holder=holder, now=now)
    if record.point == to and record.previous == start and record.advance_epoch == epoch:
        return Change(record._replace(lease=lease), "advance", {}, renewal=True)
    if record.point != start:
        raise Refused(412, "anchor.fenced", "ANCHOR-PREDECESSOR", "not the point the broker knows")
    if record.state == "new" and record.provision_epoch != epoch:
        raise Refused(412, "anchor.refused", "ANCHOR-GRANT", "no grant to create a store in this epoch")
    if not start.counter < to.counter <= U64 or not base.counter <= to.counter:
        raise Refused(412, "anchor.refused", "ANCHOR-COUNTER", "a counter that does not move forward")
    if key_version not in (record.key_version, record.key_old):
        raise Refused(412, "anchor.refused", "ANCHOR-KEYVERSION", "a key version that is not released")
    if len(escrow) > MAX_ESCROW or not framed(escrow) or (not escrow and base != to):
        raise Refused(412, "anchor.refused", "ANCHOR-ESCROW", "escrow is not whole sealed entries")
    restart = base != start
    after = record._replace(
        state="active",
        point=to,
        previous=start,
        advance_epoch=epoch,
        base=base if restart else record.base,
        lease=lease,
        acquires=0,
    )
    destroy: tuple[int, ...] = ()
    drop = None
    if record.key_old is not None and key_version == record.key_version:
        if record.key_written_epoch is None:
            after = after._replace(key_written_epoch=epoch)
        elif epoch > record.key_written_epoch:
            destroy, drop = (record.key_old,), record.key_version
            after = after._replace(key_old=None, key_written_epoch=None)
    detail = {
        "base": base.counter,
        "epoch": epoch,
        "key_version": key_version,
        "to": {"counter": to.counter, "root": to.root.hex()},
    }
    return Change(
        after,
        "advance",
        detail,
        item=Item(base, key_version, escrow) if escrow else None,
        restart=restart,
        drop_below=drop,
        destroy=destroy,
    )


def framed(escrow: bytes) -> bool:
    """Whether ``escrow`` is whole entries: u32 length, then a record, or a header and salt (sealed-store 6.1)."""
    at = 0
    while at < len(escrow):
        size = int.from_bytes(escrow[at : at + 4], "little")
        entry = escrow[at + 4 : at + 4 + size]
        if len(entry) != size or not (entry[:4] == b"CVR1" or (entry[:8] == b"CVFSBNK1" and size == 528)):
            return False
        at += 4 + size
    return True


def renew(record: Record, *, epoch: int, holder: str, now: float) -> Change:
    """Renew the lease."""
    lease = _renewed(record, epoch=epoch, holder=holder, now=now)
    return Change(record._replace(lease=lease), "renew", {"epoch": epoch}, renewal=True)


def seal(record: Record, *, epoch: int, holder: str, point: AnchorPoint) -> Change:
    """Give the lease back: clean shutdown, or a mount that was refused. Repeating it is harmless."""
    if record.lease is None and record.epoch == epoch and record.point == point:
        return Change(record, "seal", {"epoch": epoch}, same=True)
    _held(record, epoch=epoch, holder=holder)
    if record.point != point:
        raise Refused(412, "anchor.fenced", "ANCHOR-POINT", "not the anchored point")
    state = "released" if record.state == "active" else record.state
    return Change(record._replace(lease=None, state=state), "seal", {"epoch": epoch})


def provision(record: Record, *, epoch: int, holder: str) -> Change:
    """Grant the creation of a store: to the lease holder, once per epoch, while the state is new (5.6)."""
    _held(record, epoch=epoch, holder=holder)
    if record.state != "new":
        raise Refused(403, "release.refused", "PROVISION-STATE", "a store exists already")
    if record.provision_epoch >= epoch:
        raise Refused(403, "release.refused", "PROVISION-USED", "granted once already in this epoch")
    return Change(record._replace(provision_epoch=epoch), "provision", {"epoch": epoch})


# --- the operator's calls ---------------------------------------------------------------------------


def reset(record: Record, *, point: AnchorPoint | None, store_id: bytes, reason: str) -> Change:
    """Another anchored point by authority, or ``None``: new, with a new store id so that no old image fits."""
    after = record._replace(
        epoch=record.epoch + 1,
        point=point or ORIGIN,
        previous=ORIGIN,
        advance_epoch=0,
        base=point or ORIGIN,
        ring_bytes=0,
        lease=None,
        acquires=0,
        thawed=None,
        state="released" if point else "new",
        store_id=record.store_id if point else store_id,
    )
    if record.state == "retired" and point is not None:
        raise Refused(
            409, "anchor.retired", "ANCHOR-RETIRED", "its keys are gone: only a reset to new is possible"
        )
    if point is not None:
        return Change(after, "reset", {"counter": point.counter, "reason": reason}, restart=True)
    # a new store gets a new key: an old image must not open (SS-19, T17)
    fresh = record.key_version + 1
    old = tuple(v for v in (record.key_version, record.key_old) if v is not None)
    after = after._replace(key_version=fresh, key_old=None, key_written_epoch=None)
    return Change(after, "reset", {"new": True, "reason": reason}, restart=True, destroy=old, create=fresh)


def freeze(record: Record, *, reason: str) -> Change:
    """Incident response: acquire 423, the present lease is fenced at its next call."""
    _open(record)
    return Change(record._replace(state="frozen", thawed=record.state), "freeze", {"reason": reason})


def thaw(record: Record, *, reason: str) -> Change:
    """End a freeze. The session before it stays fenced."""
    if record.state != "frozen":
        raise Refused(409, "anchor.state", "ANCHOR-STATE", "not frozen")
    after = record._replace(state=record.thawed or "released", thawed=None, lease=None, epoch=record.epoch + 1)
    return Change(after, "thaw", {"reason": reason})


def retire(record: Record, *, reason: str) -> Change:
    """Crypto-erase: the wrapped keys go, the record stays as a tombstone (5.5)."""
    if record.state == "retired":
        raise Refused(409, "anchor.retired", "ANCHOR-RETIRED")
    old = tuple(v for v in (record.key_version, record.key_old) if v is not None)
    after = record._replace(state="retired", lease=None, thawed=None)
    return Change(after, "retire", {"reason": reason}, restart=True, destroy=old)


def rotate(record: Record, *, reason: str) -> Change:
    """A new write version for the next acquire (5.6)."""
    _open(record)
    if record.key_old is not None:
        raise Refused(409, "anchor.rotating", "ANCHOR-ROTATING", "the last rotation is not finished")
    if record.state == "new":
        raise Refused(409, "anchor.state", "ANCHOR-STATE", "there is no store to rotate")
    fresh = record.key_version + 1
    after = record._replace(key_version=fresh, key_old=record.key_version, key_written_epoch=None)
    return Change(after, "rotate", {"key_version": fresh, "reason": reason}, create=fresh)


def finalise(record: Record, *, reason: str) -> Change:
    """Destroy the old key version now."""
    _open(record)
    if record.key_old is None or record.key_written_epoch is None:
        raise Refused(409, "anchor.state", "ANCHOR-STATE", "no advance under the new key version yet")
    after = record._replace(key_old=None, key_written_epoch=None)
    detail = {"key_version": record.key_version, "reason": reason}
    return Change(after, "finalise", detail, drop_below=record.key_version, destroy=(record.key_old,))
