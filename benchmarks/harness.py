"""How a figure is measured: subject and floor in turn, so that a drifting machine moves both."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of bench.json. ``value`` and ``floor`` in ``unit``; ``spread`` = (p90 - p10) / median."""

    name: str
    unit: str
    value: float
    floor: float | None
    ratio: float | None
    spread: float
    target: str
    met: bool

    def as_json(self) -> dict[str, Any]:
        """The members by name."""
        return asdict(self)


def samples(
    subject: Callable[[], object],
    floor: Callable[[], object],
    *,
    rounds: int,
    inner: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
    before: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Time ``subject`` and ``floor`` in turn; microseconds per call, ``rounds`` of each.

    ``before``: untimed work right in front of each, of the floor too, so that both start on a processor as awake.
    """
    before()
    subject()
    floor()
    mine: list[float] = []
    theirs: list[float] = []
    gc.collect()
    for _ in range(rounds):
        for action, into in ((subject, mine), (floor, theirs)):
            before()
            start = clock()
            for _ in range(inner):
                action()
            into.append((clock() - start) / inner / 1000)
    return mine, theirs


def spread(values: list[float]) -> float:
    """(p90 - p10) / median."""
    tens = statistics.quantiles(values, n=10)
    return (tens[8] - tens[0]) / statistics.median(values)


def against_floor(
    name: str,
    subject: Callable[[], object],
    floor: Callable[[], object],
    *,
    max_ratio: float | None = None,
    max_value: float | None = None,
    rounds: int = 200,
    inner: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
    before: Callable[[], object] = lambda: None,
) -> Figure:
    """Measure ``subject`` against ``floor``: median of each, ratio of medians, met or not."""
    mine, theirs = samples(subject, floor, rounds=rounds, inner=inner, clock=clock, before=before)
    value, base = statistics.median(mine), statistics.median(theirs)
    wants = []
    if max_ratio is not None:
        wants.append(f"ratio <= {max_ratio:g}")
    if max_value is not None:
        wants.append(f"median <= {max_value:g} us")
    met = (max_ratio is None or value / base <= max_ratio) and (max_value is None or value <= max_value)
    return Figure(name, "us", value, base, value / base, spread(mine), " and ".join(wants), met)
