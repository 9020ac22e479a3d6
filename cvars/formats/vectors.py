"""Recorded scenarios of the MM variable protocol: one JSON object per line.

Each line is an operation of a scenario (`start`, `call`, `reset`, `power-cycle`, `device-setup`); a call has
a request and the reply that was recorded. Unknown members are ignored: the format grows.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cvars.errors import BadInput

OPERATIONS: Final = frozenset({"start", "call", "reset", "power-cycle", "device-setup"})
MAX_LINE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Label:
    """A known difference: ``edk2`` is a status name, ``unchanged``, or a status, a colon and a remark."""

    id: str
    edk2: str

    @property
    def status(self) -> str:
        """The status name, or ``unchanged``."""
        return self.edk2.partition(":")[0].strip()

    @property
    def remark(self) -> str:
        """What follows the status, if anything."""
        return self.edk2.partition(":")[2].strip()


@dataclass(frozen=True, slots=True)
class Operation:
    """One line. ``reply`` is the whole recorded buffer range, with a cut tail restored."""

    scenario: str
    step: int
    op: str
    config: dict[str, Any] = field(default_factory=dict)
    request: bytes = b""
    reply: bytes = b""
    device_status: int = 0
    note: str = ""
    label: Label | None = None
    after_divergence: bool = False
    buffer_size: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """The operations of one scenario, in order."""

    name: str
    operations: tuple[Operation, ...]


def read_scenarios(lines: Iterable[str], *, where: str = "") -> Iterator[Scenario]:
    """Read scenarios; consecutive lines of one name belong together.

    Raises:
        BadInput: a line that is not this format.
    """
    name: str | None = None
    held: list[Operation] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        operation = _operation(line, f"{where}:{number}" if where else f"line {number}")
        if operation.scenario != name or operation.op == "start":
            if held and name is not None:
                yield Scenario(name, tuple(held))
            name, held = operation.scenario, []
        held.append(operation)
    if held and name is not None:
        yield Scenario(name, tuple(held))


def _operation(line: str, where: str) -> Operation:
    if len(line) > MAX_LINE:
        raise BadInput(f"line of {len(line)} characters", where=where)
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput("not a JSON object per line", where=where) from None
    if not isinstance(item, dict):
        raise BadInput("not a JSON object per line", where=where)
    scenario, step, op = item.get("scenario"), item.get("step"), item.get("op")
    if not isinstance(scenario, str) or not isinstance(step, int) or op not in OPERATIONS:
        raise BadInput("a line needs scenario, step and a known op", where=where)
    config, size = item.get("config", {}), item.get("buffer_size")
    if not isinstance(config, dict) or not (size is None or isinstance(size, int)):
        raise BadInput("config is an object, buffer_size a number", where=where)
    request, reply = b"", b""
    if op == "call":
        request, reply = _hex(item, "request", where), _hex(item, "reply", where)
        if item.get("reply_tail") == "request":
            reply += request[len(reply) :]
    status = item.get("device_status", 0)
    if not isinstance(status, int):
        raise BadInput("device_status is a number", where=where)
    return Operation(
        scenario=scenario,
        step=step,
        op=op,
        config=config,
        request=request,
        reply=reply,
        device_status=status,
        note=str(item.get("note", "")),
        label=_label(item.get("diverges"), where),
        after_divergence=item.get("after_divergence") is True,
        buffer_size=size,
    )


def _label(value: Any, where: str) -> Label | None:  # noqa: ANN401 - parsed JSON
    if value is None:
        return None
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("id"), str)
        or not isinstance(value.get("edk2"), str)
    ):
        raise BadInput("diverges needs id and edk2", where=where)
    return Label(value["id"], value["edk2"])


def _hex(item: dict[str, Any], name: str, where: str) -> bytes:
    try:
        return bytes.fromhex(item.get(name, ""))
    except (ValueError, TypeError):
        raise BadInput(f"{name} is not hex", where=where) from None
