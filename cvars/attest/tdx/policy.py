"""Are the claims of an authentic TDX quote acceptable? `attestation` 3.2 from TDX-STATUS on.

TD attributes come before the TCB status: they are the guest's own, and a debug TD is refused as one (K30).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cvars.attest.policy import any_of_lists, in_measurements, matches_init_data
from cvars.attest.requirements import In, References, TdxRequirements
from cvars.attest.result import Refused, Rule, Skipped, Stage
from cvars.attest.tdx.quote import TdReport
from cvars.attest.tdx.tcb import QeIdentity, Status, TcbInfo

_OUT_OF_DATE: Final = ("OutOfDate", "OutOfDateConfigurationNeeded")
_DEBUG_GROUP: Final = 0xFF


@dataclass(frozen=True, slots=True)
class Claimed:
    """An authentic TD report with its TCB status, and what is required of them."""

    td: TdReport
    status: Status
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    at: datetime
    want: TdxRequirements
    init_data: bytes | None  # expected mr_config_id, 48 bytes
    references: References


def _attributes(claimed: Claimed) -> str:
    want, td = claimed.want.attributes, claimed.td
    if td.attribute("debug") and not want.debug:
        raise Refused("ATTRIBUTES.DEBUG is 1, policy wants 0")
    if td.td_attributes & _DEBUG_GROUP & ~1:
        raise Refused(f"ATTRIBUTES bits 7:1 are {td.td_attributes & _DEBUG_GROUP:#x}, not 0")
    for name in type(want).model_fields:
        wanted = getattr(want, name)
        if name != "debug" and wanted != "any" and td.attribute(name) != wanted:
            raise Refused(f"ATTRIBUTES.{name.upper()} is {int(td.attribute(name))}, policy wants {int(wanted)}")
    return f"TD attributes {td.td_attributes:#x}"


def _status(claimed: Claimed) -> str:
    want, status = claimed.want, claimed.status
    if status.status == "Revoked":
        raise Refused("Revoked")
    if status.status not in want.tcb_status:
        end = status.date + timedelta(days=want.grace_days)
        if status.status not in _OUT_OF_DATE or claimed.at >= end:
            raise Refused(f"{status.status}, the policy accepts {', '.join(want.tcb_status)}")
    tolerated = want.tolerate_advisories
    if status.status != "UpToDate" and tolerated is not None:
        unknown = [one for one in status.advisories if one not in tolerated]
        if unknown:
            raise Refused(f"{status.status} with {', '.join(unknown[:8])}, which the policy does not tolerate")
    return status.status


def _evaluation(claimed: Claimed) -> str:
    lowest = min(claimed.tcb_info.evaluation, claimed.qe_identity.evaluation)
    if lowest < claimed.want.min_eval_number:
        raise Refused(f"tcbEvaluationDataNumber {lowest}, policy wants {claimed.want.min_eval_number}")
    return f"tcbEvaluationDataNumber {lowest}"


def _xfam(claimed: Claimed) -> str:
    want, xfam = claimed.want.xfam, claimed.td.xfam
    if xfam & 3 != 3:
        raise Refused(f"XFAM {xfam:#x} lacks bits 0 and 1")
    if want is not None and want.exact is not None and xfam != _number(want.exact):
        raise Refused(f"XFAM {xfam:#x} is not {_number(want.exact):#x}")
    if want is not None and want.mask is not None and xfam & ~_number(want.mask):
        raise Refused(f"XFAM {xfam:#x} has bits outside {_number(want.mask):#x}")
    return f"XFAM {xfam:#x}"


def _number(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")


def _measurements(claimed: Claimed) -> str:
    want, td = claimed.want, claimed.td
    in_measurements(td.mr_td, want.mr_td_in, claimed.references, "MRTD")
    registers = (want.rtmr.r0, want.rtmr.r1, want.rtmr.r2, want.rtmr.r3)
    for index, (found, allowed) in enumerate(zip(td.rtmr, registers, strict=True)):
        any_of_lists(found, allowed.in_ if isinstance(allowed, In) else allowed, f"RTMR{index}")
    if want.mr_config_id_in == "init-data":
        matches_init_data(td.mr_config_id, claimed.init_data, "MRCONFIGID")
    else:
        any_of_lists(td.mr_config_id, want.mr_config_id_in, "MRCONFIGID")
    any_of_lists(td.mr_owner, want.mr_owner_in, "MROWNER")
    any_of_lists(td.mr_owner_config, want.mr_owner_config_in, "MROWNERCONFIG")
    any_of_lists(td.mr_service_td or bytes(48), want.mr_service_td_in, "MRSERVICETD")
    return "MRTD, RTMRs, MRCONFIGID and owner as the policy wants them"


def _module_measurement(claimed: Claimed) -> str:
    allowed = claimed.want.mr_seam_in
    if allowed is None:
        raise Skipped("the policy has no list of modules")
    return any_of_lists(claimed.td.mr_seam, allowed, "MRSEAM")


RULES: Final[tuple[Rule[Claimed], ...]] = (
    Rule("TDX-ATTR", Stage.POLICY, _attributes),
    Rule("TDX-STATUS", Stage.POLICY, _status),
    Rule("TDX-EVAL", Stage.POLICY, _evaluation),
    Rule("TDX-XFAM", Stage.POLICY, _xfam),
    Rule("TDX-MR", Stage.POLICY, _measurements),
    Rule("TDX-MRSEAM", Stage.POLICY, _module_measurement),
)
