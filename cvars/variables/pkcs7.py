"""PKCS#7 SignedData, as far as UEFI uses it: declared ASN.1, DER only, everything bounded (R66, R67, R15).

Source: RFC 2315 section 9; UEFI 2.10 8.2.6. Only the shape and the signature are judged here: who the signer
may be is `authenticated`'s business.
"""

import hmac
from dataclasses import dataclass, replace
from typing import Annotated, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from cvars.variables.certificates import load, usable_key
from cvars.variables.refusals import SecurityViolation

MAX_CERTIFICATES: Final = 16  # carried by one message (R15)
MAX_SIGNERS: Final = 4  # where more than one is allowed (R15)
MAX_ATTRIBUTES: Final = 16  # signed attributes (R15)

OID_DATA: Final = x509.ObjectIdentifier("1.2.840.113549.1.7.1")
OID_SIGNED_DATA: Final = x509.ObjectIdentifier("1.2.840.113549.1.7.2")
OID_RSA: Final = x509.ObjectIdentifier("1.2.840.113549.1.1.1")
OID_CONTENT_TYPE: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.3")
OID_MESSAGE_DIGEST: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.4")

#: digest algorithms (R67), each with the combined signature OID that some tools write instead of OID_RSA
DIGESTS: Final = {
    x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1"): (hashes.SHA256(), "1.2.840.113549.1.1.11"),
    x509.ObjectIdentifier("2.16.840.1.101.3.4.2.2"): (hashes.SHA384(), "1.2.840.113549.1.1.12"),
    x509.ObjectIdentifier("2.16.840.1.101.3.4.2.3"): (hashes.SHA512(), "1.2.840.113549.1.1.13"),
}


@asn1.sequence
class AlgorithmIdentifier:
    """Digests and RSA have NULL parameters, or none."""

    algorithm: x509.ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class DetachedContent:
    """ContentInfo whose content is absent: what is signed is not in the message (R67)."""

    content_type: x509.ObjectIdentifier


@asn1.sequence
class Attribute:
    """One attribute; its values are looked at only where they matter."""

    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class IssuerAndSerialNumber:
    """Names the signer certificate."""

    issuer: x509.Name
    serial_number: int


@asn1.sequence
class SignerInfo:
    """RFC 2315 9.2."""

    version: int
    issuer_and_serial_number: IssuerAndSerialNumber
    digest_algorithm: AlgorithmIdentifier
    authenticated_attributes: Annotated[asn1.SetOf[Attribute] | None, asn1.Implicit(0)]
    digest_encryption_algorithm: AlgorithmIdentifier
    encrypted_digest: bytes
    unauthenticated_attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class SignedData:
    """RFC 2315 9.1. Certificates are loaded one by one; no rule depends on their order (R70)."""

    version: int
    digest_algorithms: asn1.SetOf[AlgorithmIdentifier]
    content_info: DetachedContent
    certificates: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]
    signer_infos: asn1.SetOf[SignerInfo]


@asn1.sequence
class ContentInfo:
    """The optional outer wrapper (R66)."""

    content_type: x509.ObjectIdentifier
    content: Annotated[SignedData, asn1.Explicit(0)]


@asn1.sequence
class _AttributeSet:
    attributes: asn1.SetOf[Attribute]


@dataclass(frozen=True, slots=True)
class Message:
    """A SignedData of the only accepted shape (R67). ``signers``: the certificates that the SignerInfo names.

    ``others``: the same message by its further signers, where a profile allows them.
    """

    signers: tuple[x509.Certificate, ...]
    certificates: tuple[x509.Certificate, ...]
    digest: hashes.HashAlgorithm
    signature: bytes
    attributes: tuple[Attribute, ...] | None
    others: tuple["Message", ...] = ()


def parse(der: bytes, *, allows_signed_attributes: bool = True, one_signer: bool = True) -> Message:
    """Parse ``der``, with or without ContentInfo (R66), and hold it to R67.

    Raises:
        SecurityViolation: malformed, trailing bytes, or not the accepted shape (R66, R67, R78).
    """
    data = _decode(der)
    if data.version != 1:
        raise SecurityViolation(f"SignedData version {data.version}")  # R67
    algorithms = data.digest_algorithms.as_list()
    if len(algorithms) != 1:
        raise SecurityViolation(f"{len(algorithms)} digest algorithms")  # R67
    known = DIGESTS.get(algorithms[0].algorithm)
    if known is None:
        raise SecurityViolation("digest algorithm is not SHA-256, SHA-384 or SHA-512")  # R67
    digest, combined = known
    if data.content_info.content_type != OID_DATA:
        raise SecurityViolation("content type is not data")  # R67
    infos = data.signer_infos.as_list()
    if len(infos) != 1 and (one_signer or not 0 < len(infos) <= MAX_SIGNERS):
        raise SecurityViolation(f"{len(infos)} signers")  # R67
    carried = data.certificates or []
    if len(carried) > MAX_CERTIFICATES:
        raise SecurityViolation(f"{len(carried)} certificates")  # R15
    certificates = tuple(c for tlv in carried if (c := load(_whole(tlv))) is not None)
    if len(certificates) != len(carried):
        raise SecurityViolation("a certificate that cannot be read")  # R66
    messages = []
    for info in infos:
        if info.version != 1:
            raise SecurityViolation(f"SignerInfo version {info.version}")  # R67
        if info.digest_algorithm.algorithm != algorithms[0].algorithm:
            raise SecurityViolation("the signer uses another digest than the message lists")  # R67
        encryption = info.digest_encryption_algorithm.algorithm
        if encryption != OID_RSA and encryption.dotted_string != combined:
            raise SecurityViolation("signature is not RSASSA-PKCS1-v1_5")  # R67
        attributes = None
        if info.authenticated_attributes is not None:
            if not allows_signed_attributes:
                raise SecurityViolation("signed attributes")  # R67
            attributes = tuple(info.authenticated_attributes.as_list())
            if len(attributes) > MAX_ATTRIBUTES:
                raise SecurityViolation(f"{len(attributes)} signed attributes")  # R15
        sid = info.issuer_and_serial_number
        signers = tuple(c for c in certificates if c.serial_number == sid.serial_number and c.issuer == sid.issuer)
        messages.append(Message(signers, certificates, digest, info.encrypted_digest, attributes))
    return replace(messages[0], others=tuple(messages[1:])) if messages[1:] else messages[0]


def _whole(tlv: asn1.TLV) -> bytes:
    """The DER that ``tlv`` was decoded from: the decoder accepts the shortest length form only."""
    size = len(tlv.data)
    if size < 0x80:
        return tlv.tag_bytes + bytes([size]) + tlv.data
    length = size.to_bytes(-(-size.bit_length() // 8), "big")
    return tlv.tag_bytes + bytes([0x80 | len(length)]) + length + tlv.data


def _decode(der: bytes) -> SignedData:
    try:
        if _begins_with_integer(der):
            return asn1.decode_der(SignedData, der)
        wrapped = asn1.decode_der(ContentInfo, der)
    except Exception as error:  # whatever the decoder raises, the message is refused
        raise SecurityViolation(f"not a DER SignedData: {type(error).__name__}") from None  # R66
    if wrapped.content_type != OID_SIGNED_DATA:
        raise SecurityViolation("ContentInfo of another type")  # R66
    return wrapped.content


def _begins_with_integer(der: bytes) -> bool:
    """SignedData begins with its version, ContentInfo with an OID. Length forms are the decoder's to judge."""
    first_length = der[1] if len(der) > 1 else 0
    inner = 2 + (first_length & 0x7F if first_length & 0x80 else 0)
    return der[inner : inner + 1] == b"\x02"


def signer_of(message: Message, content: bytes, *, rsa_floor: int) -> x509.Certificate:
    """The certificate that made ``message`` over ``content``; further signers must verify as well (R67, R68).

    Raises:
        SecurityViolation: nobody did.
    """
    found = next((s for s in message.signers if verify(message, content, s, rsa_floor=rsa_floor)), None)
    if found is None:
        raise SecurityViolation("the signature does not verify")  # R68, R78
    for other in message.others:
        signer_of(other, content, rsa_floor=rsa_floor)  # R67
    return found


def verify(message: Message, content: bytes, signer: x509.Certificate, *, rsa_floor: int) -> bool:
    """Say whether ``signer`` made ``message`` over the detached ``content`` (R67, R68)."""
    key = usable_key(signer, rsa_floor=rsa_floor)
    if key is None:
        return False
    digest = _digest(message.digest, content)
    if message.attributes is not None:
        if not _attributes_match(message.attributes, digest):
            return False
        digest = _digest(message.digest, _signed_attributes(message.attributes))
    try:
        key.verify(message.signature, digest, PKCS1v15(), Prehashed(message.digest))
    except InvalidSignature:
        return False
    return True


def _digest(algorithm: hashes.HashAlgorithm, content: bytes) -> bytes:
    context = hashes.Hash(algorithm)
    context.update(content)
    return context.finalize()


def _attributes_match(attributes: tuple[Attribute, ...], digest: bytes) -> bool:
    """ContentType is data, messageDigest is ours, each exactly once (R67)."""
    by_type = {attribute.type: attribute.values.as_list() for attribute in attributes}
    if len(by_type) != len(attributes):
        return False
    content_type = by_type.get(OID_CONTENT_TYPE, [])
    message_digest = by_type.get(OID_MESSAGE_DIGEST, [])
    if len(content_type) != 1 or len(message_digest) != 1:
        return False
    try:
        return content_type[0].parse(x509.ObjectIdentifier) == OID_DATA and hmac.compare_digest(
            message_digest[0].parse(bytes), digest
        )
    except ValueError:
        return False


def _signed_attributes(attributes: tuple[Attribute, ...]) -> bytes:
    """The DER SET OF that is signed: the attributes under their universal tag (RFC 2315 9.3)."""
    wrapped = asn1.encode_der(_AttributeSet(attributes=asn1.SetOf(list(attributes))))
    header = 2 + (wrapped[1] & 0x7F if wrapped[1] & 0x80 else 0)
    return wrapped[header:]
