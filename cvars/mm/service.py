"""The variable service behind the call boundary: bytes in, durable, bytes out."""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from uuid import UUID

from cvars import trace as tracing
from cvars.errors import VariableError
from cvars.mm import policy, variable
from cvars.variables import saved
from cvars.variables.commands import without_dump
from cvars.variables.initial import initial_state, reset, stored
from cvars.variables.limits import DEFAULT_LIMITS, Limits
from cvars.variables.machine import step
from cvars.variables.model import Journal, Key, Variable
from cvars.variables.names import (
    EVENT_END_OF_DXE,
    EVENT_EXIT_BOOT_SERVICES,
    EVENT_READY_TO_BOOT,
    MM_POLICY,
    MM_VARIABLE,
)
from cvars.variables.profile import SPEC, Profile
from cvars.variables.requests import (
    EndOfDxe,
    ExitBootServices,
    GetNextVariableName,
    GetVariable,
    ReadyToBoot,
    Request,
    SetVariable,
)
from cvars.variables.state import Measurement, State, Step
from svsm_bridge import errors

SECURE_BOOT_PCR = 7

_EVENTS: dict[UUID, Request] = {
    EVENT_END_OF_DXE: EndOfDxe(),
    EVENT_READY_TO_BOOT: ReadyToBoot(is_event=True),
    EVENT_EXIT_BOOT_SERVICES: ExitBootServices(),
}
_PHASES = (EndOfDxe, ReadyToBoot, ExitBootServices)
_UNKNOWN: dict[str, type[errors.CallError]] = {
    "INVALID_REQUEST": errors.InvalidRequest,
    "UNSUPPORTED_CALL": errors.UnsupportedCall,
}


class VariableService:
    """One guest's variables. Called by one thread at a time (R13); implements `svsm_bridge.handlers.MmHandler`.

    ``commit`` makes a journal durable before success is reported (R14): `VariableError` refuses the request
    and nothing changed; `StoreError` passes through and the guest stops. ``measure`` is offered what R91 says.
    ``buffer_bytes`` is the size of the guest's communicate buffer, for GetPayloadSize (R11).
    """

    def __init__(
        self,
        variables: Mapping[Key, Variable],
        *,
        profile: Profile = SPEC,
        limits: Limits = DEFAULT_LIMITS,
        commit: Callable[[Journal], None],
        trace: tracing.Trace = tracing.silent,
        measure: Callable[[Measurement], None] | None = None,
        buffer_bytes: int = 64 * 1024,
    ) -> None:
        self._state = initial_state(variables, profile=profile, limits=limits)
        self._commit = commit
        self._trace = trace
        self._measure = measure
        self.buffer_bytes = buffer_bytes

    @property
    def state(self) -> State:
        """Everything that decides a future answer."""
        return self._state

    @property
    def variables(self) -> Mapping[Key, Variable]:
        """The non-volatile variables, private items included."""
        return MappingProxyType(stored(self._state))

    def reset(self) -> None:
        """Platform reset (R20)."""
        self._state = reset(self._state)

    def save(self) -> bytes:
        """The whole state, MOR key and values included: seal it (R21)."""
        return saved.save(self._state)

    def restore(self, raw: bytes) -> None:
        """Take over a saved state. Raises BadInput: malformed (R21)."""
        self._state = saved.restore(raw)

    def handle(self, header_guid: UUID, message: bytes) -> bytes:
        """Answer one MM message: `svsm_bridge.handlers.MmHandler.handle`.

        Raises:
            CallError: R4, R5.
            StoreError: the store failed, and the guest must stop.
        """
        if header_guid == MM_VARIABLE:
            return self._variable(message)
        if header_guid == MM_POLICY:
            return self._policy(message)
        event = _EVENTS.get(header_guid)
        if event is None:
            raise _UNKNOWN[self._state.profile.unknown_message](f"unknown message {header_guid}")  # R4
        self._apply(event)
        return b""

    def _variable(self, message: bytes) -> bytes:
        if len(message) < variable.HEAD:
            raise errors.InvalidParameter(f"variable message of {len(message)} bytes")  # R5
        call: variable.Call | None = None
        try:
            call = variable.decode(message, self._state.profile)
            if isinstance(call, variable.GetPayloadSize):
                size = max(0, self.buffer_bytes - self._state.profile.payload_overhead)
                return variable.encode(message, call, size)  # R11
            return variable.encode(message, call, self._apply(call))
        except VariableError as error:
            if self._trace is not tracing.silent:
                self._trace_refusal(call, error)
            return variable.encode_refusal(message, call, error)
        except variable.NoAnswer:
            return b""

    def _policy(self, message: bytes) -> bytes:
        if len(message) < policy.HEAD:
            raise errors.InvalidParameter(f"policy message of {len(message)} bytes")  # R5
        try:
            if policy.ends_dump(message):
                self._state = without_dump(self._state)
            request = policy.decode(message)
            return policy.encode(message, request, self._apply(request))
        except VariableError as error:
            return policy.encode_refusal(message, error)

    def _apply(self, request: Request) -> object:
        """Decide, make durable, publish, in this order (R13, R14). Raises VariableError: refused."""
        before = self._state
        done = step(before, request)
        if done.journal:
            try:
                self._commit(done.journal)
            except VariableError:
                if isinstance(request, _PHASES):  # a lock engages even if the store fails (R16, R17)
                    self._state = replace(done.state, in_doubt=True)
                    return None
                self._state = replace(before, in_doubt=True)  # R14, R54
                raise
        if done.state is not before:
            self._publish(done)
            if self._trace is not tracing.silent:
                self._trace_change(request, before, done.state)
        elif self._trace is not tracing.silent and isinstance(request, SetVariable):
            self._trace_change(request, before, done.state)
        if done.refusal is not None:
            raise done.refusal
        return done.reply

    def _publish(self, done: Step) -> None:
        state = done.state
        self._state = replace(state, in_doubt=False) if done.journal and state.in_doubt else state
        for measurement in done.measurements:
            if self._measure is not None:
                self._measure(measurement)
            if self._trace is tracing.silent:
                continue
            self._trace(
                tracing.MeasurementOffered(
                    pcr=SECURE_BOOT_PCR,
                    name=measurement.key.name,
                    vendor_guid=measurement.key.vendor_guid,
                    sha384=hashlib.sha384(uefi_variable_data(measurement)).hexdigest(),
                )
            )

    def _trace_change(self, request: Request, before: State, after: State) -> None:
        if after.phase != before.phase:
            self._trace(tracing.PhaseEntered(phase=after.phase.name))
        if not isinstance(request, SetVariable):
            return
        key, now = request.key, after.table.find(request.key)
        if now is not None:
            self._trace(
                tracing.VariableSet(
                    name=key.name,
                    vendor_guid=key.vendor_guid,
                    attributes=now.attributes,
                    size=len(now.data),
                    sha384=hashlib.sha384(now.data).hexdigest(),
                )
            )
        elif before.table.find(key) is not None:
            self._trace(tracing.VariableDeleted(name=key.name, vendor_guid=key.vendor_guid))

    def _trace_refusal(self, call: variable.Call | None, error: VariableError) -> None:
        if isinstance(call, GetVariable | GetNextVariableName) and error.status.name in (
            "NOT_FOUND",
            "BUFFER_TOO_SMALL",
        ):
            return  # the normal course of reading
        key = getattr(call, "key", None)
        self._trace(
            tracing.VariableRefused(
                function=type(call).__name__ if call is not None else "",
                name=key.name if key is not None else "",
                vendor_guid=key.vendor_guid if key is not None else UUID(int=0),
                status=error.status.name,
            )
        )


def uefi_variable_data(measurement: Measurement) -> bytes:
    """UEFI_VARIABLE_DATA, what PCR 7 is extended with (TCG PC Client PFP; R91)."""
    name, data = measurement.key.name_bytes, measurement.data or b""
    head = struct.pack("<16sQQ", measurement.key.vendor_guid.bytes_le, len(name) // 2, len(data))
    return head + name + data
