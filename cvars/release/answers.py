"""Reading a broker's answers, which may be the host's: typed, bounded, and refused with one of our errors."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from cvars.errors import AnchorError, AnchorFenced, AnchorFrozen, AnchorLeased, AnchorRetired, AnchorUnreachable
from cvars.release.encoding import Malformed, b64url_decode, strict_json, unhex
from cvars.release.transport import Response
from cvars.store.anchor import Acquired, AnchorPoint

COOKIE: Final = "kbs-session-id"
_T = TypeVar("_T")


def read_object(answer: Response) -> dict[str, Any]:
    """The JSON object in the body."""
    try:
        document = strict_json(answer.body)
    except Malformed as error:
        raise AnchorUnreachable(f"the answer is not the broker's: {error}") from None
    if not isinstance(document, dict):
        raise AnchorUnreachable("the answer is not the broker's: not an object")
    return document


def typed(document: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """Member ``name``, of that kind."""
    value = document.get(name)
    if not isinstance(value, kind):
        raise AnchorUnreachable(f"the answer is not the broker's: no {name}")
    return value


def text_of(document: Mapping[str, Any], name: str) -> str:
    """Member ``name``, text."""
    return typed(document, name, str)


def list_of(document: Mapping[str, Any], name: str) -> list[Any]:
    """Member ``name``, a list."""
    return typed(document, name, list)


def object_of(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Member ``name``, an object."""
    return typed(document, name, dict)


def cookie_of(answer: Response) -> str:
    """The session cookie that was set."""
    name, _, value = answer.headers.get("set-cookie", "").partition(";")[0].partition("=")
    if name.strip() != COOKIE or not value:
        raise AnchorUnreachable("the answer is not the broker's: no session cookie")
    return value.strip()


def rule_of(answer: Response) -> str:
    """The rule id in an error body, bounded; the host may have written it."""
    try:
        document = strict_json(answer.body)
    except Malformed:
        return f"HTTP {answer.status}"
    if not isinstance(document, dict):
        return f"HTTP {answer.status}"
    text = str(document.get("rule") or document.get("detail") or document.get("reason") or "")[:120]
    return "".join(c for c in text if c.isprintable()) or f"HTTP {answer.status}"


def unavailable(answer: Response) -> AnchorUnreachable | None:
    """The error for an answer that says try again, or None."""
    if answer.status in (429, 500, 502, 503, 504):
        return AnchorUnreachable(f"the broker is not available: HTTP {answer.status}")
    return None


def anchor_error(answer: Response) -> AnchorError:
    """The error that a refused anchor call stands for."""
    rule = rule_of(answer)
    kinds: dict[int, tuple[type[AnchorError], str]] = {
        409: (AnchorLeased, "another live instance holds the lease"),
        410: (AnchorRetired, "the VM was retired"),
        412: (AnchorFenced, "this session was fenced, or the point is not the predecessor the broker knows"),
        423: (AnchorFrozen, "an operator froze this VM"),
    }
    kind, text = kinds.get(answer.status, (AnchorError, "the anchor refused"))
    return unavailable(answer) or kind(f"{text}: {rule}", where=f"HTTP {answer.status}")


def plain_point(point: AnchorPoint) -> dict[str, Any]:
    """A point as JSON."""
    return {"counter": point.counter, "root": point.root.hex()}


def point_of(value: Mapping[str, Any]) -> AnchorPoint:
    """A point out of claims. Raises ``Malformed`` or ``KeyError``."""
    return AnchorPoint(count_of(value["counter"]), unhex(value["root"], size=32))


def count_of(value: object) -> int:
    """A non-negative integer. Raises ``Malformed``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("not a count")
    return value


def acquired_of(claims: Mapping[str, Any], escrow: bytes, digest: bytes) -> Acquired:
    """What a verified acquire statement says. Raises ``Malformed``, ``KeyError`` or ``TypeError``."""
    old = claims["key_old"]
    return Acquired(
        vm_id=claims["vm_id"],
        store_id=unhex(claims["store_id"], size=16),
        state=str(claims["state"]),
        epoch=count_of(claims["epoch"]),
        point=point_of(claims),
        base=point_of(claims["base"]),
        escrow=escrow,
        key_version=count_of(claims["key_version"]),
        key_old=None if old is None else count_of(old),
        version=count_of(claims["version"]),
        mode=str(claims["mode"]),
        lease_s=max(0.0, float(claims["lease_expires"]) - float(claims["iat"])),
        statement_sha256=digest,
        floor_format=count_of(claims["floor"]["format"]),
        floor_suites=tuple(count_of(s) for s in claims["floor"]["suites"]),
    )


def kid_of(statement: str) -> str:
    """The key id in a statement's header."""
    return str(strict_json(b64url_decode(statement.partition(".")[0]))["kid"])


def domain_of(token: str) -> str:
    """The trust domain that the token names: for the trace only, nothing decides on it."""
    try:
        return str(strict_json(b64url_decode(token.split(".")[1]))["cvars"]["trust_domain"])[:16]
    except (Malformed, KeyError, IndexError, TypeError):
        return "unknown"
