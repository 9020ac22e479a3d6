"""Signed checkpoints of the anchor history: whoever holds a later one sees a broker that was rolled back (5.4).

A checkpoint names, for every VM, how long its hash chain is and where it ends. The broker refuses to start when a
chain is shorter than its newest local checkpoint says, or when its clock is behind it (K47, K55).
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from cvars.broker.database import HISTORY, VMS, Database
from cvars.errors import BadInput, CvarsError, ExitCode, OutsideFailure
from cvars.release.encoding import Malformed, b64url_decode
from cvars.release.statements import CHECKPOINT_TYP, PublicKey, SigningKey, verify_statement

KEEP: Final = 100  # files in the folder
SLACK_S: Final = 5.0  # how far clocks of replicas may differ


class RolledBack(CvarsError):
    """The database is older than a checkpoint that this broker signed."""

    reason = "anchor.rolled_back"
    exit_code = ExitCode.NO


@dataclass(frozen=True, slots=True)
class Gap:
    """One VM whose history does not contain what a checkpoint names."""

    vm_id: str
    wanted: int
    found: int
    why: str


def make(database: Database, signer: SigningKey, *, now: float, broker_id: str) -> str:
    """A checkpoint of this moment, a compact JWS."""
    query = sa.select(VMS.c.vm_id, VMS.c.version, VMS.c.history).order_by(VMS.c.vm_id)
    with database.read() as connection:
        chains = {row.vm_id: [row.version, bytes(row.history).hex()] for row in connection.execute(query)}
    payload = {
        "iss": broker_id,
        "iat": round(now, 3),
        "total": sum(length for length, _ in chains.values()),
        "chains": chains,
    }
    return signer.statement(CHECKPOINT_TYP, payload)


def read(text: str, keys: Collection[PublicKey], pins: Collection[str]) -> dict[str, Any]:
    """The payload of a checkpoint by a pinned key. Raises ``BadInput``."""
    try:
        payload = verify_statement(text.strip(), CHECKPOINT_TYP, keys, pins, max_size=64 * 1024 * 1024)
    except Malformed as error:
        raise BadInput(f"not a checkpoint of this broker: {error}") from None
    if not isinstance(payload.get("chains"), dict) or not isinstance(payload.get("iat"), int | float):
        raise BadInput("not a checkpoint: no chains")
    return payload


def compare(database: Database, chains: Mapping[str, Any]) -> list[Gap]:
    """Where the database falls short of ``chains``: nothing when it only grew since."""
    gaps = []
    with database.read() as connection:
        for vm_id, (length, head) in sorted(chains.items()):
            query = sa.select(HISTORY.c.hash).where(HISTORY.c.vm_id == vm_id, HISTORY.c.version == length)
            found = connection.execute(query).scalar()
            if found is not None and bytes(found).hex() == head:
                continue
            longest = sa.select(sa.func.max(HISTORY.c.version)).where(HISTORY.c.vm_id == vm_id)
            there = int(connection.execute(longest).scalar() or 0)
            gaps.append(Gap(vm_id, length, there, "another history" if there >= length else "shorter"))
    return gaps


class CheckpointFolder:
    """Local checkpoint files, ``<unix milliseconds>.jws``; copies belong elsewhere too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, text: str, now: float) -> Path:
        """Keep ``text``, durably, and drop all but the newest files: after a power cut the newest one is whole."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{int(now * 1000):015d}.jws"
            part = path.with_suffix(".part")
            with part.open("w") as out:
                out.write(text + "\n")
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
            _sync_folder(self._folder)
            for old in self.files()[:-KEEP]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise OutsideFailure(f"checkpoint not written: {error.strerror}", where=str(self._folder)) from None
        return path

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self._folder.glob("*.jws"))

    def check_start(self, database: Database, signer: SigningKey, *, now: float) -> None:
        """Refuse to start behind the newest checkpoint. Raises ``RolledBack``."""
        files = self.files()
        if not files:
            return
        payload = read(files[-1].read_text(), [signer.private.public_key()], {signer.kid})
        if now < payload["iat"] - SLACK_S:
            raise RolledBack(
                "the clock is behind the newest checkpoint", where=str(files[-1]), hint="set the clock first"
            )
        gaps = compare(database, payload["chains"])
        if gaps:
            raise RolledBack(
                f"the database is older than the newest checkpoint: {described(gaps)}",
                where=str(files[-1]),
                hint="restore the newest database; `cvars broker checkpoint verify` names every gap",
            )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def described(gaps: list[Gap]) -> str:
    """The first gaps in words."""
    shown = ", ".join(f"{g.vm_id} has {g.found} of {g.wanted} entries ({g.why})" for g in gaps[:3])
    return shown + (f" and {len(gaps) - 3} more" if len(gaps) > 3 else "")


class Exporter:
    """Writes a checkpoint when one is due and something changed."""

    def __init__(
        self,
        folder: CheckpointFolder,
        make_one: Callable[[float], str],
        *,
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._make = make_one
        self._interval_s = interval_s
        self._clock = clock
        self._last = -1e18
        self._chains = ""

    def tick(self, *, force: bool = False) -> bool:
        """Called by a timer; True when a file was written."""
        now = self._clock()
        if not force and now - self._last < self._interval_s:
            return False
        self._last = now
        text = self._make(now)
        chains = _chains(text)
        if chains == self._chains and not force:
            return False
        self._folder.write(text, now)
        self._chains = chains
        return True


def _chains(text: str) -> str:

    return json.dumps(json.loads(b64url_decode(text.split(".")[1]))["chains"], sort_keys=True)
