"""Is a recorded history of a store one that some order of single steps could have made?

Reads and writes of registers whose written values are all different. A history of many registers is
linearisable exactly when each register's is, and for one register with unique values the zones of Gibbons and
Korach decide ("Testing Shared Memories", 1997): per value, the span between the first answer and the last
question of the operations that wrote or read it.
"""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

#: the value of a register that nobody has written
ABSENT = None


@dataclass(frozen=True, slots=True)
class Op:
    """One answered operation: ``asked`` and ``answered`` in any one clock."""

    kind: str  # "read" or "write"
    key: bytes
    value: bytes | None
    asked: float
    answered: float


def violation(history):
    """Why ``history`` is not linearisable, or None when it is."""
    by_key = defaultdict(list)
    for op in history:
        by_key[op.key].append(op)
    for key, ops in by_key.items():
        why = _register(ops)
        if why:
            return f"{key!r}: {why}"
    return None


def _register(ops):
    clusters = defaultdict(list)
    writes = {ABSENT: Op("write", b"", ABSENT, float("-inf"), float("-inf"))}
    for op in ops:
        if op.kind == "write":
            if op.value in writes:
                return f"{op.value!r} was written twice"
            writes[op.value] = op
        clusters[op.value].append(op)
    clusters[ABSENT].append(writes[ABSENT])
    forward, backward = [], []
    for value, members in clusters.items():
        if value not in writes:
            return f"{value!r} was read and never written"
        for op in members:
            if op.kind == "read" and op.answered < writes[value].asked:
                return f"{value!r} was read before it was written"
        first_answer = min(op.answered for op in members)
        last_question = max(op.asked for op in members)
        if first_answer < last_question:
            forward.append((first_answer, last_question, value))
        else:
            backward.append((last_question, first_answer, value))
    forward.sort(key=lambda zone: zone[:2])
    for (_, end, a), (start, _, b) in pairwise(forward):
        if start < end:
            return f"{a!r} and {b!r} were both current"
    starts = [zone[0] for zone in forward]
    for start, end, value in backward:
        at = bisect_right(starts, start) - 1
        if at >= 0 and forward[at][0] < start and end < forward[at][1]:
            return f"{value!r} came and went while {forward[at][2]!r} was current"
    return None
