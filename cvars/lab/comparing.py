"""Is a difference between a recorded reply and ours explained? Judged by the recordings' README and the rules.

Every exchange gets one verdict. Unlabelled calls must agree byte for byte; the exemptions are counted by kind:

* ``figures``: the three sizes of QueryVariableInfo, and its attributes field;
* ``capacity``: where OUT_OF_RESOURCES sets in, in scenarios that depend on the recorder's capacity;
* ``order``: enumeration order; a complete walk is compared as a set;
* ``internal``: values and names that are an implementation's own (VendorKeys, SignatureSupport, certdb, …);
* ``correction``: a slip in the labels, settled by a rule, which is named.

Labelled calls are answered *as edk2*, *as recorded* where the table or a rule says so, *by rule*, or *as neither*.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cvars.errors import EfiStatus
from cvars.lab.replaying import DEVICE_OK, Exchange, Message, status_name
from cvars.mm.layouts import COMMUNICATE_HEADER_BYTES, HEADER, INFO, Function
from cvars.variables import siglist
from cvars.variables.model import Key
from cvars.variables.names import (
    APPEND,
    AW,
    BS,
    CERT_DB,
    CUSTOM,
    ENABLE,
    HR,
    KEY_STORES,
    NV,
    RT,
    SIGNATURE_SUPPORT,
    SUPPORTED,
    VENDOR_KEYS,
    VENDOR_KEYS_STORED,
)
from cvars.variables.refusals import InvalidParameter
from cvars.variables.security import GLOBAL

_PAYLOAD: Final = COMMUNICATE_HEADER_BYTES + HEADER.size
_FIGURES: Final = slice(_PAYLOAD, _PAYLOAD + INFO.size)

#: names that are an implementation's own
INTERNAL_NAMES: Final = frozenset(
    {VENDOR_KEYS_STORED, Key(GLOBAL, "VendorKeysNv"), Key(CERT_DB, "certdb"), Key(CERT_DB, "certdbv")}
)
#: variables whose value is configuration: status, size and attributes are compared
INTERNAL_VALUES: Final = frozenset({VENDOR_KEYS, SIGNATURE_SUPPORT})


class Verdict(StrEnum):
    """How an exchange compares."""

    EQUAL = "equal"
    FIGURES = "figures"
    CAPACITY = "capacity"
    ORDER = "order"
    INTERNAL = "internal"
    CORRECTION = "correction"
    INFORMATION = "information"
    AS_EDK2 = "as edk2"
    AS_RECORDED = "as recorded"
    BY_RULE = "by rule"
    NEITHER = "neither"
    DIFFERENT = "different"

    @property
    def explained(self) -> bool:
        """Nothing to report."""
        return self not in (Verdict.NEITHER, Verdict.DIFFERENT)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One exchange with its verdict; ``why`` names the rule, table row or reason."""

    exchange: Exchange
    verdict: Verdict
    why: str = ""


@dataclass(slots=True)
class Memory:
    """What earlier exchanges settled: keys whose state is bound to differ, by the rule that did it."""

    settled: dict[Key, str] = field(default_factory=dict)
    appended: set[Key] = field(default_factory=set)


def judge_scenario(exchanges: Iterable[Exchange]) -> list[Judgement]:
    """Judge the exchanges of one scenario, in order."""
    held = list(exchanges)
    memory = Memory()
    judgements = []
    walks = _walks(held)
    for position, exchange in enumerate(held):
        judgement = _judge(exchange, memory, walk=walks.get(position))
        judgements.append(judgement)
        _learn(judgement, memory)
    return judgements


def _judge(exchange: Exchange, memory: Memory, *, walk: bool | None) -> Judgement:
    if exchange.label is not None:
        return _judge_labelled(exchange)
    if exchange.after_divergence:
        return Judgement(exchange, Verdict.INFORMATION)
    if exchange.equal:
        return Judgement(exchange, Verdict.EQUAL)
    return _judge_unlabelled(exchange, memory, walk=walk)


def _learn(judgement: Judgement, memory: Memory) -> None:
    """Remember where our state parts from the recorded one, and why."""
    exchange = judgement.exchange
    request = Message(exchange.request)
    key = request.key
    if request.function != Function.SET_VARIABLE or key is None:
        return
    if request.attributes & APPEND and key in KEY_STORES:
        memory.appended.add(key)
    if judgement.verdict is Verdict.CAPACITY:
        memory.settled[key] = "capacity"
    elif exchange.label is not None and exchange.label.id == "D52":
        memory.settled[key] = "R39"
    elif Message(exchange.ours).status == Message(exchange.recorded).status == 0 and key in memory.settled:
        del memory.settled[key]


# --- unlabelled ------------------------------------------------------------------------------------


def _judge_unlabelled(exchange: Exchange, memory: Memory, *, walk: bool | None) -> Judgement:
    request, ours, recorded = Message(exchange.request), Message(exchange.ours), Message(exchange.recorded)
    key = request.key
    if exchange.device != exchange.recorded_device:
        return Judgement(exchange, Verdict.DIFFERENT)
    match request.function:
        case Function.QUERY_VARIABLE_INFO:
            if same_but_figures(exchange):
                return Judgement(exchange, Verdict.FIGURES)
            wanted = query_status(request.attributes, at_runtime=exchange.before.at_runtime)
            if ours.status == wanted != EfiStatus.SUCCESS:
                return Judgement(exchange, Verdict.CORRECTION, "R29")
        case Function.GET_NEXT_VARIABLE_NAME:
            if walk or (walk is None and next_agrees(exchange)):
                return Judgement(exchange, Verdict.ORDER)
        case Function.READY_TO_BOOT:
            if exchange.before.at_runtime and ours.status == EfiStatus.UNSUPPORTED:
                return Judgement(exchange, Verdict.CORRECTION, "D09, R17")
        case Function.GET_VARIABLE if key is not None:
            verdict = _judge_get(exchange, key, memory)
            if verdict is not None:
                return verdict
        case Function.SET_VARIABLE:
            if exchange.capacity_sensitive and EfiStatus.OUT_OF_RESOURCES in (ours.status, recorded.status):
                return Judgement(exchange, Verdict.CAPACITY)
    if exchange.presence_configured and key in (ENABLE, CUSTOM):
        return Judgement(exchange, Verdict.CORRECTION, "R87: the recorder's configuration")
    if key is not None and key in memory.settled:
        rule = memory.settled[key]
        if rule == "capacity":
            return Judgement(exchange, Verdict.CAPACITY)
        return Judgement(exchange, Verdict.CORRECTION, rule)
    return Judgement(exchange, Verdict.DIFFERENT)


def _judge_get(exchange: Exchange, key: Key, memory: Memory) -> Judgement | None:
    ours, recorded = Message(exchange.ours), Message(exchange.recorded)
    if key in INTERNAL_NAMES:
        return Judgement(exchange, Verdict.INTERNAL, "R77, R82")
    if key in INTERNAL_VALUES and exchange.ours[: _PAYLOAD + 36] == exchange.recorded[: _PAYLOAD + 36]:
        return Judgement(exchange, Verdict.INTERNAL, "R82")
    if key in memory.appended and holds_entries(ours, recorded):
        return Judgement(exchange, Verdict.CORRECTION, "D34, R59")
    return None


def holds_entries(ours: Message, recorded: Message) -> bool:
    """Our database lost nothing that the recorded one holds, and holds more (D34, P22)."""
    if recorded.status != EfiStatus.SUCCESS or ours.status != EfiStatus.SUCCESS:
        return False
    try:
        mine = {(one.type, e) for one in siglist.parse(ours.data) for e in one.entries}
        theirs = {(one.type, e) for one in siglist.parse(recorded.data) for e in one.entries}
    except InvalidParameter:
        return False
    return theirs < mine


def _without(raw: bytes, part: slice) -> bytes:
    return raw[: part.start] + raw[part.stop :]


def same_but_figures(exchange: Exchange) -> bool:
    """Equal apart from the sizes and attributes that follow the status (R30)."""
    return _without(exchange.ours, _FIGURES) == _without(exchange.recorded, _FIGURES)


def query_status(attributes: int, *, at_runtime: bool) -> EfiStatus:
    """What R29 answers; written apart from the service, to settle recorded slips. No room for error records."""
    if attributes == 0:
        return EfiStatus.INVALID_PARAMETER
    known = attributes & SUPPORTED
    if attributes & AW or not known:
        return EfiStatus.UNSUPPORTED
    if known == NV or known & (RT | BS) == RT or (at_runtime and not known & RT):
        return EfiStatus.INVALID_PARAMETER
    if known & HR:
        return EfiStatus.UNSUPPORTED if known & NV else EfiStatus.INVALID_PARAMETER
    return EfiStatus.SUCCESS


def next_agrees(exchange: Exchange, extra: frozenset[str] = frozenset()) -> bool:
    """A single GetNextVariableName outside a complete walk: the recorded name is one of ours (R28).

    ``extra``: further names that the recording side may keep for itself.
    """
    recorded, ours = Message(exchange.recorded), Message(exchange.ours)
    names = visible(exchange)
    end = EfiStatus.NOT_FOUND
    asked = Message(exchange.request).key
    if asked in INTERNAL_NAMES or (asked is not None and asked.name in extra):
        return True
    if recorded.status == EfiStatus.SUCCESS:
        key = recorded.key
        return key in names or key in INTERNAL_NAMES or (key is not None and key.name in extra)
    if recorded.status == EfiStatus.BUFFER_TOO_SMALL:
        needed = int.from_bytes(recorded.body[32:40], "little")
        return any(len(key.name_bytes) + 2 == needed for key in names | INTERNAL_NAMES)
    return recorded.status == end and ours.status in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL)


def visible(exchange: Exchange) -> set[Key]:
    """The names that our enumeration shows at this point."""
    table, runtime = exchange.before.table, exchange.before.at_runtime
    names = set()
    key = table.after(None, runtime=runtime)
    while key is not None:
        names.add(key)
        key = table.after(key, runtime=runtime)
    return names


def _walks(exchanges: list[Exchange]) -> dict[int, bool]:
    """For each step of a complete walk: whether both sides named the same set of variables."""
    verdicts: dict[int, bool] = {}
    run: list[int] = []
    for position, exchange in enumerate(exchanges):
        request = Message(exchange.request)
        if not exchange.walk or request.function != Function.GET_NEXT_VARIABLE_NAME:
            run = []
            continue
        key = request.key
        if key is not None and not key.name:
            run = []
        run.append(position)
        if Message(exchange.recorded).status == EfiStatus.NOT_FOUND:
            same = _same_names([exchanges[i] for i in run])
            verdicts.update(dict.fromkeys(run, same))
            run = []
    return verdicts


def _same_names(walk: list[Exchange]) -> bool:
    theirs = {Message(e.recorded).key for e in walk if Message(e.recorded).status == EfiStatus.SUCCESS}
    replies = [Message(e.ours) for e in walk if Message(e.request).key not in INTERNAL_NAMES]
    names = [reply.key for reply in replies if reply.status == EfiStatus.SUCCESS]
    ends = sum(reply.status == EfiStatus.NOT_FOUND for reply in replies)
    return (
        set(names) - INTERNAL_NAMES == theirs - INTERNAL_NAMES
        and len(names) == len(set(names))
        and ends == 1
        and len(names) + ends == len(replies)
    )


# --- labelled --------------------------------------------------------------------------------------


def _judge_labelled(exchange: Exchange) -> Judgement:
    label = exchange.label
    assert label is not None
    if _is_as_edk2(exchange):
        return Judgement(exchange, Verdict.AS_EDK2, label.id)
    if _is_as_recorded(exchange):
        why = recorded_side(exchange)
        if why is not None:
            return Judgement(exchange, Verdict.AS_RECORDED, why)
    rule = by_rule(exchange)
    if rule is not None:
        return Judgement(exchange, Verdict.BY_RULE, rule)
    return Judgement(exchange, Verdict.NEITHER, label.id)


def _is_as_edk2(exchange: Exchange) -> bool:
    label = exchange.label
    assert label is not None
    ours = Message(exchange.ours)
    if label.status == "unchanged":
        return exchange.device == DEVICE_OK and exchange.ours == exchange.request
    if exchange.device != DEVICE_OK or status_name(ours.status) != label.status:
        return False
    if not label.remark or Message(exchange.request).function != Function.GET_VARIABLE:
        return _untouched_where_refused(exchange)
    if label.remark.isdecimal():
        return ours.data[:1] == bytes([int(label.remark) & 0xFF])
    if label.remark.isascii() and label.remark.isalpha():
        return ours.data.startswith(label.remark.encode())
    return True


def _untouched_where_refused(exchange: Exchange) -> bool:
    """A refused call writes its status only, or the sizes that its function says (R23, R27)."""
    ours = Message(exchange.ours)
    if ours.status in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL):
        return True
    first = 8 if ours.command is None else 12
    status = slice(COMMUNICATE_HEADER_BYTES + first, COMMUNICATE_HEADER_BYTES + first + 8)
    return _without(exchange.ours, status) == _without(exchange.request, status)


def _is_as_recorded(exchange: Exchange) -> bool:
    """Equal; or, where a message was too short for its function, equal in status: the rest are figures (D23)."""
    if exchange.equal:
        return True
    assert exchange.label is not None
    same = Message(exchange.ours).status == Message(exchange.recorded).status
    return exchange.label.id == "D23" and same and exchange.device == exchange.recorded_device


def recorded_side(exchange: Exchange) -> str | None:
    """Why the recorded side is the one to take for this label, or None."""
    label, request = exchange.label, Message(exchange.request)
    assert label is not None
    body = request.body
    match label.id:
        case "D23":
            return "D23: an explicit error (R7)"
        case "D39":
            return "D39: either side; ours checks (R65)"
        case "D59":
            return "D59: hiding is fine (R77, R82)"
        case "D12" | "D13":
            at = 40 if request.function in (Function.GET_VARIABLE, Function.SET_VARIABLE) else 32
            if body[at : at + 1] and body[at] & 1:
                return "D13: odd sizes are refused (R8)"
            return "D13: function 8 as recorded (R8)" if request.function == Function.LOCK_VARIABLE else None
        case "D20" if request.function in (12, 14):
            return "D20: no runtime cache (R12)"
        case "D57" if not exchange.before.armed:
            return "correction: no EndOfDxe was sent (R107)"
    if exchange.after_divergence:
        return "after a divergence: information only"
    return None


def by_rule(exchange: Exchange) -> str | None:
    """The rule that asks for an answer which is neither the recorded one nor edk2's, or None."""
    label, request, ours = exchange.label, Message(exchange.request), Message(exchange.ours)
    assert label is not None
    key = request.key
    match label.id:
        case "D28" if request.data[20:22] != b"\x00\x02" and ours.status == EfiStatus.SECURITY_VIOLATION:
            return "R63: other revisions are refused"
        case "D23" if request.function == Function.QUERY_VARIABLE_INFO:
            wanted = query_status(request.attributes, at_runtime=exchange.before.at_runtime)
            if len(request.body) >= HEADER.size + INFO.size and ours.status == wanted:
                return "R29 of a 28-byte query"
        case "D52" if key is not None and request.function == Function.GET_VARIABLE:
            if ours.status == EfiStatus.SUCCESS and not ours.attributes & HR:
                return "R39: written without HR since"
    return None


def counts(judgements: Iterable[Judgement]) -> Counter[str]:
    """Verdicts, counted."""
    return Counter(judgement.verdict.value for judgement in judgements)


def by_label(judgements: Iterable[Judgement]) -> dict[str, Counter[str]]:
    """Verdicts per label id."""
    table: dict[str, Counter[str]] = {}
    for judgement in judgements:
        if judgement.exchange.label is not None:
            table.setdefault(judgement.exchange.label.id, Counter())[judgement.verdict.value] += 1
    return table


__all__ = [
    "Judgement",
    "Verdict",
    "by_label",
    "counts",
    "judge_scenario",
]
