"""Recorded traffic against a fresh service: what was asked, what was recorded, what we answer.

Knows two kinds of recordings: scenarios (`cvars.formats.vectors`) and captures (`cvars.formats.pcap`). Whether a
difference is explained is `comparing`'s business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from cvars.errors import BadInput, EfiStatus
from cvars.formats import qemu_json
from cvars.formats.pcap import SNAP_LENGTH, Capture, PacketType
from cvars.formats.vectors import Label, Operation, Scenario
from cvars.mm.layouts import ACCESS, COMMUNICATE_HEADER_BYTES, NAME, Function
from cvars.mm.service import VariableService
from cvars.mm.variable import HEAD, decode_char16
from cvars.variables.limits import DEFAULT_LIMITS, Limits
from cvars.variables.model import Journal, Key, Variable
from cvars.variables.modes import ON, STORED
from cvars.variables.names import ENABLE, MM_POLICY, MM_VARIABLE, guid
from cvars.variables.profile import Profile
from cvars.variables.state import State
from svsm_bridge import errors

#: status register of the device that recorded the scenarios (mm-protocol 1.1)
DEVICE_OK: Final = 0
DEVICE_UNKNOWN: Final = 0x11
DEVICE_BAD_SIZE: Final = 0x12
DEVICE_BUFFER_MAX: Final = 64 * 1024  # larger values of the buffer register are clamped


@dataclass(frozen=True, slots=True)
class Message:
    """What can be read of a communicate buffer, without judging it."""

    raw: bytes

    @property
    def guid(self) -> UUID:
        """The header's GUID."""
        return guid(self.raw[:16])

    @property
    def body(self) -> bytes:
        """The message behind the header."""
        return self.raw[COMMUNICATE_HEADER_BYTES:]

    @property
    def function(self) -> int | None:
        """The function of a variable message."""
        if self.guid != MM_VARIABLE or len(self.body) < 8:
            return None
        return int.from_bytes(self.body[:8], "little")

    @property
    def command(self) -> int | None:
        """The command of a policy message."""
        if self.guid != MM_POLICY or len(self.body) < 20:
            return None
        return int.from_bytes(self.body[8:12], "little")

    @property
    def status(self) -> int:
        """The status that a variable or policy reply carries, else 0."""
        if self.guid == MM_VARIABLE:
            return int.from_bytes(self.body[8:16], "little")
        return int.from_bytes(self.body[12:20], "little") if self.guid == MM_POLICY else 0

    @property
    def key(self) -> Key | None:
        """The variable that a message names, if it can be read."""
        body = self.body
        if self.function in (Function.GET_VARIABLE, Function.SET_VARIABLE) and len(body) >= HEAD + ACCESS.size:
            raw, _, size, _ = ACCESS.unpack_from(body, HEAD)
            start = HEAD + ACCESS.size
        elif (
            self.function in (Function.GET_NEXT_VARIABLE_NAME, Function.LOCK_VARIABLE)
            and len(body) >= HEAD + NAME.size
        ):
            raw, size = NAME.unpack_from(body, HEAD)
            start = HEAD + NAME.size
        else:
            return None
        size = min(size, len(body) - start) // 2 * 2
        return Key(guid(raw), decode_char16(body[start : start + size]))

    @property
    def attributes(self) -> int:
        """The attributes field of a get, set or query."""
        if self.function == Function.QUERY_VARIABLE_INFO:
            return int.from_bytes(self.body[40:44], "little")
        return int.from_bytes(self.body[48:52], "little")

    @property
    def data(self) -> bytes:
        """The data of a get or set, as far as it is there."""
        if len(self.body) < HEAD + ACCESS.size:
            return b""
        _, data_size, name_size, _ = ACCESS.unpack_from(self.body, HEAD)
        start = HEAD + ACCESS.size + name_size
        return self.body[start : start + data_size]

    @property
    def title(self) -> str:
        """For people: the function and what it is about."""
        key = self.key
        about = f' "{key.name}" {key.vendor_guid}' if key is not None else ""
        if self.function is not None:
            name = Function(self.function).name if self.function in list(Function) else f"function {self.function}"
            return name + about
        return f"policy command {self.command}" if self.command is not None else f"message {self.guid}"


def status_name(status: int) -> str:
    """The name of an EFI_STATUS."""
    return EfiStatus(status).name if status in list(EfiStatus) else f"{status:#x}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call: the request, the recorded and our answer. ``before`` and ``after`` are our states around it."""

    scenario: str
    step: int
    request: bytes
    recorded: bytes
    recorded_device: int
    ours: bytes
    device: int
    before: State = field(repr=False)
    after: State = field(repr=False)
    label: Label | None = None
    after_divergence: bool = False
    walk: bool = False
    capacity_sensitive: bool = False
    fresh: bool = False  # the first call of a scenario
    presence_configured: bool = False  # the recorder's options decided about SecureBootEnable or CustomMode

    @property
    def equal(self) -> bool:
        """Byte for byte."""
        return self.ours == self.recorded and self.device == self.recorded_device


@dataclass(frozen=True, slots=True)
class Left:
    """A request that was not compared, and why."""

    scenario: str
    step: int
    why: str


class Machine:
    """A service with the buffer of a device in front of it, as the recordings had it."""

    def __init__(self, profile: Profile, limits: Limits = DEFAULT_LIMITS) -> None:
        self._profile = profile
        self._limits = limits
        self._buffer = DEVICE_BUFFER_MAX
        self.largest = DEVICE_BUFFER_MAX
        self.start({})

    def start(self, variables: Mapping[Key, Variable]) -> None:
        """Power on with these non-volatile variables."""
        self._service = VariableService(
            variables, profile=self._profile, limits=self._limits, commit=_keep_nothing
        )
        self._service.buffer_bytes = self._buffer

    def set_buffer(self, size: int) -> None:
        """Set the device's buffer; state is kept."""
        self._buffer = self._service.buffer_bytes = self.largest = max(0, min(size, DEVICE_BUFFER_MAX))

    def reset(self) -> None:
        """Platform reset."""
        self._service.reset()

    def power_cycle(self) -> None:
        """Reload the store."""
        self.start(dict(self._service.variables))

    @property
    def state(self) -> State:
        """Our state now."""
        return self._service.state

    def call(self, buffer: bytes) -> tuple[int, bytes]:
        """One call: the device status and the buffer afterwards."""
        length = int.from_bytes(buffer[16:24], "little")
        whole = COMMUNICATE_HEADER_BYTES + length
        if len(buffer) < COMMUNICATE_HEADER_BYTES or whole > self.largest:
            return DEVICE_BAD_SIZE, buffer
        message = buffer[COMMUNICATE_HEADER_BYTES:whole].ljust(length, b"\0")
        try:
            reply = self._service.handle(guid(buffer[:16]), message)
        except errors.InvalidParameter:
            return DEVICE_BAD_SIZE, buffer
        except errors.CallError:
            return DEVICE_UNKNOWN, buffer
        head = buffer[:COMMUNICATE_HEADER_BYTES]
        return DEVICE_OK, head + reply + buffer[COMMUNICATE_HEADER_BYTES + len(reply) :]


def _keep_nothing(_journal: Journal) -> None:
    """A store that holds nothing: the service keeps its own state across a power cycle."""


def play_scenario(scenario: Scenario, profile: Profile, store: Mapping[Key, Variable]) -> Iterator[Exchange]:
    """Run one scenario on a fresh service; ``store`` is what it starts with where the scenario says nothing."""
    machine = Machine(profile)
    capacity_sensitive = presence = False
    fresh = True
    for operation in scenario.operations:
        match operation.op:
            case "start":
                capacity_sensitive = operation.config.get("capacity_sensitive") is True
                presence = any(operation.config.get(f) for f in ("force_secure_boot", "disable_custom_mode"))
                machine = Machine(profile)
                machine.start(_preset(operation) or store)
                fresh = True
            case "reset":
                machine.reset()
            case "power-cycle":
                machine.power_cycle()
            case "device-setup":
                if operation.buffer_size is not None:
                    machine.set_buffer(operation.buffer_size)
            case _:
                before = machine.state
                device, ours = machine.call(operation.request)
                yield Exchange(
                    scenario=scenario.name,
                    step=operation.step,
                    request=operation.request,
                    recorded=operation.reply,
                    recorded_device=operation.device_status,
                    ours=ours,
                    device=device,
                    before=before,
                    after=machine.state,
                    label=operation.label,
                    after_divergence=operation.after_divergence,
                    walk=operation.note.startswith("walk"),
                    capacity_sensitive=capacity_sensitive,
                    fresh=fresh,
                    presence_configured=presence,
                )
                fresh = False


def _preset(operation: Operation) -> dict[Key, Variable] | None:
    store: Any = operation.config.get("store")
    if operation.config.get("force_secure_boot"):
        enabled = {ENABLE: Variable(STORED, ON)}
        return enabled | (_preset_store(store, operation) if store is not None else {})
    return None if store is None else _preset_store(store, operation)


def _preset_store(store: Any, operation: Operation) -> dict[Key, Variable]:  # noqa: ANN401 - parsed JSON
    if isinstance(store, list):
        store = {"version": qemu_json.VERSION, "variables": store}
    return qemu_json.from_document(store, where=f"{operation.scenario} step {operation.step}").variables


def play_capture(
    capture: Capture, name: str, profile: Profile, store: Mapping[Key, Variable], limits: Limits = DEFAULT_LIMITS
) -> Iterator[Exchange | Left]:
    """Run a capture; a step is the number of its request, from 1. Cut records are left out, named by record."""
    machine = Machine(profile, limits)
    machine.start(store)
    machine.largest = SNAP_LENGTH
    for cut in capture.skipped:
        yield Left(name, cut.number, cut.why)
    pending = None
    requests = 0
    fresh = True
    for packet in capture.packets:
        match packet.type:
            case PacketType.RESET:
                machine.reset()
            case PacketType.REQUEST:
                if pending is not None:
                    machine.call(pending.data)
                    yield Left(name, requests, "no reply was recorded")
                pending = packet
                requests += 1
            case PacketType.REPLY:
                if pending is None:
                    yield Left(name, packet.number, "a reply without a request")
                    continue
                before = machine.state
                device, ours = machine.call(pending.data)
                if device == DEVICE_UNKNOWN and packet.data != pending.data:
                    yield Left(name, requests, f"answered by another handler: {Message(pending.data).guid}")
                    pending = None
                    continue
                yield Exchange(
                    scenario=name,
                    step=requests,
                    request=pending.data,
                    recorded=packet.data,
                    recorded_device=DEVICE_UNKNOWN if device == DEVICE_UNKNOWN else DEVICE_OK,
                    ours=ours,
                    device=device,
                    before=before,
                    after=machine.state,
                    fresh=fresh,
                )
                fresh, pending = False, None
    if pending is not None:
        yield Left(name, requests, "no reply was recorded")


def load_store(text: bytes, where: str) -> dict[Key, Variable]:
    """The starting variables of ``--from``. Raises BadInput."""
    if not text.strip():
        raise BadInput("the store file is empty", where=where)
    return qemu_json.read(text, where=where).variables
