"""Scenarios: recorded requests that drive a simulated guest, one JSON object per line.

The format is that of recorded vectors (`cvars replay` reads it too): ``scenario``, ``step``, ``op`` (``start``,
``call``, ``reset``), ``request`` and ``reply`` as hex of the communicate buffer, ``note``. A guest that plays
a scenario sends each request and keeps what it was answered.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvars.errors import BadInput

#: the scenarios that come with the package
SCENARIOS: Final = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True)
class Step:
    """One line. ``request`` and ``reply`` are whole communicate buffers; ``reply`` None: anything goes."""

    scenario: str
    number: int
    op: str
    request: bytes = b""
    reply: bytes | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The line's object."""
        line: dict[str, Any] = {"scenario": self.scenario, "step": self.number, "op": self.op}
        if self.op == "call":
            line["request"] = self.request.hex()
        if self.reply is not None:
            line |= {"device_status": 0, "reply": self.reply.hex()}
        return line | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Played:
    """What one step was answered."""

    step: Step
    reply: bytes
    as_recorded: bool


def read_scenario(text: str, where: str) -> list[Step]:
    """Parse a scenario file.

    Raises:
        BadInput: a line is not such an object.
    """
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            reply = item.get("reply")
            steps.append(
                Step(
                    scenario=str(item["scenario"]),
                    number=int(item["step"]),
                    op=str(item["op"]),
                    request=bytes.fromhex(item.get("request", "")),
                    reply=None if reply is None else bytes.fromhex(reply),
                    note=str(item.get("note", "")),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"not a scenario line: {error}", where=f"{where}, line {number}") from error
    unknown = next((s for s in steps if s.op not in ("start", "call", "reset")), None)
    if unknown is not None:
        raise BadInput(f"step {unknown.number}: a guest cannot play {unknown.op!r}", where=where)
    if not any(s.op == "call" for s in steps):
        raise BadInput("the scenario has no calls", where=where)
    short = next((s for s in steps if s.op == "call" and not 24 <= len(s.request) <= 0x10000), None)
    if short is not None:
        raise BadInput(
            f"step {short.number}: a request has 24 to 65536 bytes, not {len(short.request)}", where=where
        )
    return steps


def bundled(name: str) -> str:
    """The text of a scenario that comes with the package."""
    return (SCENARIOS / f"{name}.jsonl").read_text()


def write_scenario(steps: Iterable[Step]) -> str:
    """The file's text."""
    return "".join(json.dumps(step.as_json()) + "\n" for step in steps)


def play(steps: Iterable[Step], exchange: Callable[[bytes], bytes], reset: Callable[[], None]) -> Iterator[Played]:
    """Send each request through ``exchange``; yields the answers as they come."""
    for step in steps:
        if step.op == "reset":
            reset()
        elif step.op == "call":
            reply = exchange(step.request)
            yield Played(step, reply, step.reply is None or reply == step.reply)
