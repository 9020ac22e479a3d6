"""Text encodings of the wire, each strict: one byte string has one spelling, everything else is refused.

Sources: RFC 4648 (base64 and base64url), RFC 8785 (canonical JSON), attestation.md 4 (JSON limits).
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import rfc8785

MAX_DEPTH: Final = 16
MAX_MEMBERS: Final = 4096
MAX_INTEGER: Final = (1 << 64) - 1

_SCALARS: Final = frozenset({int, float, str, bool, type(None)})
_B64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")


class Malformed(ValueError):
    """Text that is not what it says. The message never quotes it."""


def b64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_decode(text: str, *, size: int | None = None) -> bytes:
    """Decode unpadded base64url in its one canonical spelling; ``size`` in bytes when fixed."""
    if not isinstance(text, str) or not _B64URL.fullmatch(text):
        raise Malformed("not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise Malformed("not base64url") from None
    if b64url(data) != text:
        raise Malformed("base64url with stray bits")
    if size is not None and len(data) != size:
        raise Malformed(f"{len(data)} bytes, wanted {size}")
    return data


def b64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode()


def b64_decode(text: str) -> bytes:
    """Decode standard base64 with padding, in its one canonical spelling."""
    if not isinstance(text, str):
        raise Malformed("not base64")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("not base64") from None
    if b64(data) != text:
        raise Malformed("base64 with stray bits")
    return data


def unhex(text: object, *, size: int | None = None) -> bytes:
    """Decode lower-case hex; ``size`` in bytes when fixed."""
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise Malformed("not lower-case hex")
    if size is not None and len(text) != 2 * size:
        raise Malformed(f"{len(text) // 2} bytes of hex, wanted {size}")
    return bytes.fromhex(text)


def canonical(value: Mapping[str, Any] | str | int) -> bytes:
    """Canonical JSON (RFC 8785)."""
    return rfc8785.dumps(value)


def compact(value: Any) -> bytes:  # noqa: ANN401 - anything JSON can say
    """One spelling of ``value`` in JSON, for what only we read and sign: sorted, no spaces. Fast."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def strict_json(raw: bytes, *, max_depth: int = MAX_DEPTH, max_members: int = MAX_MEMBERS) -> Any:  # noqa: ANN401
    """Parse JSON from somebody who may be hostile (K36).

    Raises:
        Malformed: not UTF-8, nested too deep, too many members, a member twice, an integer beyond
            64 bits, NaN or Infinity, or a lone surrogate.
    """
    members = 0

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal members
        members += len(found)
        if members > max_members:
            raise Malformed(f"more than {max_members} members")
        out = dict(found)
        if len(out) != len(found):
            raise Malformed("a member appears twice")
        return out

    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=_no_constant,
            parse_float=_number,
        )
    except Malformed:
        raise
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    _check(value, max_depth)
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise Malformed("a lone surrogate") from None
    return value


def _check(value: Any, max_depth: int) -> None:  # noqa: ANN401 - any JSON value
    """Depth and integers of a parsed document. The parser itself stops at its recursion limit."""
    level = [[value]]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for items in level:
            try:
                bytes(items)  # octets, the bulk of evidence: nothing to look for
                continue
            except (TypeError, ValueError, OverflowError):
                kinds = set(map(type, items))
            if int in kinds:
                numbers = items if len(kinds) == 1 else [n for n in items if type(n) is int]
                if max(numbers) > MAX_INTEGER or min(numbers) < -MAX_INTEGER:
                    raise Malformed("an integer beyond 64 bits")
            if not _SCALARS.issuperset(kinds):
                below += [list(one.values()) if isinstance(one, dict) else one
                          for one in items if isinstance(one, dict | list)]  # fmt: skip
        if not below:
            return
        level = below
    raise Malformed(f"nested deeper than {max_depth}")


def _no_constant(_name: str) -> float:
    raise Malformed("NaN and Infinity are not JSON")


def _number(text: str) -> float:
    if len(text) > 40 or abs(float(text)) > 1e300:
        raise Malformed("a number out of range")
    return float(text)
