"""Rotation of the master key: everything that is wrapped is wrapped again. Can be interrupted and run again."""

import sqlalchemy as sa

from cvars.broker.database import RESOURCES, SESSIONS, VM_KEYS, Database
from cvars.broker.resources import binding
from cvars.broker.secrets import Keyring


def rewrap(database: Database, keyring: Keyring) -> int:
    """Bring all secrets under the present master key; how many were not. Raises ``WrongMasterKey``."""
    done = 0
    with database.read() as connection:
        keys = list(connection.execute(sa.select(VM_KEYS)))
        resources = list(connection.execute(sa.select(RESOURCES)))
    for row in keys:
        place = f"vm-master/{row.vm_id}/{row.key_version}".encode()
        mine = (VM_KEYS.c.vm_id == row.vm_id) & (VM_KEYS.c.key_version == row.key_version)
        done += _one(database, keyring, VM_KEYS, mine, bytes(row.wrapped), place)
    for row in resources:
        place = binding(row.path, row.version, row.policy_digest)
        mine = (RESOURCES.c.path == row.path) & (RESOURCES.c.version == row.version)
        done += _one(database, keyring, RESOURCES, mine, bytes(row.wrapped), place)
    with database.write() as connection:  # short-lived: clients attest again
        connection.execute(sa.delete(SESSIONS))
    return done


def _one(
    database: Database,
    keyring: Keyring,
    table: sa.Table,
    mine: sa.ColumnElement[bool],
    wrapped: bytes,
    place: bytes,
) -> int:
    if keyring.current(wrapped):
        return 0
    fresh = keyring.wrap(keyring.unwrap(wrapped, place), place)
    with database.write() as connection:
        done = connection.execute(sa.update(table).where(mine, table.c.wrapped == wrapped).values(wrapped=fresh))
        return done.rowcount
