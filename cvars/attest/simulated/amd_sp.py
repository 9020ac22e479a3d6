"""A simulated AMD secure processor: bit-exact reports, keys derived from (chip secret, TCB). `attestation` 6.2."""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cvars.attest import der
from cvars.attest.evidence import Supplied
from cvars.attest.library import leaf_path
from cvars.attest.measure.digest import flash_digest
from cvars.attest.simulated import issue
from cvars.attest.simulated.folder import Folder
from cvars.attest.simulated.issue import Issuer
from cvars.attest.snp import leaf as ext
from cvars.attest.snp.products import Line, Tcb
from cvars.attest.snp.report import SIGNED_BYTES, VCEK, VLEK, build_report
from cvars.attest.snp.rules import P384_ORDER
from cvars.attest.snp.table import write_table
from cvars.attest.snp.trustee import write_structured

ORGANIZATION: Final = "SIMULATED HARDWARE - NOT AMD"
URL: Final = "https://kds.simulated.invalid"
DEFAULT_POLICY: Final = 0x30000  # SMT allowed, and the bit that must be one
DEFAULT_PLATFORM: Final = 0x25  # SMT, ECC, alias check complete

_CPUID: Final[dict[Line, tuple[int, int, int]]] = {
    "Milan": (0x19, 0x01, 1),
    "Genoa": (0x19, 0x11, 1),
    "Turin": (0x1A, 0x02, 1),
}
_TCB: Final[dict[Line, Tcb]] = {
    "Milan": Tcb(4, 0, 24, 219),
    "Genoa": Tcb(10, 0, 23, 84),
    "Turin": Tcb(1, 1, 4, 81, fmc=1),
}
_PRODUCT: Final[dict[Line, str]] = {"Milan": "Milan-B0", "Genoa": "Genoa", "Turin": "Turin"}
NO_AGENT: Final = b"\xff" * 32


class LaunchRefused(ValueError):
    """The simulated firmware refused a launch or a request."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """ARK, ASK and ASVK of one line: certificates, and the keys to issue with."""

    ark: bytes
    ask: bytes
    asvk: bytes
    ark_issuer: Issuer
    ask_issuer: Issuer
    asvk_issuer: Issuer


def authorities(folder: Folder, line: Line, random: Callable[[int], bytes]) -> Authorities:
    """The line's authorities of this installation, made on first use (seconds: three RSA-4096 keys)."""
    unit = folder.secret("installation", lambda: random(4)).hex()
    base = f"snp/{line}"

    def named(common_name: str) -> bytes:
        return issue.name(common_name, ORGANIZATION, unit)

    ark = Issuer(named(f"ARK-{line}"), folder.rsa_key(f"{base}/ark.key"))
    ask = Issuer(named(f"SEV-{line}"), folder.rsa_key(f"{base}/ask.key"))
    asvk = Issuer(named(f"SEV-VLEK-{line}"), folder.rsa_key(f"{base}/asvk.key"))

    def made(who: Issuer, serial: int, kind: str) -> Callable[[], bytes]:
        url = f"{URL}/{kind}/v1/{line}/crl"
        return lambda: issue.certificate(
            ark, who.name, issue.spki(who.key), issue.ca_extensions(url), serial=serial
        )

    return Authorities(
        ark=folder.public(f"{base}/ark.der", made(ark, 0x10000, "vcek")),
        ask=folder.public(f"{base}/ask.der", made(ask, 0x10001, "vcek")),
        asvk=folder.public(f"{base}/asvk.der", made(asvk, 0x10101, "vlek")),
        ark_issuer=ark,
        ask_issuer=ask,
        asvk_issuer=asvk,
    )


@dataclass(slots=True)
class SimulatedAmdSp:
    """One processor. Make it with `load_or_create`; change the public attributes to another firmware state."""

    line: Line
    folder: Folder
    authorities: Authorities
    chip_secret: bytes
    random: Callable[[int], bytes]
    current: Tcb
    committed: Tcb
    reported: Tcb
    report_version: int
    platform_info: int = DEFAULT_PLATFORM
    mask_chip_id: bool = False
    mask_chip_key: bool = False
    csp_id: str | None = None
    mit_vector: int = 0x3F
    _leaves: dict[tuple[int, bytes, str | None], bytes] = field(default_factory=dict)

    @staticmethod
    def load_or_create(
        folder: Path,
        *,
        product: Line = "Genoa",
        random: Callable[[int], bytes],
        clock: Callable[[], float] | None = None,  # noqa: ARG004 - validity does not depend on when it was made
        chip: str = "chip",
    ) -> "SimulatedAmdSp":
        """The processor ``chip`` of the installation in ``folder``; roots and chip secret are kept there."""
        kept = Folder(folder)
        tcb = _TCB[product]
        return SimulatedAmdSp(
            line=product,
            folder=kept,
            authorities=authorities(kept, product, random),
            chip_secret=kept.secret(f"snp/{product}/{chip}.secret", lambda: random(32)),
            random=random,
            current=tcb,
            committed=tcb,
            reported=tcb,
            report_version=5 if product == "Turin" else 3,
        )

    @property
    def hwid(self) -> bytes:
        """64 bytes; on Turin 8 significant ones. Starts with ``SIM-`` (6.1)."""
        unique = hashlib.sha512(b"hwid" + self.chip_secret).digest()
        return (b"SIM-" + unique[:4]).ljust(64, b"\0") if self.line == "Turin" else b"SIM-" + unique[:60]

    def load_vlek(self, csp_id: str) -> None:
        """Load a VLEK of this cloud provider: key selection 0 uses it from now on."""
        self.csp_id = csp_id

    def key(self, kind: int, tcb: Tcb) -> ec.EllipticCurvePrivateKey:
        """The VCEK or VLEK at ``tcb``: another TCB yields another key."""
        seed = self.chip_secret if kind == VCEK else hashlib.sha256(f"vlek {self.csp_id}".encode()).digest()
        stretched = hmac.new(seed, b"%d" % kind + tcb.to_bytes(), hashlib.sha512).digest()
        number = int.from_bytes(stretched, "big") % (P384_ORDER - 1) + 1
        return ec.derive_private_key(number, ec.SECP384R1())

    def certificate(self, kind: int, tcb: Tcb | None = None) -> bytes:
        """The VCEK or VLEK certificate (DER), with exactly the extensions of genuine ones plus the mark."""
        tcb = tcb or self.reported
        known = (kind, tcb.to_bytes(), self.csp_id)
        if known not in self._leaves:
            self._leaves[known] = self.issue_leaf(kind, tcb)
        return self._leaves[known]

    def leaf_extensions(self, kind: int, tcb: Tcb) -> dict[str, bytes]:
        """The AMD extensions by OID, each an Extension (DER)."""
        turin = self.line == "Turin"
        product = _PRODUCT[self.line] if kind == VCEK else self.line
        spl = {ext.FMC: tcb.fmc} if tcb.fmc is not None else {}
        spl |= {ext.SPL["bootloader"]: tcb.bootloader, ext.SPL["tee"]: tcb.tee, ext.SPL["snp"]: tcb.snp}
        spl |= {f"{ext.AMD}3.{n}": 0 for n in range(5 if turin else 4, 8)}
        spl[ext.SPL["microcode"]] = tcb.microcode
        out = {
            ext.STRUCT_VERSION: issue.extension(ext.STRUCT_VERSION, der.write_integer(int(turin))),
            ext.PRODUCT: issue.extension(ext.PRODUCT, der.write(der.IA5_STRING, product.encode())),
        }
        out |= {oid: issue.extension(oid, der.write_integer(number or 0)) for oid, number in spl.items()}
        if kind == VCEK:
            out[ext.HWID] = issue.extension(ext.HWID, self.hwid[:8] if turin else self.hwid)
        else:
            csp = der.write(der.IA5_STRING, (self.csp_id or "").encode())
            out[ext.CSP_ID] = issue.extension(ext.CSP_ID, csp)
        return out

    def issue_leaf(self, kind: int, tcb: Tcb, **changed: Any) -> bytes:  # noqa: ANN401 - keywords of issue.certificate
        """Issue a leaf; ``changed`` overrides the keywords of `issue.certificate` and ``issuer``, ``subject``,
        ``public``, ``extensions``, so that a test can have a correctly signed wrong one."""
        issuer = self.authorities.ask_issuer if kind == VCEK else self.authorities.asvk_issuer
        unit = hashlib.sha256(self.authorities.ark).hexdigest()[:8]
        subject = issue.name(ext.VCEK_NAME if kind == VCEK else ext.VLEK_NAME, ORGANIZATION, unit)
        public = self.key(kind, tcb).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        arguments: dict[str, Any] = {
            "issuer": issuer,
            "subject": subject,
            "public": public,
            "extensions": list(self.leaf_extensions(kind, tcb).values()),
        }
        return issue.certificate(**arguments | changed)

    def revocation_list(self, revoked: tuple[int, ...] = (), **changed: Any) -> bytes:  # noqa: ANN401
        """A revocation list of the ARK; ``changed`` overrides the keywords of `issue.revocation_list`."""
        arguments: dict[str, Any] = {"issuer": self.authorities.ark_issuer, "revoked": revoked}
        return issue.revocation_list(**arguments | changed)

    def publish(self) -> str:
        """Put the VCEK certificate into the public files, as the key distribution service would; its path."""
        path = leaf_path(self.line, self.hwid, self.reported)
        self.folder.public(path, lambda: self.certificate(VCEK))
        return path

    def launch(
        self,
        image: bytes = b"",
        *,
        host_data: bytes = bytes(32),
        policy: int = DEFAULT_POLICY,
        measurement: bytes | None = None,
        identity: "Identity | None" = None,
    ) -> "SnpGuest":
        """Launch ``image`` (firmware that ends below 4 GiB), or a guest with a given launch digest.

        Raises:
            LaunchRefused: as the firmware would: sizes, the policy bit that must be one, a wrong ID block.
        """
        if len(host_data) != 32 or not policy >> 17 & 1:
            raise LaunchRefused("host_data has 32 bytes, and policy bit 17 is one")
        if measurement is None:
            measurement = flash_digest(image).value
        identity = identity or Identity()
        if identity.launch_digest not in (None, measurement):
            raise LaunchRefused("the ID block is for another launch digest")
        if identity.policy not in (None, policy):
            raise LaunchRefused("the ID block is for another policy")
        return SnpGuest(self, measurement, host_data, policy, identity, self.random(32), self.current)


@dataclass(frozen=True, slots=True)
class Identity:
    """What an ID block, verified, puts into a guest (`simulated.id_block` makes it from signed blocks)."""

    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    author_key_en: bool = False
    guest_svn: int = 0
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    launch_digest: bytes | None = None
    policy: int | None = None


@dataclass(slots=True)
class SnpGuest:
    """A launched guest's context in the firmware: what may be asked for over the guest channel."""

    processor: SimulatedAmdSp
    measurement: bytes
    host_data: bytes
    policy: int
    identity: Identity
    report_id: bytes
    launch_tcb: Tcb
    tee: str = "snp"

    def kind(self, key: int = 0) -> int:
        """Which key signs for key selection 0 (VLEK if loaded, else VCEK), 1 (VCEK) or 2 (VLEK)."""
        if key == 2 and self.processor.csp_id is None:
            raise LaunchRefused("no VLEK is loaded")
        return VLEK if key == 2 or (key == 0 and self.processor.csp_id is not None) else VCEK

    def report(
        self,
        report_data: bytes,
        vmpl: int = 0,
        *,
        key: int = 0,
        caller_vmpl: int = 0,
        version: int | None = None,
        changed: Mapping[str, Any] | None = None,
    ) -> bytes:
        """A signed report. ``changed`` (tests only) overrides fields of the layout before the signature is made.

        Raises:
            LaunchRefused: a VMPL below the caller's, or report data that is not 64 bytes.
        """
        if len(report_data) != 64 or not caller_vmpl <= vmpl <= 3:
            raise LaunchRefused("report data has 64 bytes, and no VMPL below the caller's is reported")
        processor, kind = self.processor, self.kind(key)
        version = version or processor.report_version
        cpuid = _CPUID[processor.line] if version >= 3 else (0, 0, 0)
        masked = processor.mask_chip_id or kind == VLEK
        signing = 7 if processor.mask_chip_key else kind
        mit = processor.mit_vector if version >= 5 else 0
        fields: dict[str, Any] = {
            "version": version,
            "guest_svn": self.identity.guest_svn,
            "policy": self.policy,
            "family_id": self.identity.family_id,
            "image_id": self.identity.image_id,
            "vmpl": vmpl,
            "signature_algo": 1,
            "current_tcb": processor.current.to_bytes(),
            "platform_info": processor.platform_info,
            "flags": int(self.identity.author_key_en) | int(processor.mask_chip_key) << 1 | signing << 2,
            "report_data": report_data,
            "measurement": self.measurement,
            "host_data": self.host_data,
            "id_key_digest": self.identity.id_key_digest,
            "author_key_digest": self.identity.author_key_digest,
            "report_id": self.report_id,
            "report_id_ma": NO_AGENT,
            "reported_tcb": processor.reported.to_bytes(),
            "cpuid_family": cpuid[0],
            "cpuid_model": cpuid[1],
            "cpuid_stepping": cpuid[2],
            "chip_id": bytes(64) if masked else processor.hwid,
            "committed_tcb": processor.committed.to_bytes(),
            "current_version": bytes((40, 55, 1, 0)),
            "committed_version": bytes((40, 55, 1, 0)),
            "launch_tcb": self.launch_tcb.to_bytes(),
            "launch_mit_vector": mit,
            "current_mit_vector": mit,
        } | dict(changed or {})
        raw = build_report(**fields)
        if processor.mask_chip_key:
            return raw
        return sign_report(raw, processor.key(kind, processor.reported))

    def supplied(self, key: int = 0) -> tuple[Supplied, ...]:
        """The certificates that a host offers: leaf, ASK or ASVK, ARK."""
        kind, known = self.kind(key), self.processor.authorities
        leaf = Supplied("VCEK" if kind == VCEK else "VLEK", self.processor.certificate(kind))
        middle = known.ask if kind == VCEK else known.asvk
        return leaf, Supplied("ASK", middle), Supplied("ARK", known.ark)

    def certificates(self) -> bytes:
        """The certificate table of an extended report."""
        return write_table(self.supplied())

    def extended(self, report_data: bytes, room: int, vmpl: int = 0) -> tuple[bytes, bytes] | int:
        """Report and table, or the number of pages that the table needs when ``room`` bytes are too few."""
        table = self.certificates()
        if len(table) > room:
            return -(-len(table) // 4096)
        return self.report(report_data, vmpl), table

    def collect(self, report_data: bytes) -> dict[str, Any]:
        """Primary evidence for a broker, in the structured form of current clients."""
        return write_structured(self.report(report_data), self.supplied())

    def derived_key(
        self, select: int, *, root: int = 0, vmpl: int = 0, svn: int = 0, tcb: Tcb | None = None
    ) -> bytes:
        """32 bytes that depend on what ``select`` names: 0 policy, 1 image id, 2 family id, 3 measurement,
        4 guest svn, 5 TCB, 6 launch mitigation vector (bit numbers of GUEST_FIELD_SELECT)."""
        if svn > self.identity.guest_svn:
            raise LaunchRefused("a guest svn above the guest's own")
        parts = [
            self.policy.to_bytes(8, "little"),
            self.identity.image_id,
            self.identity.family_id,
            self.measurement,
            svn.to_bytes(4, "little"),
            (tcb or self.processor.reported).to_bytes(),
            self.processor.mit_vector.to_bytes(8, "little"),
        ]
        mixed = b"".join(bytes((n,)) + part for n, part in enumerate(parts) if select >> n & 1)
        label = b"derived" + bytes((root, vmpl)) + self.host_data
        return hmac.new(self.processor.chip_secret, label + mixed, hashlib.sha256).digest()


def sign_report(raw: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """``raw`` with its signature made anew."""
    r, s = decode_dss_signature(key.sign(raw[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384())))
    return raw[:SIGNED_BYTES] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + raw[SIGNED_BYTES + 144 :]
