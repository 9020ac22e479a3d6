"""Keys, certificates and signed writes for the tests, made by `cryptography`'s own PKCS#7 builder."""

import datetime
import struct
from functools import lru_cache
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from cvars.variables.names import AT, BS, NV, RT

AUTH = NV | BS | RT | AT
OWNER = UUID("11111111-2222-3333-4444-555555555555")
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
SHA384 = UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
RSA2048 = UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
UNKNOWN = UUID("99999999-9999-4999-8999-999999999999")
PKCS7_TYPE = bytes.fromhex("9dd2af4adf68ee498aa9347d375665a7")
VALID = (datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))


@lru_cache
def rsa_key(index, bits=2048):
    return rsa.generate_private_key(65537, bits)


@lru_cache
def ec_key():
    return ec.generate_private_key(ec.SECP256R1())


class Signer:
    """A key and its certificate."""

    def __init__(self, key, certificate):
        self.key, self.certificate = key, certificate

    @property
    def der(self):
        return self.certificate.public_bytes(Encoding.DER)


def distinguished(*names):
    """A subject with these common names; an organisation without any."""
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, n) for n in names]
    return x509.Name(parts or [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nameless")])


@lru_cache
def signer(index=0, *names, issuer=None, ca=True, bits=2048, digest="SHA256", kind="rsa", serial=None):
    """A certificate for key ``index``, self-signed unless an ``issuer`` is given. Expired on purpose (R69)."""
    key = rsa_key(index, bits) if kind == "rsa" else ec_key()
    subject = distinguished() if names == ("",) else distinguished(*(names or (f"signer {index}",)))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or 1000 + index)
        .not_valid_before(VALID[0])
        .not_valid_after(VALID[1])
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    by = issuer.key if issuer else key
    return Signer(key, builder.sign(by, getattr(hashes, digest)()))


def time(*fields, tail=bytes(9)):
    """An EFI_TIME: year, month, day, hour, minute, second, as many as matter."""
    return struct.pack("<HBBBBB", *(*fields, *(2024, 1, 1, 0, 0, 0)[len(fields) :])) + tail


def signed_data(content, who, *, extra=(), digest=None, attributes=False, wrapped=True, cert=True):
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
    builder = builder.add_signer(who.certificate, who.key, digest or hashes.SHA256())
    for other in extra:
        builder = builder.add_certificate(other.certificate)
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    if not attributes:
        options.append(pkcs7.PKCS7Options.NoAttributes)
    if not cert:
        options.append(pkcs7.PKCS7Options.NoCerts)
    raw = builder.sign(Encoding.DER, options)
    return raw if wrapped else unwrap(raw)


def unwrap(raw):
    """The SignedData inside a ContentInfo."""
    at = 2 + (raw[1] & 0x7F if raw[1] & 0x80 else 0)  # into the sequence
    at += 2 + raw[at + 1]  # past the OID
    length = raw[at + 1]
    return raw[at + 2 + (length & 0x7F if length & 0x80 else 0) :]


def descriptor(sd=b"", when=None, *, revision=0x0200, kind=0x0EF1, cert_type=PKCS7_TYPE, length=None):
    size = 24 + len(sd) if length is None else length
    return (when or time()) + struct.pack("<IHH16s", size, revision, kind, cert_type) + sd


def content(key, attributes, when, payload):
    return key.name_bytes + key.vendor_guid.bytes_le + struct.pack("<I", attributes) + when + payload


def auth(who, key, payload=b"", attributes=AUTH, when=None, *, signed_attributes=None, **options):
    """The data of an authenticated write of ``key``, signed by ``who`` (None: no signature at all)."""
    when = when or time()
    if who is None:
        return descriptor(b"", when) + payload
    covered = content(key, attributes if signed_attributes is None else signed_attributes, when, payload)
    return descriptor(signed_data(covered, who, **options), when) + payload


def esl(*entries, kind=X509, owner=OWNER, size=None, header=b"", list_size=None, header_size=None):
    """One signature list; ``entries`` are SignatureData."""
    each = 16 + len(entries[0]) if size is None and entries else (size if size is not None else 16)
    body = b"".join(owner.bytes_le + e for e in entries)
    total = 28 + len(header) + len(body) if list_size is None else list_size
    hs = len(header) if header_size is None else header_size
    return struct.pack("<16sIII", kind.bytes_le, total, hs, each) + header + body
