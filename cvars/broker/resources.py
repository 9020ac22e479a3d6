"""Stored secrets and how often they were released (key-release 3.1 `release`, 6)."""

from typing import Final

import sqlalchemy as sa

from cvars.broker.database import RESOURCES, USES, Database, Statement
from cvars.broker.secrets import Keyring

MAX_RESOURCE: Final = 64 * 1024  # bytes
_GET: Final = Statement(
    sa.select(RESOURCES.c.wrapped, RESOURCES.c.version, RESOURCES.c.policy_digest).where(
        RESOURCES.c.path == sa.bindparam("b_path")
    ),
    "b_path",
)


class Resources:
    """Secrets by path ``repository/type/tag``, wrapped with path, version and policy digest as associated data."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._db = database
        self._keyring = keyring

    def get(self, path: str) -> bytes | None:
        """The plaintext, for one request only."""
        row = self._db.one(_GET, path)
        if row is None:
            return None
        wrapped, version, policy_digest = row
        return self._keyring.unwrap(bytes(wrapped), binding(path, version, policy_digest))

    def put(self, path: str, secret: bytes, *, policy_digest: str = "") -> int:
        """Store or replace; returns the new version."""
        with self._db.write() as connection:
            old = connection.execute(sa.select(RESOURCES.c.version).where(RESOURCES.c.path == path)).scalar()
            version = (old or 0) + 1
            row = {
                "version": version,
                "policy_digest": policy_digest,
                "wrapped": self._keyring.wrap(secret, binding(path, version, policy_digest)),
            }
            if old is None:
                connection.execute(sa.insert(RESOURCES), {"path": path} | row)
            else:
                connection.execute(sa.update(RESOURCES).where(RESOURCES.c.path == path).values(**row))
        return version

    def delete(self, path: str) -> bool:
        """Remove; False when it was not there."""
        with self._db.write() as connection:
            return connection.execute(sa.delete(RESOURCES).where(RESOURCES.c.path == path)).rowcount == 1

    def list(self) -> list[tuple[str, int]]:
        """(path, version) of all."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(RESOURCES.c.path, RESOURCES.c.version).order_by(RESOURCES.c.path))
            return [(row.path, row.version) for row in rows]

    def use(self, policy: str, vm_id: str, limit: int) -> bool:
        """Count one release; False when ``limit`` is used up. One conditional UPDATE decides (K57)."""
        mine = (USES.c.policy == policy) & (USES.c.vm_id == vm_id)
        try:
            with self._db.write() as connection:
                if connection.execute(sa.select(USES.c.count).where(mine)).first() is None:
                    connection.execute(sa.insert(USES), {"policy": policy, "vm_id": vm_id, "count": 0})
        except sa.exc.IntegrityError:
            pass  # somebody else made the row
        with self._db.write() as connection:
            done = connection.execute(
                sa.update(USES).where(mine, USES.c.count < limit).values(count=USES.c.count + 1)
            )
            return done.rowcount == 1


def binding(path: str, version: int, policy_digest: str) -> bytes:
    """What a wrapped resource is bound to."""
    return f"resource/{path}/{version}/{policy_digest}".encode()
