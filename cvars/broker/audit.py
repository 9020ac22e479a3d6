"""The audit log: one JSON line per decision, each chained to the one before by its hash (key-release 6).

No secrets, no full chip id; whatever a client sent is bounded and escaped (K48). The file is the operator's; a
chain that was cut or edited shows in `verify`.
"""

import fcntl
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from cvars.errors import BadInput, OutsideFailure

MAX_TEXT: Final = 256
RECENT: Final = 500
START: Final = "0" * 64
_JSON: Final = json.JSONEncoder(separators=(",", ":"))  # ASCII


class AuditLog:
    """Appends to one file of this process; ``path`` None keeps the last decisions in memory only."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._out: TextIO | None = None
        self._head = START
        self._number = 0
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        if path is not None:
            self._resume(path)

    def _resume(self, path: Path) -> None:
        try:
            self._out = path.open("a")
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.chmod(0o600)
            if path.exists():
                with path.open() as old:
                    for line in old:
                        entry = json.loads(line)
                        self._head, self._number = str(entry["hash"]), int(entry["n"])
                        self.recent.append(entry)
        except BlockingIOError:
            raise OutsideFailure(
                "another broker writes this audit log",
                where=str(path),
                hint="each process needs its own audit.file",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path} is not an audit log", hint="move it away; it may be evidence") from None
        except OSError as error:
            raise OutsideFailure(f"the audit log cannot be opened: {error.strerror}", where=str(path)) from None

    def write(self, **members: Any) -> None:  # noqa: ANN401 - members of one line
        """Append one decision; flushed before the answer leaves."""
        with self._lock:
            entry: dict[str, Any] = {
                "n": self._number + 1,
                "at": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
                "prev": self._head,
            } | {k: bounded(v) for k, v in members.items() if v is not None}
            text = _JSON.encode(entry)
            digest = hashlib.sha256(text.encode()).hexdigest()
            entry["hash"] = digest
            if self._out is not None:
                self._out.write(text[:-1] + f',"hash":"{digest}"}}\n')
                self._out.flush()
            self._head, self._number = digest, self._number + 1
            self.recent.append(entry)

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last line."""
        return self._number, self._head

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()


def bounded(value: Any) -> Any:  # noqa: ANN401 - any member
    """``value`` with every text cut to ``MAX_TEXT`` characters and no control characters."""
    if isinstance(value, str):
        text = value[:MAX_TEXT]
        return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    if isinstance(value, dict):
        return {bounded(str(k)): bounded(v) for k, v in list(value.items())[:64]}
    if isinstance(value, list | tuple):
        return [bounded(v) for v in list(value)[:64]]
    return value


def verify(lines: Iterable[str]) -> tuple[int, str | None]:
    """(number of good lines, what is wrong with the next one or None)."""
    head, number = START, 0
    for line in lines:
        try:
            entry = json.loads(line)
            digest = entry.pop("hash")
        except (ValueError, KeyError, AttributeError, TypeError):
            return number, "not an audit line"
        text = _JSON.encode(entry)
        if entry.get("prev") != head or entry.get("n") != number + 1:
            return number, "a line is missing before it"
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            return number, "it was changed"
        head, number = digest, number + 1
    return number, None
