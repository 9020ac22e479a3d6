"""JSON as evidence may use it (`attestation` 4): limits first, no duplicate member, no number tricks.

Depth 16, 4096 members, no duplicate member names, no NaN or Infinity, integers within 64 bits, valid UTF-8.
"""

import json
import re
from collections.abc import Set
from operator import countOf
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 16
MAX_MEMBERS: Final = 4096
MAX_BYTES: Final = 512 * 1024
_BRACKETS: Final = re.compile(r"[][{}]")
_LOW: Final = -(1 << 63)
_HIGH: Final = 1 << 64


class JsonError(ValueError):
    """Not JSON, or beyond the limits."""


def loads(text: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:  # noqa: ANN401 - any JSON value
    """Parse ``text`` within the limits.

    Raises:
        JsonError: with a short reason, for anything else.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > max_bytes:
        raise JsonError(f"{len(raw)} bytes of JSON, at most {max_bytes}")
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise JsonError("JSON is not valid UTF-8") from None
    _check_depth(decoded)
    members = 0

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal members
        members += len(found)
        out = dict(found)
        if len(out) != len(found):
            raise JsonError("a member name occurs twice")
        if members > MAX_MEMBERS:
            raise JsonError(f"more than {MAX_MEMBERS} members")
        return out

    try:
        value = json.loads(decoded, object_pairs_hook=pairs, parse_int=_integer, parse_constant=_constant)
    except JsonError:
        raise
    except (ValueError, RecursionError) as wrong:
        raise JsonError(f"not JSON: {type(wrong).__name__}") from None
    if "\\u" in decoded:
        _check_surrogates(value)
    return value


def _check_depth(text: str) -> None:
    """Bound the nesting before anything recurses; brackets inside strings do not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    plain = text.replace("\\\\", "").replace('\\"', "")  # what is left of escapes cannot end a string
    outside = "".join(plain.split('"')[::2])
    depth = 0
    for bracket in _BRACKETS.findall(outside):
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError(f"nested deeper than {MAX_DEPTH}")
        else:
            depth -= 1


def _integer(digits: str) -> int:
    if len(digits) > 20 or not _LOW <= (value := int(digits)) < _HIGH:
        raise JsonError("integer beyond 64 bits")
    return value


def _constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not JSON")


def _check_surrogates(value: Any) -> None:  # noqa: ANN401
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            stack += one.keys()
            stack += one.values()
        elif isinstance(one, list):
            stack += one
        elif isinstance(one, str):
            try:
                one.encode("utf-8")
            except UnicodeEncodeError:
                raise JsonError("a lone surrogate is not a character") from None


def members(value: object, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
    """``value`` as an object with exactly these members.

    Raises:
        JsonError: not an object, a member is missing or unknown.
    """
    if not isinstance(value, dict):
        raise JsonError("an object belongs here")
    if value.keys() == required:
        return value
    if missing := required - value.keys():
        raise JsonError(f"missing: {', '.join(sorted(missing))[:200]}")
    if unknown := value.keys() - required - optional:
        raise JsonError(f"unknown: {', '.join(sorted(unknown))[:200]!r}")
    return value


def integer(value: Any, low: int, high: int, what: str) -> int:  # noqa: ANN401
    """``value`` as an integer within ``low..high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise JsonError(f"{what} is not an integer within {low}..{high}")
    return value


def text(value: Any, what: str) -> str:  # noqa: ANN401
    """``value`` as a string."""
    if not isinstance(value, str):
        raise JsonError(f"{what} is not a string")
    return value


def hexadecimal(value: Any, size: int, what: str) -> bytes:  # noqa: ANN401
    """``value`` as ``size`` bytes in hex, any case."""
    try:
        out = bytes.fromhex(value) if isinstance(value, str) and len(value) == 2 * size else None
    except ValueError:
        out = None
    if out is None:
        raise JsonError(f"{what} is not {size} bytes in hex")
    return out


def array(value: Any, what: str) -> list[Any]:  # noqa: ANN401
    """``value`` as an array."""
    if not isinstance(value, list):
        raise JsonError(f"{what} is not an array")
    return value


def octets(value: Any, size: int, what: str) -> bytes:  # noqa: ANN401
    """``value`` as an array of exactly ``size`` integers 0..255."""
    if len(array(value, what)) == size and countOf(map(type, value), int) == size:  # no bool, and fast
        try:
            return bytes(value)
        except (ValueError, OverflowError):
            pass
    raise JsonError(f"{what} is not {size} octets")
