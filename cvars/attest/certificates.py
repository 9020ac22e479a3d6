"""Certificates and revocation lists as this verifier needs them, signatures over the received bytes.

All certificates, AMD's leaves with serial number 0 among them, are loaded by `load_certificate` and nowhere
else (`attestation` 2.3, implementation notes). A path is not searched for: each certificate has a role, and the
caller says which key must have signed which bytes. Source: RFC 5280; RFC 4055 for RSASSA-PSS.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cvars.attest import der
from cvars.attest.der import DerError, Item

MAX_CERTIFICATE: Final = 8 * 1024  # bytes; the largest genuine one has about 1400
MAX_CRL: Final = 1024 * 1024  # bytes
MAX_PEM_TEXT: Final = 2 * MAX_CRL  # bytes
MAX_PEM_BUNDLE: Final = 16  # certificates in one PEM text
#: the mark of simulated hardware (6.1): "cvar" in ASCII, since widespread DER decoders read no arc over 32 bits
SIMULATION_OID: Final = "2.25.1668702578"
SIMULATED: Final = "SIMULATED HARDWARE"

_LINE_ENDS: Final = b"\r\n"

COMMON_NAME: Final = "2.5.4.3"
ORGANIZATION: Final = "2.5.4.10"
BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
_STRINGS: Final = {der.UTF8_STRING: "utf-8", der.PRINTABLE_STRING: "ascii", der.IA5_STRING: "ascii"}
_KNOWN_CRITICAL: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE})

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def _pss(*, trailer: bool) -> bytes:
    sha384 = der.write(der.SEQUENCE, der.write_oid("2.16.840.1.101.3.4.2.2"), b"\x05\x00")
    mgf1 = der.write(der.SEQUENCE, der.write_oid("1.2.840.113549.1.1.8"), sha384)
    parts = [der.write(0xA0, sha384), der.write(0xA1, mgf1), der.write(0xA2, der.write_integer(48))]
    if trailer:  # AMD writes the default value out in some certificates
        parts.append(der.write(0xA3, der.write_integer(1)))
    return der.write(der.SEQUENCE, der.write_oid("1.2.840.113549.1.1.10"), der.write(der.SEQUENCE, *parts))


PSS_SHA384: Final = frozenset({_pss(trailer=False), _pss(trailer=True)})
ECDSA_SHA256: Final = frozenset({der.write(der.SEQUENCE, der.write_oid("1.2.840.10045.4.3.2"))})


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: ``value`` is the content of its OCTET STRING."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What a certificate says. Nothing in here is believed before its signature was checked."""

    der: bytes
    tbs: bytes
    algorithm: bytes  # AlgorithmIdentifier, DER; inside and outside of the signed part are equal
    signature: bytes
    serial: int
    issuer: bytes  # Name, DER
    subject: bytes
    not_before: datetime
    not_after: datetime
    spki: bytes  # SubjectPublicKeyInfo, DER
    issuer_names: dict[str, tuple[str, ...]]
    subject_names: dict[str, tuple[str, ...]]
    extensions: dict[str, Extension]
    repeated: tuple[str, ...]  # extensions that occur more than once
    may_sign_certificates: bool  # basicConstraints says CA and keyUsage has keyCertSign; both are there

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    @property
    def common_name(self) -> str:
        """The subject's only common name, or an empty text."""
        names = self.subject_names.get(COMMON_NAME, ())
        return names[0] if len(names) == 1 else ""

    @property
    def issuer_common_name(self) -> str:
        """The issuer's only common name, or an empty text."""
        names = self.issuer_names.get(COMMON_NAME, ())
        return names[0] if len(names) == 1 else ""

    @property
    def spki_sha256(self) -> bytes:
        """What a pin pins: SHA-256 of the SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).digest()

    @property
    def simulated(self) -> bool:
        """Carries a mark of simulated hardware (6.1): the extension, or the organization."""
        organizations = self.subject_names.get(ORGANIZATION, ()) + self.issuer_names.get(ORGANIZATION, ())
        return SIMULATION_OID in self.extensions or any(SIMULATED in name for name in organizations)

    @property
    def unknown_critical(self) -> tuple[str, ...]:
        """Critical extensions that nobody here understands."""
        return tuple(o for o, e in self.extensions.items() if e.critical and o not in _KNOWN_CRITICAL)

    def valid_at(self, at: datetime) -> bool:
        """Within the validity, both ends included (RFC 5280 4.1.2.5)."""
        return self.not_before <= at <= self.not_after

    def public_key(self) -> PublicKey | None:
        """The key, when it is an RSA or EC key that can be loaded."""
        return load_key(self.spki)


@lru_cache(maxsize=256)
def load_p256(spki: bytes) -> ec.EllipticCurvePublicKey | None:
    """A P-256 key; None for anything else."""
    key = load_key(spki)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None


@lru_cache(maxsize=256)
def load_key(spki: bytes) -> PublicKey | None:
    """An RSA or EC public key from its SubjectPublicKeyInfo; None for anything else."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


@lru_cache(maxsize=256)
def load_certificate(data: bytes) -> Certificate:
    """Load one DER certificate. The only place that does, so that serial number 0 has one home.

    Machines attest again and again with the same certificates: parsing is remembered, verdicts never are.

    Raises:
        DerError: not a certificate, too large, or not strict DER where it matters.
    """
    if len(data) > MAX_CERTIFICATE:
        raise DerError(f"certificate of {len(data)} bytes")
    whole = der.read(data).expect(der.SEQUENCE).items()
    if len(whole) != 3:
        raise DerError("a certificate has three parts")
    tbs, outer, signature = whole
    fields = tbs.expect(der.SEQUENCE).items()
    if len(fields) < 7 or fields[0].raw != b"\xa0\x03\x02\x01\x02":
        raise DerError("not an X.509 version 3 certificate")
    serial, inner, issuer, validity, subject, spki = fields[1:7]
    if inner.raw != outer.raw:
        raise DerError("signature algorithms inside and outside differ")
    times = validity.expect(der.SEQUENCE).items()
    if len(times) != 2:
        raise DerError("validity has two times")
    extensions, repeated = _extensions(fields[7:])
    return Certificate(
        der=data,
        tbs=tbs.raw,
        algorithm=outer.expect(der.SEQUENCE).raw,
        signature=der.bit_string(signature),
        serial=der.integer(serial),
        issuer=issuer.raw,
        subject=subject.raw,
        not_before=der.time(times[0]),
        not_after=der.time(times[1]),
        spki=spki.expect(der.SEQUENCE).raw,
        issuer_names=_names(issuer.raw),
        subject_names=_names(subject.raw),
        extensions=extensions,
        repeated=repeated,
        may_sign_certificates=_may_sign(extensions),
    )


def _may_sign(extensions: dict[str, Extension]) -> bool:
    constraints, usage = extensions.get(BASIC_CONSTRAINTS), extensions.get(KEY_USAGE)
    if constraints is None or usage is None:
        return False
    try:
        first = der.read(constraints.value).expect(der.SEQUENCE).items()[:1]
        bits = der.read(usage.value).expect(der.BIT_STRING).body
    except DerError:
        return False
    is_ca = bool(first) and first[0].tag == der.BOOLEAN and first[0].body == b"\xff"
    return is_ca and len(bits) >= 2 and bool(bits[1] & 0x04)


@lru_cache(maxsize=128)
def _names(name: bytes) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    for rdn in der.read(name).expect(der.SEQUENCE).items():
        for pair in rdn.expect(der.SET).items():
            parts = pair.expect(der.SEQUENCE).items()
            if len(parts) != 2:
                raise DerError("a name attribute is a pair")
            kind = der.oid(parts[0])
            try:
                text = parts[1].body.decode(_STRINGS.get(parts[1].tag, "latin-1"))
            except UnicodeDecodeError:
                raise DerError("a name is not text") from None
            out[kind] = (*out.get(kind, ()), text)
    return out


def _extensions(fields: list[Item]) -> tuple[dict[str, Extension], tuple[str, ...]]:
    wrapped = [field for field in fields if field.tag == 0xA3]
    if not wrapped:
        return {}, ()
    if len(wrapped) > 1 or len(wrapped[0].items()) != 1:
        raise DerError("extensions occur once")
    out: dict[str, Extension] = {}
    repeated = []
    for entry in wrapped[0].items()[0].expect(der.SEQUENCE).items():
        parts = entry.expect(der.SEQUENCE).items()
        critical = False
        if len(parts) == 3:  # AMD and others may write the default FALSE out
            if parts[1].expect(der.BOOLEAN).body not in (b"\x00", b"\xff"):
                raise DerError("bad BOOLEAN")
            critical = parts[1].body == b"\xff"
        elif len(parts) != 2:
            raise DerError("an extension has two or three parts")
        name = der.oid(parts[0])
        if name in out:
            repeated.append(name)
        else:
            out[name] = Extension(critical, parts[-1].expect(der.OCTET_STRING).body)
    return out, tuple(repeated)


def signed_by(key: PublicKey | None, algorithm: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether ``key`` made ``signature`` over ``signed``; only PSS/SHA-384/salt 48 and ECDSA/SHA-256 exist."""
    try:
        if algorithm in PSS_SHA384 and isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
            key.verify(signature, signed, pss, hashes.SHA384())
            return True
        if algorithm in ECDSA_SHA256 and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
            return True
    except InvalidSignature:
        pass
    return False


def issued(child: Certificate, parent: Certificate) -> bool:
    """Whether ``parent``'s key signed ``child`` (names are the caller's business)."""
    return signed_by(parent.public_key(), child.algorithm, child.signature, child.tbs)


@dataclass(frozen=True, slots=True)
class Crl:
    """A certificate revocation list (version 1 or 2)."""

    tbs: bytes
    algorithm: bytes
    signature: bytes
    issuer: bytes
    issuer_names: dict[str, tuple[str, ...]]
    this_update: datetime
    next_update: datetime | None
    revoked: frozenset[int]
    unknown_critical: tuple[str, ...]

    @property
    def issuer_common_name(self) -> str:
        """The issuer's only common name, or an empty text."""
        names = self.issuer_names.get(COMMON_NAME, ())
        return names[0] if len(names) == 1 else ""

    def signed_by(self, certificate: Certificate) -> bool:
        """Whether ``certificate`` is the issuer by name, and its key made the signature."""
        return self.issuer == certificate.subject and signed_by(
            certificate.public_key(), self.algorithm, self.signature, self.tbs
        )

    def current_at(self, at: datetime) -> bool:
        """``thisUpdate <= at < nextUpdate``; a list without nextUpdate is never current (SNP-CRL)."""
        return self.next_update is not None and self.this_update <= at < self.next_update


@lru_cache(maxsize=8)
def load_crl(data: bytes) -> Crl:
    """Load one DER revocation list; parsed once, its signature is checked every time.

    Raises:
        DerError: not a revocation list, too large, or not strict DER.
    """
    if len(data) > MAX_CRL:
        raise DerError(f"revocation list of {len(data)} bytes")
    whole = der.read(data).expect(der.SEQUENCE).items()
    if len(whole) != 3:
        raise DerError("a revocation list has three parts")
    tbs, outer, signature = whole
    fields = tbs.expect(der.SEQUENCE).items()
    if fields and fields[0].tag == der.INTEGER and der.integer(fields.pop(0)) != 1:
        raise DerError("not a version 2 revocation list")
    if len(fields) < 3 or fields[0].raw != outer.raw:
        raise DerError("revocation list cut short, or its algorithms differ")
    issuer, this_update = fields[1], der.time(fields[2])
    rest = fields[3:]
    next_update = None
    if rest and rest[0].tag in (der.UTC_TIME, der.GENERALIZED_TIME):
        next_update = der.time(rest.pop(0))
    revoked: set[int] = set()
    if rest and rest[0].tag == der.SEQUENCE:
        for entry in rest.pop(0).items():
            revoked.add(der.integer(entry.expect(der.SEQUENCE).items()[0]))
    critical: list[str] = []
    if rest and rest[0].tag == 0xA0:
        for extension in rest.pop(0).items()[0].expect(der.SEQUENCE).items():
            parts = extension.expect(der.SEQUENCE).items()
            if len(parts) == 3 and parts[1].body != b"\x00":
                critical.append(der.oid(parts[0]))
    if rest:
        raise DerError("revocation list with parts that do not belong there")
    return Crl(
        tbs=tbs.raw,
        algorithm=outer.raw,
        signature=der.bit_string(signature),
        issuer=issuer.raw,
        issuer_names=_names(issuer.raw),
        this_update=this_update,
        next_update=next_update,
        revoked=frozenset(revoked),
        unknown_critical=tuple(critical),
    )


def read_pem(text: bytes, *, label: str = "CERTIFICATE", limit: int = MAX_PEM_BUNDLE) -> list[bytes]:
    """The DER bodies of a PEM text, in order; line ends between them and NUL bytes at the end are allowed.

    Strict, so that no bit of the text is free: no other white space, no base64 that decodes to the same.

    Raises:
        DerError: text between the blocks, more than ``limit`` of them, or bad base64.
    """
    if len(text) > MAX_PEM_TEXT:
        raise DerError(f"PEM text of {len(text)} bytes")
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    rest = text.rstrip(b"\0").strip(_LINE_ENDS)
    out: list[bytes] = []
    while rest:
        if len(out) == limit:
            raise DerError(f"more than {limit} PEM blocks")
        body, found, after = rest.removeprefix(begin).partition(end)
        if not rest.startswith(begin) or not found:
            raise DerError(f"not a PEM {label}")
        try:
            joined = body.translate(None, _LINE_ENDS)
            out.append(base64.b64decode(joined, validate=True))
        except binascii.Error:
            raise DerError("PEM body is not base64") from None
        if base64.b64encode(out[-1]) != joined:
            raise DerError("PEM body is not canonical base64")
        rest = after.strip(_LINE_ENDS)
    return out


def load_any(data: bytes) -> list[Certificate]:
    """Certificates of a file: one DER, or a PEM text with several.

    Raises:
        DerError: it is neither.
    """
    if data.lstrip()[:5] == b"-----":
        return [load_certificate(one) for one in read_pem(data)]
    return [load_certificate(data)]


def write_pem(data: bytes, label: str = "CERTIFICATE") -> bytes:
    """PEM text of one DER value."""
    body = base64.encodebytes(data) if len(data) < 58 else _wrapped(data)
    return f"-----BEGIN {label}-----\n".encode() + body + f"-----END {label}-----\n".encode()


def _wrapped(data: bytes) -> bytes:
    text = base64.b64encode(data)
    return b"".join(text[i : i + 64] + b"\n" for i in range(0, len(text), 64))
