"""Records as programs and people read them: command line, admin API and console share these."""

from typing import Any

from cvars.broker.record import Record


def describe(record: Record) -> dict[str, Any]:
    """An anchor record. No key, no lease holder's key."""
    lease = record.lease
    return {
        "vm_id": record.vm_id,
        "store_id": record.store_id.hex(),
        "mode": record.mode,
        "state": record.state,
        "epoch": record.epoch,
        "counter": record.point.counter,
        "root": record.point.root.hex(),
        "base": {"counter": record.base.counter, "root": record.base.root.hex()},
        "ring_bytes": record.ring_bytes,
        "key_version": record.key_version,
        "key_old": record.key_old,
        "version": record.version,
        "acquires": record.acquires,
        "lease_expires": lease.expires if lease else None,
        "history": record.history.hex(),
    }
