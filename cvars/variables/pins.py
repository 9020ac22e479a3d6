"""Who owns a private authenticated variable: the pin of its first signer (R74..R76, P40).

A pin is Hash(signer subject CN ‖ DER tbsCertificate of the top-level certificate). `Variable.signer` holds 32
bytes: the pin itself where it is a SHA-256 of kind *top* (or the digest of kind *last*, whose hashed bytes
have another form), else SHA-256 over kind, algorithm and pin. So pins of two kinds never compare equal,
except where the certificates are the same: a self-signed signer is its own top.
"""

import hashlib
import hmac

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from cvars.variables import chain
from cvars.variables.certificates import der_of
from cvars.variables.pkcs7 import Message
from cvars.variables.profile import PinKind
from cvars.variables.refusals import SecurityViolation


def encode_pin(kind: PinKind, algorithm: str, pin: bytes) -> bytes:
    """The 32 bytes that stand for a pin; ``algorithm`` is ``sha256``, ``sha384`` or ``sha512``."""
    if algorithm == "sha256" and kind in (PinKind.TOP, PinKind.LAST) and len(pin) == 32:
        return pin
    return hashlib.sha256(b"cvars pin 1\0" + f"{kind.value} {algorithm} ".encode() + pin).digest()


def common_name(certificate: x509.Certificate) -> bytes:
    """The subject's CN as bytes.

    Raises:
        SecurityViolation: no CN, or more than one (R75).
    """
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise SecurityViolation(f"signer with {len(names)} common names")  # R75
    value = names[0].value
    return value if isinstance(value, bytes) else value.encode()


def pin_of(kind: PinKind, signer: x509.Certificate, message: Message, *, rsa_floor: int) -> bytes:
    """The encoded pin of ``message``, which ``signer`` made.

    Raises:
        SecurityViolation: no single CN (R75), or no bounded path (R15).
    """
    name = common_name(signer)
    if kind is PinKind.LAST:
        last = hashlib.sha256(der_of(message.certificates[-1])).digest()
        return encode_pin(kind, "sha256", hashlib.sha256(name + last).digest())
    top: x509.Certificate | None = signer
    if kind is PinKind.TOP:
        top = chain.top_of(signer, message.certificates, rsa_floor=rsa_floor)
    if top is None:
        raise SecurityViolation("no bounded issuer path")  # R15
    context = hashes.Hash(message.digest)
    context.update(name + top.tbs_certificate_bytes)
    return encode_pin(kind, message.digest.name, context.finalize())


def matches(stored: bytes, signer: x509.Certificate, message: Message, *, rsa_floor: int) -> bool:
    """Say whether ``stored`` is the pin of ``message``, of whichever kind it was made (R75, R80)."""
    found = False
    for kind in PinKind:
        found |= hmac.compare_digest(stored, pin_of(kind, signer, message, rsa_floor=rsa_floor))
    return found
