"""The key file of offline tools: store id, VM id and keys.

JSON or TOML with these members (byte strings in hex)::

    store_id    = "00112233445566778899aabbccddeeff"   # 16 bytes
    vm_id       = "web-1"
    key_version = 1                                     # the version that new data is sealed under; default 1
    kek         = "…64 hex digits…"                     # 32 bytes: the key of that version
    [keks]                                              # optional: more versions, for an image under an old one
    1 = "…"

or exactly 32 raw bytes: the key alone. Store id and key version are then taken from the image and the VM
binding is not compared, so a raw key says nothing about *whose* store an image is.
"""

import json
import tomllib
from dataclasses import dataclass, field
from typing import Any, Final

from cvars.errors import BadInput
from cvars.store.keys import StoreKeys

KEY_BYTES: Final = 32
MEMBERS: Final = frozenset({"store_id", "vm_id", "key_version", "kek", "keks"})
HELP: Final = (
    "Key file: JSON or TOML with store_id (16 bytes hex), vm_id, key_version, kek (32 bytes hex; more in "
    "[keks] by version), or 32 raw bytes: the key alone."
)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file says. ``store_id`` and ``vm_id`` are None in a raw one."""

    keks: dict[int, bytes] = field(repr=False)
    key_version: int = 1
    store_id: bytes | None = None
    vm_id: str | None = None

    @property
    def raw(self) -> bool:
        """Whether it was 32 bytes and nothing else."""
        return self.store_id is None

    def keys(self, *, store_id: bytes, key_version: int) -> StoreKeys:
        """Keys to open or create an image. The arguments are used where the file is a raw one."""
        if self.store_id is None:
            return StoreKeys(store_id, self.vm_id or "", {key_version: self.keks[1]}, key_version)
        return StoreKeys(self.store_id, self.vm_id or "", self.keks, self.key_version)


def parse(data: bytes, where: str) -> KeyFile:
    """Read a key file's bytes. Raises BadInput; the message never holds a key byte."""
    if len(data) == KEY_BYTES:
        return KeyFile({1: data})
    try:
        text = data.decode()
        parsed: Any = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        return _from_members(parsed)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput("not a key file", where=f"{where}, {len(data)} bytes", hint=HELP) from None


def _from_members(members: dict[str, Any]) -> KeyFile:
    if set(members) - MEMBERS:
        raise ValueError("unknown members")
    version = int(members.get("key_version", 1))
    keks = {int(v): bytes.fromhex(k) for v, k in members.get("keks", {}).items()}
    if "kek" in members:
        keks[version] = bytes.fromhex(members["kek"])
    made = KeyFile(keks, version, bytes.fromhex(members["store_id"]), str(members["vm_id"]))
    made.keys(store_id=b"", key_version=0)  # raises ValueError for wrong sizes
    return made


def dump(keys: StoreKeys) -> str:
    """The JSON form of ``keys``: whoever writes it must protect it like the key itself."""
    return json.dumps(
        {
            "store_id": keys.store_id.hex(),
            "vm_id": keys.vm_id,
            "key_version": keys.write_version,
            "keks": {str(v): k.hex() for v, k in sorted(keys.keks.items())},
        },
        indent=1,
    )
