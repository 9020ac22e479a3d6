"""Measured init-data: names the VM and pins the broker's key (key-release 1.2, 5.6).

TOML with ``version``, ``algorithm`` and ``[data]``. The digest of the exact bytes is SNP HOST_DATA (32 bytes,
truncated or zero-padded) or TDX MRCONFIGID (48 bytes).
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cvars.release.encoding import Malformed

VM_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
MODES: Final = ("none", "per-boot", "bounded", "critical", "strict")  # weakest first; index = mode number
ALGORITHMS: Final = ("sha256", "sha384", "sha512")
MAX_SIZE: Final = 64 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class InitData:
    """Parsed init-data; ``body`` is the exact text that is measured."""

    body: str
    algorithm: str
    data: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """Digest of the exact body bytes by the named algorithm."""
        return hashlib.new(self.algorithm, self.body.encode()).digest()

    @property
    def host_data(self) -> bytes:
        """The 32 bytes of SNP HOST_DATA."""
        return self.digest[:32].ljust(32, b"\0")

    @property
    def mr_config_id(self) -> bytes:
        """The 48 bytes of TDX MRCONFIGID."""
        return self.digest[:48].ljust(48, b"\0")

    @property
    def vm_id(self) -> str | None:
        """``cvars.vm-id``."""
        return self.data.get("cvars.vm-id")

    @property
    def broker_keys(self) -> tuple[str, ...]:
        """``cvars.broker-key``: hex SHA-256 of the broker's SPKI, several for rotation."""
        return tuple(k.strip() for k in str(self.data.get("cvars.broker-key", "")).split(",") if k.strip())

    @property
    def freshness(self) -> str:
        """``cvars.freshness``: the weakest mode this guest accepts."""
        return str(self.data.get("cvars.freshness", "none"))


def parse(body: str) -> InitData:
    """Parse init-data that nobody has checked. Raises ``Malformed``."""
    if len(body.encode("utf-8", "surrogatepass")) > MAX_SIZE:
        raise Malformed(f"init-data is larger than {MAX_SIZE} bytes")
    try:
        body.encode()
        document = tomllib.loads(body)
    except (tomllib.TOMLDecodeError, UnicodeEncodeError, RecursionError):
        raise Malformed("init-data is not TOML") from None
    if set(document) - {"version", "algorithm", "data"} or not isinstance(document.get("version"), str):
        raise Malformed("init-data has exactly version, algorithm and [data]")
    if document.get("algorithm") not in ALGORITHMS or not isinstance(document.get("data"), dict):
        raise Malformed("init-data: algorithm is sha256, sha384 or sha512; [data] is a table")
    found = InitData(body, document["algorithm"], _flat(document["data"]))
    _check(found)
    return found


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """``[data.cvars]`` and ``"cvars.vm-id" = …`` are the same names."""
    out = dict(table)
    nested = out.pop("cvars", None)
    if isinstance(nested, dict):
        for name, value in nested.items():
            if f"cvars.{name}" in out:
                raise Malformed(f"init-data names cvars.{name} twice")
            out[f"cvars.{name}"] = value
    return out


def _check(found: InitData) -> None:
    for name in ("cvars.vm-id", "cvars.broker-key", "cvars.freshness"):
        if name in found.data and not isinstance(found.data[name], str):
            raise Malformed(f"init-data: {name} is text")
    if found.vm_id is not None and not VM_ID.fullmatch(found.vm_id):
        raise Malformed("init-data: cvars.vm-id is 1..128 of [A-Za-z0-9._-]")
    if not all(re.fullmatch(r"[0-9a-f]{64}", key) for key in found.broker_keys):
        raise Malformed("init-data: cvars.broker-key is hex SHA-256, several comma separated")
    if found.freshness not in MODES:
        raise Malformed(f"init-data: cvars.freshness is one of {', '.join(MODES)}")


def compose(
    vm_id: str, broker_keys: Sequence[str], *, freshness: str | None = None, algorithm: str = "sha384"
) -> str:
    """Init-data for ``vm_id`` that pins ``broker_keys``."""
    lines = ['version = "0.1.0"', f'algorithm = "{algorithm}"', "", "[data]", f'"cvars.vm-id" = "{vm_id}"']
    lines.append(f'"cvars.broker-key" = "{",".join(broker_keys)}"')
    if freshness is not None:
        lines.append(f'"cvars.freshness" = "{freshness}"')
    body = "\n".join(lines) + "\n"
    parse(body)
    return body
