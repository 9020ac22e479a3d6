"""What AMD writes into a VCEK or VLEK certificate. Source: AMD 57230; `attestation` 2.3."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cvars.attest import der
from cvars.attest.certificates import Certificate
from cvars.attest.der import DerError
from cvars.attest.snp.products import LINES, Line, Tcb

AMD: Final = "1.3.6.1.4.1.3704.1."
STRUCT_VERSION: Final = AMD + "1"
PRODUCT: Final = AMD + "2"
SPL: Final = {
    "bootloader": AMD + "3.1",
    "tee": AMD + "3.2",
    "snp": AMD + "3.3",
    "microcode": AMD + "3.8",
}
FMC: Final = AMD + "3.9"
HWID: Final = AMD + "4"
CSP_ID: Final = AMD + "5"
VCEK_NAME: Final = "SEV-VCEK"
VLEK_NAME: Final = "SEV-VLEK"


@dataclass(frozen=True, slots=True)
class Leaf:
    """The extensions, read. A value that is absent or malformed is None, and ``wrong`` says what was malformed."""

    product: str | None
    tcb: Tcb | None
    hwid: bytes | None
    csp_id: str | None
    wrong: str


@lru_cache(maxsize=256)
def read_leaf(certificate: Certificate) -> Leaf:
    """Read the AMD extensions; never raises for what a certificate says. Remembered, as parsing is."""
    wrong: list[str] = []

    def spl(name: str) -> int | None:
        value = certificate.extensions.get(name)
        if value is None:
            return None
        try:
            number = der.integer(der.read(value.value), max_bytes=2)
        except DerError as error:
            wrong.append(f"{name}: {error}")
            return None
        if not 0 <= number <= 255:
            wrong.append(f"{name}: {number} is not an SPL")
            return None
        return number

    def ia5(name: str) -> str | None:
        value = certificate.extensions.get(name)
        if value is None:
            return None
        try:
            return der.read(value.value).expect(der.IA5_STRING).body.decode("ascii")
        except (DerError, UnicodeDecodeError):
            wrong.append(f"{name} is not an IA5String")
            return None

    parts = {name: spl(oid) for name, oid in SPL.items()}
    fmc = spl(FMC)
    known = {name: value for name, value in parts.items() if value is not None}
    tcb = Tcb(**known, fmc=fmc) if len(known) == len(SPL) else None
    product, csp_id = ia5(PRODUCT), ia5(CSP_ID)
    hwid = None
    if HWID in certificate.extensions:
        hwid = _hwid(certificate.extensions[HWID].value)
        if hwid is None:
            wrong.append("HWID is neither 64 nor 8 bytes")
    return Leaf(product, tcb, hwid, csp_id, "; ".join(wrong))


def _hwid(value: bytes) -> bytes | None:
    """Raw 64 bytes, or DER OCTET STRING of 64 bytes, or raw 8 bytes (Turin)."""
    if len(value) in (8, 64):
        return value
    if len(value) == 66 and value[:2] == b"\x04\x40":
        return value[2:]
    return None


def line_named(text: str, prefix: str) -> Line | None:
    """The line that a name like ``SEV-Milan`` or ``SEV-VLEK-Genoa`` ends in, after exactly ``prefix``."""
    return next((line for line in LINES if text == prefix + line), None)


def line_of_product(product: str) -> Line | None:
    """The line of a product name: ``Milan-B0``, ``Genoa``, ``Turin``."""
    return next((line for line in LINES if product == line or product.startswith(line + "-")), None)
