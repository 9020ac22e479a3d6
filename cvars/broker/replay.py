"""Kept evidence, verified again at the time of its decision: does the log still hold? (key-release 6)"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cvars.broker.verifier import Verifier
from cvars.errors import BadInput

#: refusals that come before or beside the evidence's own verdict
_BEFORE: Final = ("KBS-",)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One attestation: ``recorded`` and ``now`` are ``allow``, a rule id, or ``not kept``."""

    line: int
    recorded: str
    now: str

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return {"line": self.line, "recorded": self.recorded, "now": self.now}


class EvidenceFolder:
    """Evidence as it arrived, one file per digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, digest: str, document: dict[str, Any]) -> None:
        """Write once."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{digest}.json"
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(document))
            part.replace(path)


def replay(log: Path, evidence: Path, verifier: Verifier) -> list[Replayed]:
    """Every attestation of ``log`` again. Raises ``BadInput``."""
    out = []
    try:
        lines = log.read_text().splitlines()
    except OSError as error:
        raise BadInput(f"{log} cannot be read: {error.strerror}") from None
    for number, text in enumerate(lines, 1):
        try:
            entry = json.loads(text)
        except ValueError:
            raise BadInput("not an audit line", where=f"{log}:{number}") from None
        if entry.get("action") != "attest" or "evidence" not in entry:
            continue
        recorded = str(entry.get("rule") or entry["decision"])
        if recorded.startswith(_BEFORE):
            continue
        out.append(Replayed(number, recorded, _again(evidence / f"{entry['evidence']}.json", recorded, verifier)))
    return out


def _again(file: Path, recorded: str, verifier: Verifier) -> str:
    if not file.exists():
        return "not kept"
    kept = json.loads(file.read_text())
    result = verifier.verify(
        kept["tee"],
        kept["evidence"]["primary_evidence"],
        report_data=bytes.fromhex(kept["report_data"]),
        at=datetime.fromtimestamp(kept["at"], UTC),
    )
    if result.verified:
        return recorded if recorded in ("SNP-HOSTDATA", "TDX-MR") else "allow"
    return result.rule or "ATTEST"
