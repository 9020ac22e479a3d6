"""What a request is about, and what evidence says: words that service and routes share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvars.broker.sessions import Attested, Session
from cvars.broker.verifier import Result
from cvars.release.encoding import compact


@dataclass(slots=True)
class Call:
    """What the audit log says about one request; filled in as it becomes known."""

    request_id: str
    action: str
    source: str = ""
    session: Session | None = None
    vm_id: str | None = None
    resource: str | None = None
    policy: str | None = None
    evidence: str | None = None
    trust_domain: str | None = None
    epoch: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def is_json(data: Mapping[str, Any]) -> bool:
    """Whether init-data can be copied into a token (TOML dates cannot)."""
    try:
        json.dumps(data)
    except (TypeError, ValueError):
        return False
    return True


def claim(tee: str, result: Result, name: str) -> str | None:
    """One claim of the evidence (attestation 5), or None."""
    value = result.claims.get(tee, {}).get(name)
    return None if value is None else str(value)


def measured_init_data(tee: str, result: Result) -> bytes:
    """HOST_DATA or MRCONFIGID out of the claims."""
    return bytes.fromhex(claim(tee, result, "host_data" if tee == "snp" else "mr_config_id") or "")


def vm_id_of(tee: str, result: Result) -> str | None:
    """The VM named by the ID block, ``<family id>.<image id>`` in hex, when there is a signed ID block."""
    family, image = claim(tee, result, "family_id") or "", claim(tee, result, "image_id") or ""
    signed = (claim(tee, result, "id_key_digest") or "").strip("0")
    return f"{family}.{image}" if signed and (family + image).strip("0") else None


def identity_of(attested: Attested) -> str:
    """The measured identity that `enrol: first-use` records."""
    names = ("measurement", "id_key_digest") if attested.tee == "snp" else ("mr_td", "rtmr1")
    found = {n: claim(attested.tee, attested.result, n) or "" for n in names}
    return compact({"tee": attested.tee} | found).decode()
