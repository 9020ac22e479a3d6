"""Sessions in the database: for several brokers, and over a restart (key-release 1.6, `sessions.shared`).

What was proven is kept as the evidence itself, wrapped, and verified again by the process that meets the session
first: no verdict is believed because a row says so. ``issued -> attesting`` and each sequence are one conditional
UPDATE.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from cvars.broker.database import SESSIONS, Database
from cvars.broker.secrets import Keyring
from cvars.broker.sessions import ATTESTED_LIFE_S, ISSUED_LIFE_S, Attested, Session, TooManySessions
from cvars.broker.verifier import Verifier
from cvars.release import initdata, teekey

_CACHE: Final = 2000


class DatabaseSessions:
    """Sessions of all brokers on one database."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        verifier: Verifier,
        random: Callable[[int], bytes],
        *,
        limit: int = 20_000,
        per_source: int = 5_000,
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._verifier = verifier
        self._random = random
        self._limit = limit
        self._per_source = per_source
        self._lock = threading.Lock()
        self._proven: OrderedDict[str, Attested] = OrderedDict()

    def issue(self, *, tee: str, nonce: str, source: str, now: float) -> str:
        """A new session; the oldest issued ones make room."""
        cookie = self._random(16).hex()
        with self._db.write() as connection:
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.expires <= now))
            mine = SESSIONS.c.source == source
            self._make_room(connection, mine, self._per_source, "too many sessions of one source")
            self._make_room(connection, sa.true(), self._limit, "too many sessions")
            connection.execute(
                sa.insert(SESSIONS),
                {
                    "id_hash": _hash(cookie),
                    "state": "issued",
                    "created": now,
                    "expires": now + ISSUED_LIFE_S,
                    "source": source,
                    "tee": tee,
                    "nonce_hash": hashlib.sha256(nonce.encode()).hexdigest(),
                    "sequence": 0,
                    "key_versions": "",
                },
            )
        return cookie

    def _make_room(self, connection: Connection, which: Any, limit: int, why: str) -> None:  # noqa: ANN401
        count = connection.execute(sa.select(sa.func.count()).select_from(SESSIONS).where(which)).scalar() or 0
        if count < limit:
            return
        oldest = (
            sa.select(SESSIONS.c.id_hash)
            .where(which, SESSIONS.c.state == "issued")
            .order_by(SESSIONS.c.created)
            .limit(count - limit + 1)
        )
        gone = [row.id_hash for row in connection.execute(oldest)]
        connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.id_hash.in_(gone), SESSIONS.c.state == "issued"))
        if len(gone) < count - limit + 1:
            raise TooManySessions(why)

    def find(self, cookie: str, *, now: float) -> Session | None:
        """The live session of a cookie."""
        return self.by_hash(_hash(cookie), now=now)

    def by_hash(self, id_hash: str, *, now: float) -> Session | None:
        """The live session of that hash."""
        with self._db.read() as connection:
            row = connection.execute(sa.select(SESSIONS).where(SESSIONS.c.id_hash == id_hash)).first()
        if row is None or row.expires <= now or row.state == "dead":
            return None
        return Session(
            id_hash=row.id_hash,
            tee=row.tee,
            nonce_hash=bytes.fromhex(row.nonce_hash),
            created=row.created,
            expires=row.expires,
            source=row.source,
            state=row.state,
            attested=self._attested(row) if row.state == "attested" else None,
            channel_key=self._keyring.unwrap(bytes(row.channel), _channel(row.id_hash)) if row.channel else None,
            channel_vm=row.channel_vm,
            sequence=row.sequence,
            epoch=row.epoch,
            key_versions=tuple(int(v) for v in row.key_versions.split(",") if v),
        )

    def _attested(self, row: Row[Any]) -> Attested | None:
        """What was proven: from this process's memory, or out of the evidence once more."""
        with self._lock:
            known = self._proven.get(row.id_hash)
        if known is not None:
            return known
        kept = json.loads(self._keyring.unwrap(bytes(row.sealed), _proof(row.id_hash)))
        report_data = bytes.fromhex(kept["report_data"])
        at = datetime.fromtimestamp(kept["at"], UTC)
        result = self._verifier.verify(kept["tee"], kept["evidence"], report_data=report_data, at=at)
        if not result.verified:
            return None
        body = kept["init_data"]
        attested = Attested(
            tee=kept["tee"],
            key=teekey.parse(kept["key"]),
            result=result,
            evidence_digest=kept["evidence_digest"],
            init_data_digest=kept["init_data_digest"],
            init_data=None if body is None else initdata.parse(body),
            vm_id=kept["vm_id"],
            instance=kept["instance"],
            token=kept["token"],
            nonce=kept["nonce"],
            runtime_data=kept["runtime_data"],
            at=kept["at"],
            report_data=report_data,
        )
        self._remember(row.id_hash, attested)
        return attested

    def _remember(self, id_hash: str, attested: Attested) -> None:
        with self._lock:
            self._proven[id_hash] = attested
            while len(self._proven) > _CACHE:
                self._proven.popitem(last=False)

    def begin(self, session: Session) -> bool:
        """One conditional UPDATE decides who attests."""
        with self._db.write() as connection:
            done = connection.execute(
                sa.update(SESSIONS)
                .where(SESSIONS.c.id_hash == session.id_hash, SESSIONS.c.state == "issued")
                .values(state="attesting")
            )
            return done.rowcount == 1

    def settle(self, session: Session, attested: Attested | None, *, now: float) -> None:
        """``attesting`` ends: attested, or gone."""
        mine = (SESSIONS.c.id_hash == session.id_hash) & (SESSIONS.c.state == "attesting")
        with self._db.write() as connection:
            if attested is None:
                connection.execute(sa.delete(SESSIONS).where(mine))
                session.state = "dead"
                return
            kept = {
                "tee": attested.tee,
                "key": dict(attested.key.jwk),
                "evidence": attested.evidence,
                "report_data": attested.report_data.hex(),
                "evidence_digest": attested.evidence_digest,
                "init_data_digest": attested.init_data_digest,
                "init_data": attested.init_data.body if attested.init_data else None,
                "vm_id": attested.vm_id,
                "instance": attested.instance,
                "token": attested.token,
                "nonce": attested.nonce,
                "runtime_data": attested.runtime_data,
                "at": attested.at,
            }
            sealed = self._keyring.wrap(json.dumps(kept).encode(), _proof(session.id_hash))
            expires = now + ATTESTED_LIFE_S
            connection.execute(
                sa.update(SESSIONS).where(mine).values(state="attested", sealed=sealed, expires=expires)
            )
        attested.evidence = None
        session.attested, session.state, session.expires = attested, "attested", expires
        self._remember(session.id_hash, attested)

    def open_channel(
        self, session: Session, *, key: bytes, vm_id: str, epoch: int, versions: tuple[int, ...]
    ) -> None:
        """A new channel; the old key is worth nothing from here on."""
        wrapped = self._keyring.wrap(key, _channel(session.id_hash))
        with self._db.write() as connection:
            connection.execute(
                sa.update(SESSIONS)
                .where(SESSIONS.c.id_hash == session.id_hash)
                .values(
                    channel=wrapped,
                    channel_vm=vm_id,
                    sequence=0,
                    epoch=epoch,
                    key_versions=",".join(map(str, versions)),
                )
            )
        session.channel_key, session.channel_vm, session.sequence = key, vm_id, 0
        session.epoch, session.key_versions = epoch, versions

    def take_sequence(self, session: Session, sequence: int) -> bool:
        """One conditional UPDATE: above all before, on the same channel."""
        with self._db.write() as connection:
            done = connection.execute(
                sa.update(SESSIONS)
                .where(
                    SESSIONS.c.id_hash == session.id_hash,
                    SESSIONS.c.sequence < sequence,
                    SESSIONS.c.epoch == session.epoch,
                )
                .values(sequence=sequence)
            )
            return done.rowcount == 1

    def counts(self) -> dict[str, int]:
        """Live sessions by state."""
        query = sa.select(SESSIONS.c.state, sa.func.count()).group_by(SESSIONS.c.state)
        with self._db.read() as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {"issued": found.get("issued", 0), "attested": found.get("attested", 0)}


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()


def _proof(id_hash: str) -> bytes:
    return f"session/{id_hash}/proof".encode()


def _channel(id_hash: str) -> bytes:
    return f"session/{id_hash}/channel".encode()
