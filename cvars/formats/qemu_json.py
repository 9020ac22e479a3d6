"""The JSON store that QEMU's `uefi-vars` device writes and `virt-fw-vars` reads and writes, version 2.

Source: mm-protocol section 7. ``time`` is the EFI_TIME of an authenticated variable, ``digest`` the pin of a
private one (kind *last*, `cvars.variables.pins`); what a reader or writer cannot keep is reported (R124).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from cvars.errors import BadInput
from cvars.variables.model import NO_TIME, Key, Variable
from cvars.variables.names import AT, BS, NV, VENDOR_KEYS_STORED
from cvars.variables.security import GLOBAL, PRIVATE

_KNOWN: Final = frozenset({"name", "guid", "attr", "data", "time", "digest"})
#: where this format keeps the vendor-keys flag
_VENDOR_KEYS: Final = Key(GLOBAL, "VendorKeysNv")
VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class Store:
    """Variables, and what could not be kept, one sentence each."""

    variables: dict[Key, Variable]
    losses: tuple[str, ...] = ()


def read(text: str | bytes, *, where: str = "") -> Store:
    """Read a store.

    Raises:
        BadInput: not JSON, not this format, or a variable that is malformed or listed twice.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", where=where) from None
    return from_document(document, where=where)


def from_document(document: Any, *, where: str = "") -> Store:  # noqa: ANN401 - parsed JSON
    """Read a store that is parsed JSON already. Raises BadInput."""
    if not isinstance(document, dict) or not isinstance(document.get("variables"), list):
        raise BadInput('not a variable store: wanted {"version": 2, "variables": […]}', where=where)
    version = document.get("version", VERSION)
    if version != VERSION:
        raise BadInput(f"store version {version!r}, wanted {VERSION}", where=where)
    variables: dict[Key, Variable] = {}
    losses: list[str] = []
    for number, item in enumerate(document["variables"], 1):
        key, variable = _variable(item, f"{where}: variable {number}" if where else f"variable {number}")
        if key in variables:
            raise BadInput(f"{key.name!a} {key.vendor_guid} is listed twice", where=where)
        if not variable.attributes & NV:
            losses.append(f"{key.name!a} is volatile: left out")
            continue
        variables[key] = variable
    return Store(variables, tuple(losses))


def _variable(item: Any, where: str) -> tuple[Key, Variable]:  # noqa: ANN401 - parsed JSON
    if not isinstance(item, dict):
        raise BadInput("a variable is an object", where=where)
    unknown = set(item) - _KNOWN
    if unknown:
        raise BadInput(f"unknown member {min(unknown)!a}", where=where)
    name, attributes = item.get("name"), item.get("attr")
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadInput("a variable needs a name", where=where)
    if not isinstance(attributes, int) or isinstance(attributes, bool) or not 0 <= attributes <= 0xFF:
        raise BadInput(f"attr {attributes!r} is not an attribute mask", where=where)
    try:
        vendor = UUID(item.get("guid"))
    except (ValueError, TypeError, AttributeError):
        raise BadInput("guid is not a GUID", where=where) from None
    # what JSON holds as two escapes is one character: the same 16-bit units
    name = name.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    data = _hex(item.get("data"), None, "data", where)
    time = _hex(item["time"], 16, "time", where) if "time" in item else NO_TIME
    signer = _hex(item["digest"], 32, "digest", where) if "digest" in item else None
    key = Key(vendor, name)
    if key == _VENDOR_KEYS:
        return VENDOR_KEYS_STORED, Variable(NV | BS, data)
    return key, Variable(attributes, data, time, signer)


def _hex(value: Any, size: int | None, what: str, where: str) -> bytes:  # noqa: ANN401 - parsed JSON
    try:
        raw = bytes.fromhex(value)
    except (ValueError, TypeError):
        raise BadInput(f"{what} is not hex", where=where) from None
    if size is not None and len(raw) != size:
        raise BadInput(f"{what} of {len(raw)} bytes, wanted {size}", where=where)
    return raw


def write(variables: Mapping[Key, Variable]) -> tuple[str, tuple[str, ...]]:
    """The store as text, ASCII only, and what could not be kept (R124)."""
    items = []
    losses = []
    for key, variable in variables.items():
        if not variable.attributes & NV:
            losses.append(f"{key.name!a} is volatile: left out")
            continue
        if key.vendor_guid == PRIVATE:
            losses.append("a private item of the service: left out")
            continue
        attributes = variable.attributes
        if key == VENDOR_KEYS_STORED:
            key, attributes = _VENDOR_KEYS, NV | BS | AT  # noqa: PLW2901
        item: dict[str, Any] = {"name": key.name, "guid": str(key.vendor_guid), "attr": attributes}
        item["data"] = variable.data.hex()
        if attributes & AT:
            item["time"] = variable.timestamp.hex()
        if variable.signer is not None:
            item["digest"] = variable.signer.hex()
        items.append(item)
    return json.dumps({"version": VERSION, "variables": items}, indent=4) + "\n", tuple(losses)
