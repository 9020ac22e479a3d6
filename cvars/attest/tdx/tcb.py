"""TCB info and QE identity: shape, level matching, merging of statuses. Source: Intel PCS v4; `attestation` 3.2.

What is parsed here was signed by the TCB signing key over its exact bytes; parsing comes after that check.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from cvars.attest import strict_json
from cvars.attest.strict_json import JsonError, array, hexadecimal, integer, text

#: best to worst
STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
_RANK: Final = {status: rank for rank, status in enumerate(STATUSES)}
MAX_LEVELS: Final = 64
COMPONENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Status:
    """A TCB status with the date of its level and its advisories."""

    status: str
    date: datetime
    advisories: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """0 is best."""
        return _RANK[self.status]


def worst(parts: Iterable[Status]) -> Status:
    """The worst status, the oldest date, all advisories (TDX-MERGE)."""
    listed = list(parts)
    advisories = dict.fromkeys(one for part in listed for one in part.advisories)
    top = max(listed, key=lambda part: part.rank)
    return Status(top.status, min(part.date for part in listed), tuple(sorted(advisories)))


@dataclass(frozen=True, slots=True)
class Level:
    """One level of TCB info; component lists have as many entries as the document gave."""

    sgx: tuple[int, ...]
    tdx: tuple[int, ...]
    pce_svn: int
    status: Status


@dataclass(frozen=True, slots=True)
class SvnLevel:
    """One level of a module or QE identity."""

    isv_svn: int
    status: Status


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """What the TDX module must be: ``levels`` only in `TDX_nn` entries."""

    id: str
    mr_signer: bytes
    attributes: int
    mask: int
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """TCB info, version 3 (id ``TDX``; ``SGX`` for diagnostics)."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation: int
    module: ModuleIdentity | None
    modules: tuple[ModuleIdentity, ...]
    levels: tuple[Level, ...]

    def module_for(self, major: int) -> ModuleIdentity | None:
        """``tdxModule`` for major version 0, else the entry ``TDX_<major, 2 hex digits>`` (TDX-SEAM)."""
        if major == 0:
            return self.module
        return next((m for m in self.modules if m.id.upper() == f"TDX_{major:02X}"), None)


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """Identity of the quoting enclave, version 2 (id ``TD_QE``)."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    evaluation: int
    misc_select: int
    misc_mask: int
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[SvnLevel, ...]


@lru_cache(maxsize=32)
def parse_tcb_info(raw: bytes) -> TcbInfo:
    """Parse the inner object.

    Raises:
        JsonError: not the shape of TCB info.
    """
    value = _object(strict_json.loads(raw))
    module = None
    if "tdxModule" in value:
        module = _module("", value["tdxModule"])
    modules = tuple(
        _module(text(_object(one).get("id"), "module id"), one)
        for one in array(value.get("tdxModuleIdentities", []), "tdxModuleIdentities")
    )
    return TcbInfo(
        id=text(value.get("id"), "id"),
        version=integer(value.get("version"), 0, 255, "version"),
        issued=_time(value.get("issueDate")),
        next_update=_time(value.get("nextUpdate")),
        fmspc=hexadecimal(value.get("fmspc"), 6, "fmspc"),
        pce_id=hexadecimal(value.get("pceId"), 2, "pceId"),
        evaluation=integer(value.get("tcbEvaluationDataNumber"), 0, 1 << 31, "tcbEvaluationDataNumber"),
        module=module,
        modules=modules,
        levels=tuple(_level(one) for one in _levels(value)),
    )


@lru_cache(maxsize=32)
def parse_qe_identity(raw: bytes) -> QeIdentity:
    """Parse the inner object.

    Raises:
        JsonError: not the shape of an enclave identity.
    """
    value = _object(strict_json.loads(raw))
    return QeIdentity(
        id=text(value.get("id"), "id"),
        version=integer(value.get("version"), 0, 255, "version"),
        issued=_time(value.get("issueDate")),
        next_update=_time(value.get("nextUpdate")),
        evaluation=integer(value.get("tcbEvaluationDataNumber"), 0, 1 << 31, "tcbEvaluationDataNumber"),
        misc_select=int.from_bytes(hexadecimal(value.get("miscselect"), 4, "miscselect"), "little"),
        misc_mask=int.from_bytes(hexadecimal(value.get("miscselectMask"), 4, "miscselectMask"), "little"),
        attributes=hexadecimal(value.get("attributes"), 16, "attributes"),
        attributes_mask=hexadecimal(value.get("attributesMask"), 16, "attributesMask"),
        mr_signer=hexadecimal(value.get("mrsigner"), 32, "mrsigner"),
        isv_prod_id=integer(value.get("isvprodid"), 0, 65535, "isvprodid"),
        levels=tuple(_svn_level(one) for one in _levels(value)),
    )


def _object(value: Any) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise JsonError("an object belongs here")
    return value


def _levels(value: dict[str, Any]) -> list[Any]:
    levels = array(value.get("tcbLevels"), "tcbLevels")
    if len(levels) > MAX_LEVELS:
        raise JsonError(f"more than {MAX_LEVELS} TCB levels")
    return levels


def _module(name: str, value: Any) -> ModuleIdentity:  # noqa: ANN401
    found = _object(value)
    return ModuleIdentity(
        id=name,
        mr_signer=hexadecimal(found.get("mrsigner"), 48, "mrsigner"),
        attributes=int.from_bytes(hexadecimal(found.get("attributes"), 8, "attributes"), "little"),
        mask=int.from_bytes(hexadecimal(found.get("attributesMask"), 8, "attributesMask"), "little"),
        levels=tuple(_svn_level(one) for one in _levels(found)) if name else (),
    )


def _svn_level(value: Any) -> SvnLevel:  # noqa: ANN401
    found = _object(value)
    return SvnLevel(integer(_object(found.get("tcb")).get("isvsvn"), 0, 65535, "isvsvn"), _status(found))


def _level(value: Any) -> Level:  # noqa: ANN401
    found = _object(value)
    tcb = _object(found.get("tcb"))
    tdx = tcb.get("tdxtcbcomponents", [])
    return Level(
        sgx=_components(tcb.get("sgxtcbcomponents")),
        tdx=_components(tdx),
        pce_svn=integer(tcb.get("pcesvn"), 0, 65535, "pcesvn"),
        status=_status(found),
    )


def _components(value: Any) -> tuple[int, ...]:  # noqa: ANN401
    listed = array(value, "components")
    if len(listed) > MAX_LEVELS:
        raise JsonError("too many components")
    return tuple(integer(_object(one).get("svn"), 0, 255, "svn") for one in listed)


def _status(found: dict[str, Any]) -> Status:
    status = found.get("tcbStatus")
    if status not in _RANK:
        raise JsonError("an unknown tcbStatus")
    advisories = array(found.get("advisoryIDs", []), "advisoryIDs")
    return Status(status, _time(found.get("tcbDate")), tuple(text(one, "advisory id") for one in advisories))


def _time(value: Any) -> datetime:  # noqa: ANN401
    """``YYYY-MM-DDThh:mm:ssZ`` and nothing else."""
    if isinstance(value, str) and len(value) == 20 and value[10] == "T" and value.endswith("Z"):
        try:
            return datetime.fromisoformat(value[:-1]).replace(tzinfo=UTC)
        except ValueError:
            pass
    raise JsonError("not a time")


def match_level(
    levels: Iterable[Level],
    *,
    sgx: tuple[int, ...],
    pce_svn: int,
    tdx: bytes | None,
) -> Level | None:
    """The first level that the platform reaches (TDX-TCB).

    With a module of major version above 0, indexes 0 and 1 of ``tdx`` are the module's own business (TDX-MODULE).
    """
    first = 0 if tdx is None or tdx[1] == 0 else 2
    for level in levels:
        if (
            pce_svn >= level.pce_svn
            and all(have >= want for have, want in zip(sgx, level.sgx, strict=True))
            and (
                tdx is None or all(have >= want for have, want in zip(tdx[first:], level.tdx[first:], strict=True))
            )
        ):
            return level
    return None


def match_svn(levels: Iterable[SvnLevel], isv_svn: int) -> SvnLevel | None:
    """The first level with isvsvn <= ``isv_svn``."""
    return next((level for level in levels if level.isv_svn <= isv_svn), None)
