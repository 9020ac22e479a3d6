"""Who may change an authenticated variable (R47, R52, R60, R71..R76, R87)."""

import hmac
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from cvars.variables import chain, descriptor, enhanced, pins, pkcs7, siglist
from cvars.variables.certificates import der_of, load
from cvars.variables.descriptor import Descriptor
from cvars.variables.enhanced import EnhancedHead
from cvars.variables.model import NO_TIME, Key, Variable
from cvars.variables.names import (
    APPEND,
    AT,
    CUSTOM,
    DBR,
    ENABLE,
    ENH,
    KEK,
    KEY_STORES,
    NV,
    PK,
    is_recovery,
)
from cvars.variables.profile import CustomModeRule
from cvars.variables.refusals import InvalidParameter, SecurityViolation, WriteProtected
from cvars.variables.requests import SetVariable
from cvars.variables.state import State

PRESENCE: Final = frozenset({ENABLE, CUSTOM})


@dataclass(frozen=True, slots=True)
class Authorised:
    """A write that may happen. ``payload`` is what is left of the data; ``payload`` of a key store is well-formed.

    ``unsigned``: accepted without a signature, in setup or custom mode (R71, R89).
    """

    payload: bytes
    time: bytes = NO_TIME
    signer: bytes | None = None
    unsigned: bool = False


def authorise(
    state: State, request: SetVariable, existing: Variable | None, head: Descriptor | EnhancedHead | None
) -> Authorised:
    """Decide whether this guest may make this write (R47). ``head`` is the descriptor of an authenticated write.

    Raises:
        SecurityViolation, InvalidParameter, WriteProtected: R47, R52, R60, R63..R75, R87.
    """
    key, attributes = request.key, request.attributes
    if key in PRESENCE and (state.armed or state.profile.custom_mode is CustomModeRule.NEVER):
        raise SecurityViolation("physical presence is needed")  # R87
    if key in KEY_STORES and attributes & (NV | AT) != NV | AT:
        raise InvalidParameter("a key store is NV and AT")  # R71
    if head is None:
        if existing is not None and existing.attributes & (AT | ENH):
            raise WriteProtected("an authenticated variable needs an authenticated write")  # R52
        return Authorised(request.data)
    if isinstance(head, EnhancedHead):
        kept, authority = enhanced.authorise(request, existing, head, state.profile)
        return Authorised(head.payload, kept, authority)
    if key == PK and existing is not None and attributes & APPEND:
        raise InvalidParameter("PK is never appended to")  # R60
    descriptor.check(head, state.profile)
    is_checked = state.profile.checks_time_in_setup_mode or not state.in_setup_mode or key not in KEY_STORES
    if existing is not None and not attributes & APPEND and is_checked:
        descriptor.check_newer(existing.timestamp, head.time)  # R65
    if key in KEY_STORES:
        unsigned = _judge_key_store(state, key, request, head)
        if head.payload:
            siglist.check(head.payload, is_pk=key == PK, profile=state.profile)  # R73
        return Authorised(head.payload, head.time, unsigned=unsigned)
    if is_recovery(key):
        unsigned = state.in_setup_mode
        if not unsigned:
            _signed_by_key_owner(state, request, head, with_recovery=True)  # R71
        return Authorised(head.payload, head.time, unsigned=unsigned)
    return Authorised(head.payload, head.time, signer=_private(state, request, head, existing))


def signed_bytes(request: SetVariable, head: Descriptor) -> bytes:
    """What a signature covers, attributes exactly as passed (R68)."""
    return b"".join(
        (
            request.key.name_bytes,
            request.key.vendor_guid.bytes_le,
            request.attributes.to_bytes(4, "little"),
            head.time,
            head.payload,
        )
    )


def _judge_key_store(state: State, key: Key, request: SetVariable, head: Descriptor) -> bool:
    """Hold a write of PK, KEK or an image database to R71; true when it needed no signature."""
    if state.in_custom_mode:
        return True  # R71, R72
    if key == PK:
        _judge_pk(state, request, head)
        return False
    if state.in_setup_mode:
        return True  # R71, R72
    if key == KEK:
        signer = _signer(state, request, head)
        if not _is_platform_key(state, signer):
            raise SecurityViolation("KEK is changed with the platform key")  # R71
        return False
    _signed_by_key_owner(state, request, head)
    return False


def _judge_pk(state: State, request: SetVariable, head: Descriptor) -> None:
    if not state.in_setup_mode:
        if not _is_platform_key(state, _signer(state, request, head)):
            raise SecurityViolation("PK is changed with the current PK itself")  # R71, P16
        return
    first = _first_certificate(head.payload)
    if first is None:
        raise SecurityViolation("the new PK does not begin with an X.509 certificate")  # R71
    if not state.profile.wants_self_signed_pk:
        return
    signer = _signer(state, request, head)
    if not hmac.compare_digest(der_of(signer), first):
        raise SecurityViolation("the new PK is not signed by itself")  # R71


def _first_certificate(payload: bytes) -> bytes | None:
    """The first entry of the first list, if it is a readable certificate (R71)."""
    if len(payload) < siglist.HEADER:
        return None
    header = siglist.EFI_SIGNATURE_LIST.parse(payload)
    first = payload[siglist.HEADER + siglist.OWNER : siglist.HEADER + header.SignatureSize]
    if header.SignatureType != siglist.X509.bytes_le or header.SignatureHeaderSize:
        return None
    if header.SignatureSize <= siglist.OWNER or siglist.HEADER + header.SignatureSize > len(payload):
        return None
    return first if load(first) is not None else None


def _is_platform_key(state: State, signer: x509.Certificate) -> bool:
    """Byte equality with the current PK; a certificate issued by it is not it (R71, R80, P16)."""
    current, mine = state.table.find(PK), der_of(signer)
    return current is not None and any(
        hmac.compare_digest(mine, der) for der in siglist.certificates(current.data)
    )


def _signed_by_key_owner(
    state: State, request: SetVariable, head: Descriptor, *, with_recovery: bool = False
) -> None:
    """The signer is the PK, or chains to an X.509 entry of KEK, or of dbr for recovery options (R71)."""
    message = _message(state, head)
    signer = _verified(state, message, request, head)
    if _is_platform_key(state, signer):
        return
    anchors = [
        der
        for owner in ((KEK, DBR) if with_recovery else (KEK,))
        if (held := state.table.find(owner)) is not None
        for der in siglist.certificates(held.data)
    ]
    if not chain.reaches(signer, anchors, message.certificates, rsa_floor=state.profile.rsa_floor):
        raise SecurityViolation("the signer is neither PK nor does it chain to KEK")  # R71


def _private(state: State, request: SetVariable, head: Descriptor, existing: Variable | None) -> bytes:
    """Verify a private variable's write; its pin (R74, R75)."""
    message = _message(state, head)
    signer = _verified(state, message, request, head)
    floor = state.profile.rsa_floor
    if existing is None:
        return pins.pin_of(state.profile.pin_kind, signer, message, rsa_floor=floor)  # R74
    if existing.signer is None or not pins.matches(existing.signer, signer, message, rsa_floor=floor):
        raise SecurityViolation("signed by another than the variable's owner")  # R75
    return existing.signer


def _signer(state: State, request: SetVariable, head: Descriptor) -> x509.Certificate:
    return _verified(state, _message(state, head), request, head)


def _message(state: State, head: Descriptor) -> pkcs7.Message:
    profile = state.profile
    return pkcs7.parse(
        head.signed_data,
        allows_signed_attributes=profile.allows_signed_attributes,
        one_signer=profile.one_signer,
    )


def _verified(state: State, message: pkcs7.Message, request: SetVariable, head: Descriptor) -> x509.Certificate:
    """The certificate that made the signature (R67, R68)."""
    return pkcs7.signer_of(message, signed_bytes(request, head), rsa_floor=state.profile.rsa_floor)
