"""Text encodings of the wire, each strict: one byte string has one spelling, everything else is refused.

Sources: RFC 4648 (base64 and base64url), RFC 8785 (canonical JSON), attestation.md 4 (JSON limits).
"""

import base64
import binascii
import contextlib
import re
from collections.abc import Collection
from typing import Any, Final

from pydantic_core import from_json, to_json

MAX_DEPTH: Final = 16
MAX_MEMBERS: Final = 4096
MAX_INTEGER: Final = (1 << 64) - 1
MAX_FLOAT: Final = 1e300

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


def compact(value: object) -> bytes:
    """One spelling of ``value``, of JSON's own types, for what only we read and sign: sorted, no spaces. Fast."""
    return ordered(_sorted(value))


def ordered(value: object) -> bytes:
    """`compact` of a ``value`` whose names are all in order already."""
    return to_json(value)


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(one) for one in value]
    return value


def strict_json(raw: bytes, *, max_depth: int = MAX_DEPTH, max_members: int = MAX_MEMBERS) -> Any:  # noqa: ANN401
    """Parse JSON from somebody who may be hostile (K36).

    Raises:
        Malformed: not UTF-8, nested too deep, too many members, a member twice, an integer beyond
            64 bits, a number out of range, NaN or Infinity, or a lone surrogate.
    """
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError:
        raise Malformed("not JSON") from None
    text = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    members = sum(part.count(b":") for part in text.split(b'"')[::2])  # each has one colon outside of strings
    if members > max_members:
        raise Malformed(f"more than {max_members} members")
    if _check(value, max_depth) != members:
        raise Malformed("a member appears twice")
    return value


def _check(value: Any, max_depth: int) -> int:  # noqa: ANN401 - any JSON value
    """Depth and numbers of a parsed document; how many members it has. The parser itself stops at 200 levels."""
    members = 0
    level: list[Any] = [[value]]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                members += len(one)
                items: Collection[Any] = one.values()
            else:
                items = one
                with contextlib.suppress(TypeError, ValueError, OverflowError):
                    bytes(items)  # octets, the bulk of evidence: nothing to look for
                    continue
            kinds = set(map(type, items))
            if int in kinds and not all(-MAX_INTEGER <= n <= MAX_INTEGER for n in items if type(n) is int):
                raise Malformed("an integer beyond 64 bits")
            if float in kinds and not all(abs(n) <= MAX_FLOAT for n in items if type(n) is float):
                raise Malformed("a number out of range")
            if not _SCALARS.issuperset(kinds):
                below += [n for n in items if isinstance(n, dict | list)]
        if not below:
            return members
        level = below
    raise Malformed(f"nested deeper than {max_depth}")
