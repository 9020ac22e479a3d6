"""What the command line is given: evidence of any form, certificates, a policy. Verifies nothing."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from cvars.attest import strict_json
from cvars.attest.certificates import load_any, load_crl, read_pem
from cvars.attest.der import DerError
from cvars.attest.evidence import Evidence, Supplied, Unreadable, read_snp, read_tdx
from cvars.attest.requirements import ReferenceSet, SnpRequirements, TdxRequirements
from cvars.attest.roots import TrustRoots
from cvars.attest.snp import hcl
from cvars.attest.snp.report import REPORT_BYTES
from cvars.errors import BadInput, UsageMistake

MAX_FILE: Final = 1024 * 1024
MAX_FILES: Final = 512


def read_file(path: Path) -> bytes:
    """A file of at most `MAX_FILE` bytes.

    Raises:
        UsageMistake: it cannot be read; BadInput: it is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as wrong:
        raise UsageMistake(f"{path}: {wrong.strerror or wrong}") from None
    if len(data) > MAX_FILE:
        raise BadInput(f"{path}: larger than {MAX_FILE} bytes")
    return data


def detect(data: bytes, supplied: tuple[Supplied, ...], collateral: bytes | None) -> Evidence:
    """Evidence of whichever kind ``data`` is: report, quote, HCL envelope, JSON, or any of these in base64."""
    if data[:4] == hcl.SIGNATURE or len(data) == REPORT_BYTES:
        return read_snp(data, supplied)
    if data.lstrip()[:1] == b"{":
        try:
            value = strict_json.loads(data)
        except strict_json.JsonError as wrong:
            return Unreadable("snp", "SNP-FMT", str(wrong))
        if isinstance(value, dict) and "quote" in value:
            return read_tdx(value, collateral)
        return read_snp(value, supplied)
    if data[:2] in (b"\x03\0", b"\x04\0", b"\x05\0") and data[2:4] == b"\x02\0":
        return read_tdx(data, collateral)
    try:
        return detect(base64.b64decode(b"".join(data.split()), validate=True), supplied, collateral)
    except (binascii.Error, RecursionError):
        return read_snp(data, supplied)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a folder holds: certificates that sign others, leaves, and revocation lists (DER)."""

    authorities: tuple[bytes, ...] = ()
    leaves: tuple[Supplied, ...] = ()
    crls: tuple[bytes, ...] = ()


def read_certificates(paths: Iterable[Path]) -> Certificates:
    """Sort the certificates and lists of these files and folders; other files are left alone."""
    authorities, leaves, crls = [], [], []
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    for file in [file for file in files if file.is_file()][:MAX_FILES]:
        data = read_file(file)
        try:
            for one in load_any(data):
                if one.may_sign_certificates:
                    authorities.append(one.der)
                else:
                    leaves.append(Supplied("unknown", one.der))
            continue
        except DerError:
            pass
        try:
            der = read_pem(data, label="X509 CRL")[0] if data.lstrip()[:5] == b"-----" else data
            load_crl(der)
            crls.append(der)
        except (DerError, IndexError):
            continue
    return Certificates(tuple(authorities), tuple(leaves), tuple(crls))


def with_authorities(roots: TrustRoots, found: Certificates) -> TrustRoots:
    """``roots`` that also know the folder's ARK, ASK and ASVK."""
    return roots.with_certificates(found.authorities)


def manifest_certificates(manifest: dict[str, Any], folder: Path) -> list[Path]:
    """Where a manifest's certificates lie: its files in a folder ``certs``, and such folders beside it."""
    named = [one.get("file", "") for one in manifest.get("files", ()) if isinstance(one, dict)]
    out = {(folder / name).parent for name in named if "certs" in Path(name).parts[:-1]}
    out |= {found for found in folder.glob("*/certs") if found.is_dir()} | {folder / "certs"}
    return sorted(path for path in out if path.is_dir())


def parse_time(text: str | None) -> datetime | None:
    """ISO 8601 with or without a zone (then UTC), or seconds since 1970.

    Raises:
        UsageMistake: neither.
    """
    if text is None:
        return None
    try:
        if text.isdigit():
            return datetime.fromtimestamp(int(text), UTC)
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise UsageMistake(f"not a time: {text}", hint="2026-03-01T12:00:00Z, or seconds since 1970") from None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EvidencePolicy:
    """The part of a policy document that is about evidence."""

    domains: tuple[str, ...]
    leaves: tuple[SnpRequirements | TdxRequirements, ...]
    references: dict[str, ReferenceSet]


def read_policy(path: Path, references: Path | None = None) -> EvidencePolicy:
    """``trust_domains`` and ``any_of`` of a policy file (YAML).

    Raises:
        BadInput: not YAML, no trust domain (ROOT-2), or a leaf that says what nobody here knows.
    """
    value = _yaml(path)
    domains, alternatives = value.get("trust_domains"), value.get("any_of")
    if not isinstance(domains, list) or not domains or not all(isinstance(one, str) for one in domains):
        raise BadInput(f"{path}: a policy names its trust_domains", hint="trust_domains: [amd, intel]")
    if not isinstance(alternatives, list) or not alternatives:
        raise BadInput(f"{path}: a policy has alternatives", hint="any_of: [{snp: {...}}, {tdx: {...}}]")
    leaves: list[SnpRequirements | TdxRequirements] = []
    kinds: dict[str, type[SnpRequirements] | type[TdxRequirements]] = {
        "snp": SnpRequirements,
        "tdx": TdxRequirements,
    }
    for number, one in enumerate(alternatives):
        if not isinstance(one, dict) or len(one) != 1 or next(iter(one)) not in kinds:
            raise BadInput(f"{path}: any_of[{number}] is neither snp nor tdx")
        name, body = next(iter(one.items()))
        try:
            leaves.append(kinds[name].model_validate(body))
        except ValidationError as wrong:
            raise BadInput(f"{path}: any_of[{number}].{name}: {_first(wrong)}") from None
    sets: dict[str, ReferenceSet] = {}
    for name, body in (_yaml(references) if references else {}).items():
        try:
            sets[str(name)] = ReferenceSet.model_validate(body)
        except ValidationError as wrong:
            raise BadInput(f"{references}: {name}: {_first(wrong)}") from None
    return EvidencePolicy(tuple(domains), tuple(leaves), sets)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(read_file(path))
    except yaml.YAMLError as wrong:
        raise BadInput(f"{path}: not YAML: {str(wrong).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a mapping belongs here")
    return value


def _first(wrong: ValidationError) -> str:
    one = wrong.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in one["loc"])
    return f"{where}: {one['msg']}" if where else str(one["msg"])
