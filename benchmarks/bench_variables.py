"""What the variable service costs, bytes in to bytes out, beside what cannot be avoided.

The floor of a read is putting the same reply together without any service; that of a signed update is hashing what
is signed and one RSA-2048 verification.
"""

import datetime
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from benchmarks.harness import Figure, against_floor, samples, spread
from cvars.mm.service import VariableService
from cvars.variables.limits import Limits
from cvars.variables.model import Journal, Key
from cvars.variables.names import DB, KEK, MM_VARIABLE, PK

VENDOR = UUID("aaaaaaaa-0001-4000-8000-00000000000a")
NBR, AUTHENTICATED = 0x07, 0x27
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
PKCS7_TYPE = bytes.fromhex("9dd2af4adf68ee498aa9347d375665a7")


def figures() -> list[Figure]:
    """The figures that issue 3 asks for."""
    return [get_variable(), set_variable(), signed_update(), enumeration()]


def _keep(_journal: Journal) -> None:
    """A store that costs nothing."""


def _access(function: int, key: Key, attributes: int, data: bytes) -> bytes:
    name = key.name_bytes + b"\0\0"
    head = struct.pack("<QQ16sQQI", function, 0, key.vendor_guid.bytes_le, len(data), len(name), attributes)
    return head + name + data


def _asked(service: VariableService, message: bytes) -> bytes:
    reply = service.handle(MM_VARIABLE, message)
    if reply[8:16] != bytes(8):
        raise RuntimeError(f"the service refused: {reply[8:16].hex()}")
    return reply


def get_variable() -> Figure:
    """Read 100 bytes."""
    service = VariableService({}, commit=_keep)
    key = Key(VENDOR, "Benchmark")
    _asked(service, _access(3, key, NBR, bytes(100)))
    message = _access(1, key, 0, bytes(100))
    return against_floor(
        "GetVariable, 100 bytes, bytes in to bytes out",
        lambda: service.handle(MM_VARIABLE, message),
        lambda: _access(1, key, NBR, bytes(100)),
        max_value=20.0,
        rounds=400,
        inner=50,
    )


def set_variable() -> Figure:
    """Write 100 bytes over 100 others, beside 30 variables."""
    service = VariableService({}, commit=_keep)
    for number in range(30):
        _asked(service, _access(3, Key(VENDOR, f"Other{number}"), NBR, bytes(100)))
    key = Key(VENDOR, "Benchmark")
    messages = [_access(3, key, NBR, bytes([n]) * 100) for n in (0, 1)]

    def write() -> None:
        for message in messages:
            service.handle(MM_VARIABLE, message)

    return against_floor(
        "SetVariable twice, 100 bytes, without a store",
        write,
        lambda: [_access(1, key, NBR, bytes(100)) for _ in messages],
        max_value=400.0,
        rounds=200,
        inner=10,
    )


def signed_update() -> Figure:
    """Replace db by an update that a KEK entry signed; CPU time."""
    pk, kek, new = (_certificate(n) for n in ("PK", "KEK", "db"))
    service = VariableService({}, commit=_keep)
    for target, payload, by in ((KEK, _list(kek[1]), None), (PK, _list(pk[1]), pk)):
        _asked(service, _access(3, target, AUTHENTICATED, _signed(target, payload, by)))
    payload = _list(new[1])
    message = _access(3, DB, AUTHENTICATED, _signed(DB, payload, kek))
    before = service.state

    def update() -> None:
        service._state = before
        service.handle(MM_VARIABLE, message)

    _asked(service, message)
    content = _content(DB, payload)
    signature = kek[0].sign(content, padding.PKCS1v15(), hashes.SHA256())
    public = kek[0].public_key()

    def floor() -> None:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(content)
        public.verify(signature, digest.finalize(), padding.PKCS1v15(), Prehashed(hashes.SHA256()))

    return against_floor(
        "SetVariable, db update signed with RSA-2048, CPU",
        update,
        floor,
        max_value=250.0,
        rounds=300,
        inner=5,
        clock=time.process_time_ns,
    )


def enumeration() -> Figure:
    """Walk 1,000 variables and 100: time per walk grows with the number of variables, not faster."""
    thousand, hundred = (_walker(number) for number in (1000, 100))
    many, few = samples(thousand, hundred, rounds=30, clock=time.process_time_ns)
    value, base = statistics.median(many), statistics.median(few)
    return Figure(
        "enumeration of 1,000 variables against 100",
        "us",
        value,
        base,
        value / base,
        spread(many),
        "ratio <= 12",
        value / base <= 12,
    )


def _walker(number: int) -> Callable[[], object]:
    limits = Limits(nv_pool=1 << 20, max_variables=2000)
    service = VariableService({}, limits=limits, commit=_keep)
    for n in range(number - len(service.state.table)):
        _asked(service, _access(3, Key(VENDOR, f"Variable{n:04}"), NBR, b"x"))
    filled = service.state

    def walk() -> int:
        service._state = replace(filled)  # no index of an earlier walk
        service._state.table._next.clear()
        message = struct.pack("<QQ16sQ", 2, 0, bytes(16), 64) + bytes(64)
        seen = 0
        while True:
            reply = service.handle(MM_VARIABLE, message)
            if reply[8:16] != bytes(8):
                return seen
            seen += 1
            message = (message[:8] + bytes(8) + reply[16:32] + message[32:40] + reply[40:]).ljust(104, b"\0")

    if walk() != number:
        raise RuntimeError("the walk did not see every variable")
    return walk


def _certificate(name: str) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return key, builder.sign(key, hashes.SHA256())


def _list(certificate: x509.Certificate) -> bytes:
    der = certificate.public_bytes(Encoding.DER)
    return struct.pack("<16sIII", X509.bytes_le, 28 + 16 + len(der), 0, 16 + len(der)) + VENDOR.bytes_le + der


_TIME = struct.pack("<HBBBBB", 2024, 1, 1, 0, 0, 0) + bytes(9)


def _content(key: Key, payload: bytes) -> bytes:
    return key.name_bytes + key.vendor_guid.bytes_le + struct.pack("<I", AUTHENTICATED) + _TIME + payload


def _signed(key: Key, payload: bytes, by: Any) -> bytes:  # noqa: ANN401 - a key and its certificate, or None
    raw = b""
    if by is not None:
        options = [
            pkcs7.PKCS7Options.DetachedSignature,
            pkcs7.PKCS7Options.Binary,
            pkcs7.PKCS7Options.NoAttributes,
        ]
        builder = pkcs7.PKCS7SignatureBuilder().set_data(_content(key, payload))
        raw = builder.add_signer(by[1], by[0], hashes.SHA256()).sign(Encoding.DER, options)
    return _TIME + struct.pack("<IHH16s", 24 + len(raw), 0x0200, 0x0EF1, PKCS7_TYPE) + raw + payload
