"""Policies and reference values that were put through the API or the command line, shared by all replicas.

Those of configuration files are loaded beside them and cannot be replaced from here. Every change raises one
counter; a process that sees another value loads all of it again, and keeps what it has when that fails (K42).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from cvars.broker import rego
from cvars.broker.database import COUNTERS, POLICIES, REFERENCES, Database
from cvars.broker.policies import PolicySet
from cvars.broker.policy.load import PolicyError, load_policy
from cvars.broker.verifier import Verifier
from cvars.errors import CvarsError

_GENERATION: Final = "policy_generation"
_POLL_S: Final = 1.0
RESTRICTION: Final = "resource-policy"  # the one Rego text, Trustee's name for it
log = structlog.get_logger("cvars.broker")


class PolicyStore:
    """The database side of a `PolicySet`; ``files`` reads the policies and references of configuration files."""

    def __init__(
        self,
        database: Database,
        verifier: Verifier,
        *,
        files: Callable[[], tuple[Mapping[str, str], Mapping[str, Any]]],
        clock: Callable[[], float],
    ) -> None:
        self._db = database
        self._verifier = verifier
        self._files = files
        self._clock = clock
        self._generation = -1
        self._polled = -1e18

    def poll(self, policies: PolicySet) -> None:
        """Load again when another process changed something; at most once a second."""
        now = self._clock()
        if abs(now - self._polled) < _POLL_S:
            return
        self._polled = now
        if self._current() != self._generation:
            try:
                self.reload(policies)
            except CvarsError as error:
                self._generation = self._current()
                log.error("policies.refused", error=error.message, where=error.where)

    def _current(self) -> int:
        with self._db.read() as connection:
            found = connection.execute(sa.select(COUNTERS.c.value).where(COUNTERS.c.name == _GENERATION)).scalar()
        return int(found or 0)

    def reload(self, policies: PolicySet) -> None:
        """Load files and database anew. Raises ``PolicyError``; then the old ones stay active."""
        generation = self._current()
        texts, references = self._read()
        restriction = texts.pop(f"database:{RESTRICTION}", None)
        policies.load(texts, references=references, restriction=restriction)
        self._generation = generation

    def _read(self) -> tuple[dict[str, str], dict[str, Any]]:
        texts, raw = self._files()
        with self._db.read() as connection:
            stored = {r.name: r.value for r in connection.execute(sa.select(REFERENCES))}
            mine = {f"database:{r.name}": r.text for r in connection.execute(sa.select(POLICIES))}
        references: dict[str, Any] = {}
        for name, value in [*raw.items(), *((n, json.loads(v)) for n, v in stored.items())]:
            try:
                references[name] = self._verifier.reference(value)
            except ValueError as error:
                raise PolicyError(f"reference value {name}: {error}") from None
        return dict(texts) | mine, references

    def name_of(self, text: str) -> str:
        """The name of a typed policy. Raises ``PolicyError``."""
        _, references = self._read()
        return load_policy(text, verifier=self._verifier, references=references, where="policy").name

    def put(self, text: str, policies: PolicySet) -> str:
        """Store a typed policy under its own name; returns the name. Raises ``PolicyError``."""
        _, references = self._read()
        policy = load_policy(text, verifier=self._verifier, references=references, where="policy")
        self._store(policy.name, text, policies)
        return policy.name

    def put_rego(self, text: str, policies: PolicySet) -> str:
        """Store the Rego restriction; returns what it is. Raises ``PolicyError``."""
        kind = rego.check(text, simulation=self._verifier.simulation)
        self._store(RESTRICTION, text, policies)
        return kind

    def _store(self, name: str, text: str, policies: PolicySet) -> None:
        row = {"digest": hashlib.sha256(text.encode()).hexdigest(), "text": text}
        with self._db.write() as connection:
            before = connection.execute(sa.select(POLICIES).where(POLICIES.c.name == name)).first()
            if before is None:
                connection.execute(sa.insert(POLICIES), {"name": name} | row)
            else:
                connection.execute(sa.update(POLICIES).where(POLICIES.c.name == name).values(**row))
            self._bump(connection)
        try:
            self.reload(policies)
        except PolicyError:
            with self._db.write() as connection:  # e.g. a name that a file has: take it back
                connection.execute(sa.delete(POLICIES).where(POLICIES.c.name == name))
                if before is not None:
                    connection.execute(
                        sa.insert(POLICIES), {"name": name, "digest": before.digest, "text": before.text}
                    )
                self._bump(connection)
            raise

    def delete(self, name: str, policies: PolicySet) -> bool:
        """Remove a policy; False when there is none of that name here."""
        with self._db.write() as connection:
            gone = connection.execute(sa.delete(POLICIES).where(POLICIES.c.name == name)).rowcount == 1
            self._bump(connection)
        self.reload(policies)
        return gone

    def put_reference(self, name: str, value: Any, policies: PolicySet) -> None:  # noqa: ANN401
        """Store a reference value. Raises ``PolicyError``."""
        try:
            self._verifier.reference(value)
        except ValueError as error:
            raise PolicyError(f"reference value {name}: {error}") from None
        with self._db.write() as connection:
            connection.execute(sa.delete(REFERENCES).where(REFERENCES.c.name == name))
            connection.execute(sa.insert(REFERENCES), {"name": name, "value": json.dumps(value)})
            self._bump(connection)
        self.reload(policies)

    def references(self) -> dict[str, Any]:
        """All reference values, as they were given."""
        _, raw = self._files()
        with self._db.read() as connection:
            stored = {r.name: json.loads(r.value) for r in connection.execute(sa.select(REFERENCES))}
        return dict(raw) | stored

    def _bump(self, connection: Connection) -> None:
        done = connection.execute(
            sa.update(COUNTERS).where(COUNTERS.c.name == _GENERATION).values(value=COUNTERS.c.value + 1)
        )
        if done.rowcount == 0:
            connection.execute(sa.insert(COUNTERS), {"name": _GENERATION, "value": 1})
