"""A host that watches: when the blob changed, where, and how many bytes.

It compares the file with what it saw last; two writes between two looks are seen as one observation each
where they are apart, as one where they touch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Observation:
    """``length`` bytes at ``offset`` changed; ``at`` is the observer's clock in seconds."""

    at: float
    offset: int
    length: int


def changed_spans(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """(offset, length) of the runs of 512-byte blocks that differ; a new length shows as a span to its end."""
    if before == after:
        return []
    spans: list[tuple[int, int]] = []
    for offset in range(0, max(len(before), len(after)), _BLOCK):
        if before[offset : offset + _BLOCK] != after[offset : offset + _BLOCK]:
            if spans and sum(spans[-1]) == offset:
                spans[-1] = (spans[-1][0], spans[-1][1] + _BLOCK)
            else:
                spans.append((offset, _BLOCK))
    return spans


class Observer:
    """Looks at ``blob`` every ``interval`` seconds in a thread of its own until ``stop``."""

    def __init__(self, blob: Path, *, clock: Callable[[], float], interval: float = 0.002) -> None:
        self._blob = blob
        self._clock = clock
        self._interval = interval
        self._last = b""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="host-observer", daemon=True)
        self.observations: list[Observation] = []

    def start(self) -> "Observer":
        """Begin to watch; the state now is the first one."""
        self._last = self._blob.read_bytes()
        self._thread.start()
        return self

    def stop(self) -> list[Observation]:
        """Look once more and return everything seen."""
        self._done.set()
        self._thread.join()
        self._look()
        return self.observations

    def _watch(self) -> None:
        seen = (0, 0)
        while not self._done.wait(self._interval):
            stat = self._blob.stat()
            if (stat.st_mtime_ns, stat.st_size) != seen:
                seen = (stat.st_mtime_ns, stat.st_size)
                self._look()

    def _look(self) -> None:
        now = self._blob.read_bytes()
        at = self._clock()
        self.observations += [Observation(at, *span) for span in changed_spans(self._last, now)]
        self._last = now
