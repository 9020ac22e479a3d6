"""A strict DER reader: definite, minimal lengths; nothing is copied twice; nothing recurses into itself.

It exists because AMD's leaf certificates carry serial number 0, which general X.509 loaders announce to
refuse, and because signatures are checked over the exact bytes that were received (`attestation` 2.3, TDX-COLL).
Source: X.690 section 10. Sizes are in bytes.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
ENUMERATED: Final = 0x0A
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


class Item(NamedTuple):
    """One tag, length, value: ``body`` is ``data[content:end]``, ``raw`` is ``data[start:end]``."""

    tag: int
    data: bytes
    start: int
    content: int
    end: int

    @property
    def body(self) -> bytes:
        """The value."""
        return self.data[self.content : self.end]

    @property
    def raw(self) -> bytes:
        """Tag, length and value."""
        return self.data[self.start : self.end]

    def items(self) -> "list[Item]":
        """The items inside a constructed value."""
        if not self.tag & 0x20:
            raise DerError(f"tag {self.tag:#04x} is not constructed")
        return list(_items(self.data, self.content, self.end))

    def expect(self, tag: int) -> "Item":
        """This item, which must have ``tag``."""
        if self.tag != tag:
            raise DerError(f"tag {self.tag:#04x} where {tag:#04x} belongs")
        return self


def read(data: bytes) -> Item:
    """The one item that ``data`` is, with nothing after it."""
    item = _item(data, 0, len(data))
    if item.end != len(data):
        raise DerError(f"{len(data) - item.end} bytes after the value")
    return item


def _items(data: bytes, at: int, end: int) -> Iterator[Item]:
    while at < end:
        item = _item(data, at, end)
        yield item
        at = item.end


def _item(data: bytes, at: int, end: int) -> Item:
    if end - at < 2:
        raise DerError("cut short in a tag or length")
    tag, length, content = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise DerError("tag numbers above 30 are not used here")
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or content + count > end:
            raise DerError("length is indefinite, too long or cut short")
        length = int.from_bytes(data[content : content + count], "big")
        if length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise DerError("length is not minimal")
        content += count
    if content + length > end:
        raise DerError(f"value of {length} bytes ends outside")
    return Item(tag, data, at, content, content + length)


def integer(item: Item, *, max_bytes: int = 32) -> int:
    """A minimal two's complement INTEGER of at most ``max_bytes``."""
    body = item.expect(INTEGER).body
    if not body or len(body) > max_bytes:
        raise DerError(f"INTEGER of {len(body)} bytes")
    if len(body) > 1 and ((body[0] == 0 and body[1] < 0x80) or (body[0] == 0xFF and body[1] >= 0x80)):
        raise DerError("INTEGER is not minimal")
    return int.from_bytes(body, "big", signed=True)


def oid(item: Item) -> str:
    """An object identifier in dotted form."""
    return _dotted(item.expect(OID).body)


@lru_cache(maxsize=256)
def _dotted(body: bytes) -> str:
    if not body or len(body) > 64 or body[-1] & 0x80:
        raise DerError("bad object identifier")
    parts: list[int] = []
    value, fresh = 0, True
    for byte in body:
        if fresh and byte == 0x80:
            raise DerError("object identifier is not minimal")
        value = value << 7 | byte & 0x7F
        fresh = not byte & 0x80
        if fresh:
            parts.append(value)
            value = 0
    first = min(parts[0] // 40, 2)
    return ".".join(map(str, (first, parts[0] - 40 * first, *parts[1:])))


def bit_string(item: Item) -> bytes:
    """A BIT STRING of whole bytes."""
    body = item.expect(BIT_STRING).body
    if not body or body[0]:
        raise DerError("BIT STRING is not of whole bytes")
    return body[1:]


def time(item: Item) -> datetime:
    """UTCTime or GeneralizedTime in the one form that certificates may use (RFC 5280 4.1.2.5)."""
    text = item.body
    if item.tag == UTC_TIME and len(text) == 13:
        text = (b"20" if text[:2] < b"50" else b"19") + text
    elif item.tag != GENERALIZED_TIME or len(text) != 15:
        raise DerError("not a certificate time")
    if text[-1:] != b"Z" or not text[:-1].isdigit():
        raise DerError("not a certificate time")
    numbers = [int(text[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))]
    try:
        return datetime(*numbers, tzinfo=UTC)  # type: ignore[arg-type,misc]
    except ValueError as wrong:
        raise DerError(f"no such time: {wrong}") from None


# --- writing: what the simulated hardware needs -----------------------------------------------------


def write(tag: int, *parts: bytes) -> bytes:
    """One item with the concatenated ``parts`` as its value."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + body


def write_integer(value: int) -> bytes:
    """A minimal INTEGER."""
    return write(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def write_oid(dotted: str) -> bytes:
    """An object identifier."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for part in (40 * first + second, *rest):
        groups = [part & 0x7F]
        while part := part >> 7:
            groups.append(part & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return write(OID, bytes(out))
