"""A simulated TDX module and quoting enclave: quotes of version 4 and 5, their collateral. `attestation` 6.3."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cvars.attest import der
from cvars.attest.certificates import load_certificate, write_pem
from cvars.attest.measure.mrtd import flash_mrtd
from cvars.attest.simulated import issue
from cvars.attest.simulated.folder import Folder
from cvars.attest.simulated.issue import Issuer
from cvars.attest.tdx import eventlog
from cvars.attest.tdx.collateral import Collateral
from cvars.attest.tdx.pck import PLATFORM_CA, PROCESSOR_CA, SGX_EXTENSION
from cvars.attest.tdx.quote import (
    BODY_HEAD,
    BODY_TD10,
    BODY_TD15,
    ECDSA_P256,
    INTEL_QE,
    QUOTE_HEADER,
    SGX_REPORT,
    TD_REPORT,
    TD_REPORT_15_TAIL,
    TEE_TDX,
    build_quote,
    build_signature_data,
)

ORGANIZATION: Final = "SIMULATED HARDWARE - NOT INTEL"
URL: Final = "https://pcs.simulated.invalid"
ROOT_CA: Final = "Intel SGX Root CA"
PCK_NAME: Final = "Intel SGX PCK Certificate"
TCB_SIGNING: Final = "Intel SGX TCB Signing"
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DEFAULT_ATTRIBUTES: Final = 1 << 28  # SEPT_VE_DISABLE
DEFAULT_XFAM: Final = 0x602E7
_QE_SIGNER: Final = hashlib.sha256(b"simulated quoting enclave").digest()
_AUTH_DATA: Final = bytes(range(32))
_SERIALS: Final = {"ca": 0x5101, "pck": 0x5102, "tcb": 0x5103}


@dataclass(frozen=True, slots=True)
class Platform:
    """SVNs of a platform, as they are in its PCK certificate and its TD reports."""

    components: tuple[int, ...] = (2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
    pce_svn: int = 13
    tee_tcb_svn: bytes = bytes((5, 1, 2)) + bytes(13)  # module SVN, module major version, …
    tee_tcb_svn2: bytes | None = None  # None: the same as at launch
    qe_isv_svn: int = 6


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """r || s, big-endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(slots=True)
class SimulatedTdx:
    """One platform. Make it with `load_or_create`; change ``platform`` for another firmware state."""

    folder: Folder
    root: Issuer
    authority: Issuer
    signer: Issuer
    secret: bytes
    random: Callable[[int], bytes]
    clock: Callable[[], float]
    root_certificate: bytes
    authority_certificate: bytes
    signer_certificate: bytes
    platform: Platform = field(default_factory=Platform)

    @staticmethod
    def load_or_create(
        folder: Path,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        platform_ca: bool = True,
        chip: str = "platform",
    ) -> "SimulatedTdx":
        """The platform ``chip`` of the installation in ``folder``; ``platform_ca`` False uses the processor CA."""
        kept = Folder(folder)
        unit = kept.secret("installation", lambda: random(4)).hex()
        ca_name = PLATFORM_CA if platform_ca else PROCESSOR_CA
        ca_file = "platform-ca" if platform_ca else "processor-ca"

        def issuer(common_name: str, key: str) -> Issuer:
            return Issuer(issue.name(common_name, ORGANIZATION, unit), kept.ec_key(f"tdx/{key}.key"))

        root, authority = issuer(ROOT_CA, "root"), issuer(ca_name, ca_file)
        signer = issuer(TCB_SIGNING, "tcb-signing")

        def made(who: Issuer, serial: int, extensions: list[bytes]) -> Callable[[], bytes]:
            return lambda: issue.certificate(root, who.name, issue.spki(who.key), extensions, serial=serial)

        ca = issue.ca_extensions(f"{URL}/IntelSGXRootCA.der")
        usage = issue.extension("2.5.29.15", der.write(der.BIT_STRING, b"\x06\xc0"), critical=True)
        constraints = issue.extension("2.5.29.19", der.write(der.SEQUENCE), critical=True)
        return SimulatedTdx(
            folder=kept,
            root=root,
            authority=authority,
            signer=signer,
            secret=kept.secret(f"tdx/{chip}.secret", lambda: random(32)),
            random=random,
            clock=clock,
            root_certificate=kept.public("tdx/root.der", made(root, 0x5100, ca)),
            authority_certificate=kept.public(f"tdx/{ca_file}.der", made(authority, _SERIALS["ca"], ca)),
            signer_certificate=kept.public(
                "tdx/tcb-signing.der", made(signer, _SERIALS["tcb"], [usage, constraints])
            ),
        )

    @property
    def fmspc(self) -> bytes:
        """6 bytes; starts with 51A0 (6.1)."""
        return b"\x51\xa0" + hashlib.sha256(b"fmspc" + self.folder.secret("installation", bytes)).digest()[:4]

    @property
    def ppid(self) -> bytes:
        """16 bytes; starts with ``SIM-`` (6.1)."""
        return b"SIM-" + hashlib.sha256(b"ppid" + self.secret).digest()[:12]

    def _derived(self, purpose: bytes) -> ec.EllipticCurvePrivateKey:
        stretched = hmac.new(self.secret, purpose, hashlib.sha512).digest()
        return ec.derive_private_key(int.from_bytes(stretched, "big") % (P256_ORDER - 1) + 1, ec.SECP256R1())

    @property
    def pck_key(self) -> ec.EllipticCurvePrivateKey:
        """One key per platform and TCB."""
        return self._derived(
            b"pck" + bytes(self.platform.components) + self.platform.pce_svn.to_bytes(2, "little")
        )

    @property
    def attestation_key(self) -> ec.EllipticCurvePrivateKey:
        """The quoting enclave's key."""
        return self._derived(b"attestation key")

    def sgx_extension(self) -> bytes:
        """The value of the SGX extension of this platform's PCK."""
        base = SGX_EXTENSION

        def pair(name: str, value: bytes) -> bytes:
            return der.write(der.SEQUENCE, der.write_oid(f"{base}.{name}"), value)

        svns = [pair(f"2.{n}", der.write_integer(svn)) for n, svn in enumerate(self.platform.components, 1)]
        svns.append(pair("2.17", der.write_integer(self.platform.pce_svn)))
        svns.append(pair("2.18", der.write(der.OCTET_STRING, bytes(self.platform.components))))
        return der.write(
            der.SEQUENCE,
            pair("1", der.write(der.OCTET_STRING, self.ppid)),
            pair("2", der.write(der.SEQUENCE, *svns)),
            pair("3", der.write(der.OCTET_STRING, bytes(2))),
            pair("4", der.write(der.OCTET_STRING, self.fmspc)),
            pair("5", der.write(der.ENUMERATED, b"\x01")),
            pair("6", der.write(der.OCTET_STRING, hashlib.sha256(b"instance" + self.secret).digest()[:16])),
            pair("7", der.write(der.SEQUENCE, *(pair(f"7.{n}", b"\x01\x01\xff") for n in (1, 2, 3)))),
        )

    def pck(self, **changed: Any) -> bytes:  # noqa: ANN401 - keywords of issue.certificate
        """The PCK certificate (DER); ``changed`` overrides keywords of `issue.certificate`."""
        usage = issue.extension("2.5.29.15", der.write(der.BIT_STRING, b"\x06\xc0"), critical=True)
        constraints = issue.extension("2.5.29.19", der.write(der.SEQUENCE), critical=True)
        point = der.write(0xA0, der.write(0xA0, der.write(0x86, f"{URL}/sgx/certification/v4/pckcrl".encode())))
        arguments: dict[str, Any] = {
            "issuer": self.authority,
            "subject": issue.name(PCK_NAME, ORGANIZATION, "platform"),
            "public": issue.spki(self.pck_key),
            "extensions": [
                issue.extension("2.5.29.31", der.write(der.SEQUENCE, der.write(der.SEQUENCE, point))),
                usage,
                constraints,
                issue.extension(SGX_EXTENSION, self.sgx_extension()),
            ],
            "serial": _SERIALS["pck"],
        }
        return issue.certificate(**arguments | changed)

    def chain(self, pck: bytes | None = None) -> bytes:
        """The PEM chain of a quote: PCK, CA, root."""
        parts = (pck or self.pck(), self.authority_certificate, self.root_certificate)
        return b"".join(write_pem(part) for part in parts)

    def launch(
        self,
        image: bytes = b"",
        *,
        mr_config_id: bytes = bytes(48),
        measurement: bytes | None = None,
        attributes: int = DEFAULT_ATTRIBUTES,
        xfam: int = DEFAULT_XFAM,
    ) -> "SimulatedTd":
        """Build a TD from ``image`` (firmware that ends below 4 GiB), or with a given MRTD."""
        if len(mr_config_id) != 48:
            raise ValueError("mr_config_id has 48 bytes")
        return SimulatedTd(self, measurement or flash_mrtd(image), mr_config_id, attributes, xfam)

    def collateral(
        self,
        *,
        status: str = "UpToDate",
        module_status: str = "UpToDate",
        qe_status: str = "UpToDate",
        advisories: tuple[str, ...] = (),
        issued: datetime | None = None,
        evaluation: int = 17,
        revoked_pck: tuple[int, ...] = (),
        revoked_root: tuple[int, ...] = (),
        tcb_info: Mapping[str, Any] | None = None,
        qe_identity: Mapping[str, Any] | None = None,
    ) -> Collateral:
        """A complete set, signed. The last two override members of the two documents before they are signed."""
        now = datetime.fromtimestamp(self.clock(), UTC).replace(microsecond=0)
        issued = issued or now - timedelta(days=1)
        dates = {"issueDate": _iso(issued), "nextUpdate": _iso(issued + timedelta(days=30))}
        info = self._tcb_info(status, module_status, advisories) | dates
        qe = _qe_identity(qe_status) | dates
        info["tcbEvaluationDataNumber"] = qe["tcbEvaluationDataNumber"] = evaluation
        info_raw = json.dumps(info | dict(tcb_info or {}), separators=(",", ":")).encode()
        qe_raw = json.dumps(qe | dict(qe_identity or {}), separators=(",", ":")).encode()
        signing_chain = write_pem(self.signer_certificate) + write_pem(self.root_certificate)
        period = {"this_update": issued, "next_update": issued + timedelta(days=30)}
        assert isinstance(self.signer.key, ec.EllipticCurvePrivateKey)
        return Collateral(
            pck_crl_issuer_chain=write_pem(self.authority_certificate) + write_pem(self.root_certificate),
            root_ca_crl=issue.revocation_list(self.root, revoked_root, **period),
            pck_crl=issue.revocation_list(self.authority, revoked_pck, **period),
            tcb_info_issuer_chain=signing_chain,
            tcb_info=info_raw,
            tcb_info_signature=_sign(self.signer.key, info_raw),
            qe_identity_issuer_chain=signing_chain,
            qe_identity=qe_raw,
            qe_identity_signature=_sign(self.signer.key, qe_raw),
        )

    def _tcb_info(self, status: str, module_status: str, advisories: tuple[str, ...]) -> dict[str, Any]:
        """Level 1 is what this platform has (with ``status``); level 2 is an old one, out of date."""
        zero = "00" * 48
        module = {"mrsigner": zero, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        svn, major = self.platform.tee_tcb_svn[:2]
        old = {"isvsvn": 0}
        module_levels = [
            {"tcb": {"isvsvn": svn}, "tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": module_status},
            {"tcb": old, "tcbDate": "2023-08-09T00:00:00Z", "tcbStatus": "OutOfDate"},
        ]
        tdx = [*self.platform.tee_tcb_svn]
        level = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": n} for n in self.platform.components],
                "pcesvn": self.platform.pce_svn,
                "tdxtcbcomponents": [{"svn": n} for n in tdx],
            },
            "tcbDate": "2025-08-13T00:00:00Z",
            "tcbStatus": status,
        }
        if advisories:
            level["advisoryIDs"] = list(advisories)
        lowest = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": 0}] * 16,
                "pcesvn": 5,
                "tdxtcbcomponents": [{"svn": 0}] * 16,
            },
            "tcbDate": "2018-01-04T00:00:00Z",
            "tcbStatus": "OutOfDate",
            "advisoryIDs": ["INTEL-SA-00106"],
        }
        return {
            "id": "TDX",
            "version": 3,
            "issueDate": "",
            "nextUpdate": "",
            "fmspc": self.fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tdxModule": module,
            "tdxModuleIdentities": [
                {"id": f"TDX_{number:02X}"} | module | {"tcbLevels": module_levels} for number in {1, major or 1}
            ],
            "tcbLevels": [level, lowest],
        }


def _qe_identity(status: str) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": "",
        "nextUpdate": "",
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [
            {"tcb": {"isvsvn": 6}, "tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": status},
            {"tcb": {"isvsvn": 2}, "tcbDate": "2023-08-09T00:00:00Z", "tcbStatus": "OutOfDate"},
        ],
    }


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class SimulatedTd:
    """A TD: its registers, and what the quoting enclave says about them."""

    processor: SimulatedTdx
    measurement: bytes
    mr_config_id: bytes
    attributes: int
    xfam: int
    rtmr: list[bytes] = field(default_factory=lambda: [bytes(48)] * 4)
    events: list[eventlog.Event] = field(default_factory=list)
    tee: str = "tdx"

    def extend(self, index: int, data: bytes, kind: int = 0x0D) -> None:
        """RTMR extend with SHA-384 of ``data``, and its entry in the event log."""
        digest = hashlib.sha384(data).digest()
        self.rtmr[index] = hashlib.sha384(self.rtmr[index] + digest).digest()
        self.events.append(eventlog.Event(index + 1, kind, digest, data))

    def event_log(self) -> bytes:
        """The log so far."""
        return eventlog.write(self.events)

    def quote(
        self,
        report_data: bytes,
        version: int = 4,
        *,
        body_type: int | None = None,
        header: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        qe: Mapping[str, Any] | None = None,
        pck: bytes | None = None,
        auth_data: bytes = _AUTH_DATA,
        padding: int = 0,
    ) -> bytes:
        """A signed quote; the mappings (tests only) override fields before the signatures are made.

        Version 5 carries a TD report 1.5 unless ``body_type`` says 2.
        """
        if len(report_data) != 64:
            raise ValueError("report data has 64 bytes")
        processor, platform = self.processor, self.processor.platform
        kind = body_type or (BODY_TD15 if version == 5 else BODY_TD10)
        fields: dict[str, Any] = {
            "tee_tcb_svn": platform.tee_tcb_svn,
            "mr_seam": hashlib.sha384(b"simulated TDX module").digest(),
            "mr_signer_seam": bytes(48),
            "seam_attributes": 0,
            "td_attributes": self.attributes,
            "xfam": self.xfam,
            "mr_td": self.measurement,
            "mr_config_id": self.mr_config_id,
            "mr_owner": bytes(48),
            "mr_owner_config": bytes(48),
            "rtmr": self.rtmr,
            "report_data": report_data,
            "tee_tcb_svn2": platform.tee_tcb_svn2 or platform.tee_tcb_svn,
            "mr_service_td": bytes(48),
        } | dict(body or {})
        raw = bytes(TD_REPORT.build(fields)) + (TD_REPORT_15_TAIL.build(fields) if kind == BODY_TD15 else b"")
        head: dict[str, Any] = {
            "version": version,
            "attestation_key_type": ECDSA_P256,
            "tee_type": TEE_TDX,
            "reserved": bytes(4),
            "qe_vendor_id": INTEL_QE,
            "user_data": bytes(20),
        } | dict(header or {})
        signed = bytes(QUOTE_HEADER.build(head)) + (BODY_HEAD.pack(kind, len(raw)) if version == 5 else b"") + raw
        numbers = processor.attestation_key.public_key().public_numbers()
        key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        enclave: dict[str, Any] = {
            "cpu_svn": bytes(platform.components),
            "misc_select": 0,
            "reserved1": bytes(28),
            "attributes": bytes.fromhex("11000000000000000000000000000000"),
            "mr_enclave": hashlib.sha256(b"simulated QE").digest(),
            "reserved2": bytes(32),
            "mr_signer": _QE_SIGNER,
            "reserved3": bytes(96),
            "isv_prod_id": 2,
            "isv_svn": platform.qe_isv_svn,
            "reserved4": bytes(60),
            "report_data": hashlib.sha256(key + auth_data).digest() + bytes(32),
        } | dict(qe or {})
        enclave_raw = bytes(SGX_REPORT.build(enclave))
        data = build_signature_data(
            signature=_sign(processor.attestation_key, signed),
            key=key,
            qe_report=enclave_raw,
            qe_signature=_sign(processor.pck_key, enclave_raw),
            auth_data=auth_data,
            pck_chain=processor.chain(pck),
        )
        return build_quote(signed, data, padding)

    def collateral(self) -> bytes:
        """The nine-member JSON for this TD's platform."""
        return self.processor.collateral().to_json()

    def collect(self, report_data: bytes) -> dict[str, Any]:
        """Primary evidence for a broker, with its collateral."""
        log = base64.b64encode(self.event_log()).decode() if self.events else None
        quote = base64.b64encode(self.quote(report_data)).decode()
        return {"quote": quote, "cc_eventlog": log, "collateral": json.loads(self.collateral())}


def serial_of(certificate: bytes) -> int:
    """The serial number, for revocation."""
    return load_certificate(certificate).serial
