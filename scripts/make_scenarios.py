"""Write the demo's scenarios: recorded requests of a first boot and of a boot that reads everything back.

Run once; the result is committed (`python scripts/make_scenarios.py`). The signing keys are made here, used for
one self-signed PK enrolment, and forgotten: the scenarios hold certificates and one signature, no key.
"""

import datetime
import struct
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from cvars.lab.driver import (
    AT,
    BS,
    END_OF_DXE,
    EXIT_BOOT_SERVICES,
    NV,
    READY_TO_BOOT,
    RT,
    event_request,
    get_request,
    set_request,
)
from cvars.lab.lab import volatile_exchange
from cvars.lab.scenario import SCENARIOS, Step, write_scenario
from cvars.variables.model import Key
from cvars.variables.security import GLOBAL, IMAGE_SECURITY

X509_LIST = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
PKCS7_CERT = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
OWNER = UUID("5fae2d4c-3a11-4a2e-9f6e-0d9c2f1c7b60")
TIME = struct.pack("<HBBBBBBIhBB", 2026, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0)
PLAIN, SIGNED = NV | BS | RT, NV | BS | RT | AT


def certificate(name: str) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    """A throw-away self-signed certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=7300))
    return key, builder.sign(key, hashes.SHA256())


def signature_list(cert: x509.Certificate) -> bytes:
    """An EFI_SIGNATURE_LIST with one X.509 entry."""
    der = cert.public_bytes(Encoding.DER)
    return X509_LIST.bytes_le + struct.pack("<III", 28 + 16 + len(der), 0, 16 + len(der)) + OWNER.bytes_le + der


def descriptor(signature: bytes) -> bytes:
    """EFI_VARIABLE_AUTHENTICATION_2 around ``signature`` (may be empty where no signer is asked for)."""
    return TIME + struct.pack("<IHH", 24 + len(signature), 0x0200, 0x0EF1) + PKCS7_CERT.bytes_le + signature


def signed(key: Key, payload: bytes, signer: rsa.RSAPrivateKey, cert: x509.Certificate) -> bytes:
    """The payload with a descriptor that ``signer`` made."""
    message = key.name_bytes + key.vendor_guid.bytes_le + struct.pack("<I", SIGNED) + TIME + payload
    builder = pkcs7.PKCS7SignatureBuilder().set_data(message).add_signer(cert, signer, hashes.SHA256())
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.NoAttributes, pkcs7.PKCS7Options.Binary]
    return descriptor(builder.sign(Encoding.DER, options)) + payload


def load_option(description: str, path: str) -> bytes:
    """EFI_LOAD_OPTION, active, with a file path."""
    name = (path + "\0").encode("utf-16-le")
    device_path = struct.pack("<BBH", 4, 4, 4 + len(name)) + name + struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<IH", 1, len(device_path)) + (description + "\0").encode("utf-16-le") + device_path


def main() -> None:
    """Write the scenario files."""
    pk_key, pk = certificate("cvars demo PK")
    _, kek = certificate("cvars demo KEK")
    _, db = certificate("cvars demo db")
    values = {
        Key(GLOBAL, "Boot0001"): (PLAIN, load_option("Linux", r"\EFI\linux\shimx64.efi")),
        Key(GLOBAL, "BootOrder"): (PLAIN, struct.pack("<H", 1)),
        Key(IMAGE_SECURITY, "db"): (SIGNED, signature_list(db)),
        Key(GLOBAL, "KEK"): (SIGNED, signature_list(kek)),
        Key(GLOBAL, "PK"): (SIGNED, signature_list(pk)),
    }
    other = {
        Key(GLOBAL, "Boot0000"): (PLAIN, load_option("Another guest", r"\EFI\other\bootx64.efi")),
        Key(GLOBAL, "BootOrder"): (PLAIN, struct.pack("<H", 0)),
    }
    sent = {
        key: signed(key, data, pk_key, pk)
        if key.name == "PK"
        else (descriptor(b"") if attributes & AT else b"") + data
        for key, (attributes, data) in values.items()
    }
    first = [set_request(key, values[key][0], sent[key]) for key in values]
    other_first = [set_request(key, attributes, data) for key, (attributes, data) in other.items()]
    phases = [event_request(event) for event in (END_OF_DXE, READY_TO_BOOT, EXIT_BOOT_SERVICES)]
    read = [get_request(key, len(data)) for key, (_, data) in values.items()]

    exchange, _ = volatile_exchange()
    record("demo-first-boot", exchange, first + phases)
    exchange, reset = volatile_exchange()
    for request in first + phases:
        exchange(request)
    reset()
    record("demo-read-back", exchange, phases + read)
    exchange, _ = volatile_exchange()
    record("demo-other-guest", exchange, other_first + phases)


def record(name: str, exchange, requests: list[bytes]) -> None:  # noqa: ANN001
    """Send ``requests`` to a service that stores nothing and write them with their answers."""
    steps = [Step(name, 0, "start")]
    for number, request in enumerate(requests, 1):
        steps.append(Step(name, number, "call", request, exchange(request)))
    (SCENARIOS / f"{name}.jsonl").write_text(write_scenario(steps))


if __name__ == "__main__":
    main()
