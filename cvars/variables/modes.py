"""Secure Boot modes: derived at start, moved by changes of PK (R82..R91)."""

from typing import Final

from cvars.variables import siglist
from cvars.variables.model import Key, Variable
from cvars.variables.names import (
    AUDIT_MODE,
    BS,
    CUSTOM,
    DB,
    DBT,
    DBX,
    DEPLOYED_MODE,
    ENABLE,
    KEK,
    KEY_STORES,
    NV,
    PK,
    RT,
    SECURE_BOOT,
    SETUP_MODE,
    SIGNATURE_SUPPORT,
    VENDOR_KEYS,
    VENDOR_KEYS_STORED,
)
from cvars.variables.profile import Profile
from cvars.variables.refusals import InvalidParameter, WriteProtected
from cvars.variables.requests import SetVariable
from cvars.variables.state import Draft, State, Step

ON: Final = b"\x01"
OFF: Final = b"\x00"
SHOWN: Final = BS | RT
STORED: Final = NV | BS
MEASURED: Final = frozenset({SECURE_BOOT, PK, KEK, DB, DBX, DBT})

#: what an image check is expected to understand: SHA-256, SHA-384, SHA-512, RSA-2048, X.509 (R82)
SUPPORTED_TYPES: Final = b"".join(
    kind.bytes_le for kind in (siglist.SHA256, siglist.SHA384, siglist.SHA512, siglist.RSA2048, siglist.X509)
)


def derive(draft: Draft, profile: Profile) -> None:
    """Set the modes as they are at the start of a boot (R20, R82)."""
    has_pk = draft.find(PK) is not None
    enable = draft.find(ENABLE)
    if has_pk and enable is None:
        enable = Variable(STORED, ON)
        draft.put(ENABLE, enable, stored=False)
    secure = has_pk and enable is not None and enable.data == ON
    _show(draft, SETUP_MODE, OFF if has_pk else ON)
    draft.put(SIGNATURE_SUPPORT, Variable(SHOWN, SUPPORTED_TYPES))
    _show(draft, SECURE_BOOT, ON if secure else OFF)
    if draft.find(CUSTOM) != Variable(STORED, OFF):
        draft.put(CUSTOM, Variable(STORED, OFF), stored=False)
    vendor = draft.find(VENDOR_KEYS_STORED)
    _show(draft, VENDOR_KEYS, ON if vendor is None or vendor.data == ON else OFF)
    if profile.audit_mode:
        _show(draft, AUDIT_MODE, OFF)
        _show(draft, DEPLOYED_MODE, OFF)


def _show(draft: Draft, key: Key, value: bytes) -> None:
    draft.put(key, Variable(SHOWN, value))


def after_write(draft: Draft, request: SetVariable, *, unsigned: bool, was: Variable | None) -> None:
    """Let the modes follow a change of ``request.key``, which the draft holds already (R83..R89, R91)."""
    key, state = request.key, draft.state
    if key not in KEY_STORES:
        return
    now = draft.find(key)
    if unsigned and (state.in_custom_mode and (key == PK or not state.in_setup_mode)):
        _vendor_keys_changed(draft)
    _measure(draft, key, None if now is None else now.data)
    if key != PK:
        return
    if was is None and now is not None:
        _enrolled(draft)
    elif was is not None and now is None:
        _removed(draft)


def _enrolled(draft: Draft) -> None:
    """PK came: user mode; deployed mode if it was audit mode (R83, R90)."""
    _show(draft, SETUP_MODE, OFF)
    audit = draft.find(AUDIT_MODE)
    if audit is not None and audit.data == ON:
        _show(draft, AUDIT_MODE, OFF)
        _show(draft, DEPLOYED_MODE, ON)
    if draft.state.at_runtime:
        return
    if draft.find(ENABLE) != Variable(STORED, ON):
        draft.put(ENABLE, Variable(STORED, ON))
    _set_secure_boot(draft, ON)


def _removed(draft: Draft) -> None:
    """PK went: setup mode, whatever mode it was (R84, R90)."""
    _show(draft, SETUP_MODE, ON)
    if draft.find(DEPLOYED_MODE) is not None:
        _show(draft, DEPLOYED_MODE, OFF)
    if draft.state.at_runtime:
        return
    draft.delete(ENABLE)
    _set_secure_boot(draft, OFF)


def _set_secure_boot(draft: Draft, value: bytes) -> None:
    old = draft.find(SECURE_BOOT)
    if old is None or old.data != value:
        _show(draft, SECURE_BOOT, value)
        _measure(draft, SECURE_BOOT, value)


def _vendor_keys_changed(draft: Draft) -> None:
    """The keys are no longer the vendor's (R89)."""
    vendor = draft.find(VENDOR_KEYS_STORED)
    if vendor is None or vendor.data != OFF:
        draft.put(VENDOR_KEYS_STORED, Variable(STORED, OFF))
        _show(draft, VENDOR_KEYS, OFF)


def _measure(draft: Draft, key: Key, data: bytes | None) -> None:
    if key in MEASURED and not draft.state.at_runtime and not (key == DBT and data is None):
        draft.measure(key, data)  # R91


def is_mode(state: State, key: Key) -> bool:
    """AuditMode and DeployedMode, where they are offered (R90)."""
    return state.profile.audit_mode and key in (AUDIT_MODE, DEPLOYED_MODE)


def set_mode(state: State, request: SetVariable) -> Step:
    """Serve a write to AuditMode or DeployedMode completely (R90)."""
    if request.attributes != SHOWN or len(request.data) != 1:
        raise WriteProtected("a mode is written as one byte, BS RT")  # R90
    if request.data not in (ON, OFF):
        raise InvalidParameter("a mode is 0 or 1")  # R90
    deployed = state.table[DEPLOYED_MODE].data == ON
    audit = state.table[AUDIT_MODE].data == ON
    if request.data == OFF or state.at_runtime or deployed:
        raise WriteProtected("the mode is read-only now")  # R90
    draft = Draft(state)
    if request.key == DEPLOYED_MODE:
        if state.in_setup_mode or audit:
            raise WriteProtected("DeployedMode is set in user mode")  # R90
        _show(draft, DEPLOYED_MODE, ON)
        return draft.finish()
    if audit:
        raise WriteProtected("already in audit mode")  # R90
    if draft.find(PK) is not None:
        draft.delete(PK)
        _measure(draft, PK, None)
        _removed(draft)
    _show(draft, AUDIT_MODE, ON)
    return draft.finish()
