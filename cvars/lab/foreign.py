"""Captures that another implementation answered: which differences its README or the rules explain.

A capture of our own must agree byte for byte. Another implementation's differs in what configuration decides:
figures, enumeration order, names and values of its own, its size limit; and one of them in ways that the vectors'
README labels. A capture counts as another's when more than `OWN_AT_MOST` replies differ in such a way, so that a
single damaged byte in a capture of ours is never explained away.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cvars.errors import EfiStatus
from cvars.lab.comparing import (
    INTERNAL_NAMES,
    INTERNAL_VALUES,
    Judgement,
    Verdict,
    next_agrees,
    same_but_figures,
)
from cvars.lab.replaying import Exchange, Message
from cvars.mm.layouts import Function
from cvars.variables.model import Key
from cvars.variables.names import APPEND, BS, LANG, NV, PLATFORM_LANG, READ_ONLY, RT

OWN_AT_MOST: Final = 2  # differences of configuration in a capture of our own: damaged bytes
S: Final = EfiStatus
#: what a driver keeps for itself
_OWN_NAMES: Final = frozenset({"VarErrorFlag", "certdb", "certdbv", "VendorKeysNv"})


def judge_capture(exchanges: Iterable[Exchange]) -> list[Judgement]:
    """Judge a capture, in order."""
    held = list(exchanges)
    memory: dict[Key, str] = {}
    judgements = [_judge(exchange, memory) for exchange in held]
    configured = sum(j.verdict in _CONFIGURED for j in judgements)
    if configured <= OWN_AT_MOST:
        return [Judgement(e, Verdict.EQUAL if e.equal else Verdict.DIFFERENT) for e in held]
    return judgements


_CONFIGURED: Final = (Verdict.FIGURES, Verdict.ORDER, Verdict.INTERNAL)


def _judge(exchange: Exchange, memory: dict[Key, str]) -> Judgement:
    request = Message(exchange.request)
    key = request.key
    judgement = Judgement(exchange, Verdict.EQUAL)
    if not exchange.equal:
        judgement = _explain(exchange, request, key, memory)
    if request.function == Function.SET_VARIABLE and key is not None:
        _learn(exchange, request, key, judgement, memory)
    return judgement


def _explain(exchange: Exchange, request: Message, key: Key | None, memory: dict[Key, str]) -> Judgement:
    ours, recorded = Message(exchange.ours), Message(exchange.recorded)
    if key is not None and key in memory:
        return Judgement(exchange, Verdict.BY_RULE, memory[key])
    match request.function:
        case Function.QUERY_VARIABLE_INFO | Function.GET_PAYLOAD_SIZE:
            if same_but_figures(exchange):
                return Judgement(exchange, Verdict.FIGURES)
        case Function.GET_NEXT_VARIABLE_NAME:
            if next_agrees(exchange, extra=_OWN_NAMES):
                return Judgement(exchange, Verdict.ORDER)
        case Function.GET_VARIABLE if key is not None:
            if key in INTERNAL_NAMES or key.name in _OWN_NAMES:
                return Judgement(exchange, Verdict.INTERNAL)
            if key in INTERNAL_VALUES and ours.attributes == recorded.attributes:
                return Judgement(exchange, Verdict.INTERNAL)
    for difference in DIFFERENCES:
        if (
            request.function == difference.function
            and recorded.status in difference.recorded
            and ours.status in difference.ours
            and difference.when(exchange, request)
        ):
            return Judgement(exchange, Verdict.BY_RULE, difference.id)
    return Judgement(exchange, Verdict.DIFFERENT)


def _learn(exchange: Exchange, request: Message, key: Key, judgement: Judgement, memory: dict[Key, str]) -> None:
    ours, recorded = Message(exchange.ours).status, Message(exchange.recorded).status
    if judgement.verdict is Verdict.BY_RULE and (ours == 0) != (recorded == 0):
        memory[key] = judgement.why
    elif ours == recorded == 0 and not request.attributes & APPEND:
        memory.pop(key, None)


@dataclass(frozen=True, slots=True)
class Difference:
    """A known difference: the statuses of both sides, and when it applies."""

    id: str
    function: int
    recorded: tuple[EfiStatus, ...]
    ours: tuple[EfiStatus, ...]
    when: Callable[[Exchange, Message], bool] = lambda _e, _r: True


def _is_delete(_exchange: Exchange, request: Message) -> bool:
    return not request.data or not request.attributes & (BS | RT)


def _is_volatile_at_runtime(exchange: Exchange, request: Message) -> bool:
    return exchange.before.at_runtime and request.attributes & (NV | RT) != NV | RT


def _is_above_limit(_exchange: Exchange, request: Message) -> bool:
    return len(request.data) > SMALLEST_LIMIT


#: other implementations refuse values above about this many bytes by configuration
SMALLEST_LIMIT: Final = 32 * 1024

DIFFERENCES: Final = (
    Difference(
        "R41: a smaller limit", 3, (S.INVALID_PARAMETER, S.OUT_OF_RESOURCES), (S.SUCCESS,), _is_above_limit
    ),
    Difference("D01", 3, (S.UNSUPPORTED,), (S.INVALID_PARAMETER,)),
    Difference("D02", 3, (S.ACCESS_DENIED,), (S.INVALID_PARAMETER,)),
    Difference("D04", 3, (S.SUCCESS,), (S.NOT_FOUND,), _is_delete),
    Difference("D05", 3, (S.UNSUPPORTED,), (S.SUCCESS,), lambda _e, r: bool(r.attributes & APPEND)),
    Difference("D06", 1, (S.ACCESS_DENIED,), (S.NOT_FOUND,), lambda e, _r: e.before.at_runtime),
    Difference("D07", 3, (S.ACCESS_DENIED,), (S.WRITE_PROTECTED,), lambda e, _r: e.before.at_runtime),
    Difference(
        "D08", 3, (S.SUCCESS, S.ACCESS_DENIED), (S.INVALID_PARAMETER, S.WRITE_PROTECTED), _is_volatile_at_runtime
    ),
    Difference("D09", 5, (S.SUCCESS,), (S.UNSUPPORTED,), lambda e, _r: e.before.at_runtime),
    Difference("D21", 8, (S.SUCCESS,), (S.ACCESS_DENIED,), lambda e, _r: e.before.armed),
    Difference("R44, R88", 3, (S.SUCCESS,), (S.WRITE_PROTECTED,), lambda _e, r: r.key in READ_ONLY),
    Difference(
        "R118",
        1,
        (S.NOT_FOUND,),
        (S.SUCCESS, S.BUFFER_TOO_SMALL),
        lambda _e, r: r.key in (LANG, PLATFORM_LANG),
    ),
)
