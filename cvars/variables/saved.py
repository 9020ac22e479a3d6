"""The whole service state as bytes, for snapshots and migration (R21).

What is saved holds the MOR key and every value: it is for the trusted component only, which seals it. The text is
JSON with sorted members; names and data are hex.
"""

import json
from dataclasses import fields
from enum import Enum
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from cvars.errors import BadInput
from cvars.variables.limits import Limits
from cvars.variables.model import Key, Variable
from cvars.variables.policy import PolicyTable, parse_entry
from cvars.variables.profile import Profile
from cvars.variables.refusals import InvalidParameter
from cvars.variables.requests import Property
from cvars.variables.state import MorLock, MorState, Phase, State
from cvars.variables.table import Table

VERSION: Final = 1


def save(state: State) -> bytes:
    """Everything that decides a future answer."""
    document = {
        "version": VERSION,
        "profile": {f.name: _plain(getattr(state.profile, f.name)) for f in fields(state.profile)},
        "limits": {f.name: getattr(state.limits, f.name) for f in fields(state.limits)},
        "phase": state.phase.value,
        "in_doubt": state.in_doubt,
        "variables": [
            [*_key(key), v.attributes, v.data.hex(), v.timestamp.hex(), v.signer.hex() if v.signer else None]
            for key, v in state.table.items()
        ],
        "unstored": sorted(_key(key) for key in state.unstored),
        "mor": [state.mor.lock.value, state.mor.key.hex(), state.mor.absent],
        "policies": [entry.raw.hex() for entry in state.policies.entries],
        "policy_locked": state.policies.locked,
        "policy_enabled": state.policies.enabled,
        "policy_dump": None if state.policies.dump is None else state.policies.dump.hex(),
        "properties": [
            [*_key(key), p.revision, p.flags, p.attributes, p.min_size, p.max_size]
            for key, p in state.properties.items()
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def restore(raw: bytes, *, phase: Phase | None = None) -> State:
    """The state that `save` wrote. ``phase``: the phase to restore into, the saved one by default.

    Raises:
        BadInput: malformed, or into a weaker phase than saved (R21).
    """
    try:
        document = json.loads(raw)
        saved = Phase(document["phase"])
        if phase is not None and phase < saved:
            raise BadInput(f"saved in phase {saved.name}: not restored into {phase.name}")  # R21
        if document["version"] != VERSION:
            raise BadInput(f"saved state of version {document['version']!r}")
        profile = _profile(document["profile"])
        lock, key, absent = document["mor"]
        mor = MorState(MorLock(lock), bytes.fromhex(key), bool(absent))
        dump = document["policy_dump"]
        return State(
            table=Table((_key_of(*row[:2]), _variable(*row[2:])) for row in document["variables"]),
            profile=profile,
            limits=Limits(**document["limits"]),
            phase=saved if phase is None else phase,
            unstored=frozenset(_key_of(*row) for row in document["unstored"]),
            mor=mor,
            policies=PolicyTable(
                tuple(
                    parse_entry(bytes.fromhex(entry), locked=False, profile=profile)
                    for entry in document["policies"]
                ),
                bool(document["policy_locked"]),
                bool(document["policy_enabled"]),
                None if dump is None else bytes.fromhex(dump),
            ),
            properties=MappingProxyType({_key_of(*row[:2]): Property(*row[2:]) for row in document["properties"]}),
            in_doubt=bool(document["in_doubt"]),
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
        InvalidParameter,
    ) as error:
        raise BadInput(f"not a saved state: {type(error).__name__}") from None


def _plain(value: Any) -> Any:  # noqa: ANN401 - the value of any choice point
    return value.value if isinstance(value, Enum) else value


def _profile(saved: dict[str, Any]) -> Profile:
    kinds = {f.name: type(getattr(Profile(), f.name)) for f in fields(Profile)}
    return Profile(**{name: kinds[name](value) for name, value in saved.items()})


def _key(key: Key) -> tuple[str, str]:
    return str(key.vendor_guid), key.name_bytes.hex()


def _key_of(vendor_guid: str, name: str) -> Key:
    return Key(UUID(vendor_guid), bytes.fromhex(name).decode("utf-16-le", "surrogatepass"))


def _variable(attributes: int, data: str, timestamp: str, signer: str | None) -> Variable:
    time = bytes.fromhex(timestamp)
    if not isinstance(attributes, int) or len(time) != 16:
        raise ValueError("variable")
    return Variable(attributes, bytes.fromhex(data), time, None if signer is None else bytes.fromhex(signer))
