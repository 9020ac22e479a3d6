"""Where implementations differ, one named option each: C1..C19 of svsm-calls 3.7.

No profile re-creates a security defect of another implementation.
"""

from dataclasses import dataclass, replace
from typing import Final

from svsm_bridge.errors import SvsmResult

_ADDRESS: Final = int(SvsmResult.INVALID_ADDRESS)
_PARAMETER: Final = int(SvsmResult.INVALID_PARAMETER)


@dataclass(frozen=True, slots=True)
class BridgeProfile:
    """The choice points; the defaults are this project's."""

    name: str = "default"
    c1_pending_only_one: bool = False  #: pending = exactly 1, else any non-zero value
    c2_remap_bad_address: int = _ADDRESS
    c3_unknown_attestation_call: int = int(SvsmResult.UNSUPPORTED_CALL)
    c4_remap_to_itself: int = int(SvsmResult.SUCCESS)
    c5_list_not_accessible: int = _ADDRESS
    c6_not_zeroed_from: int = 0xA0000  #: .. 0xFFFFF may be read-only ROM
    c7_delete_waits: bool = False
    c8_operation_anywhere: bool = False  #: misaligned and page-crossing operations are accepted
    c9_unknown_service_is_empty: bool = False
    c10_certificates_full_size: bool = False
    c11_report_failed: int = int(SvsmResult.INVALID_REQUEST)
    c12_touched_bytes_only: bool = False
    c13_unknown_mm_guid: int = int(SvsmResult.INVALID_REQUEST)
    c14_create_misaligned: int = _ADDRESS
    c15_bad_entry_size: int = _PARAMETER
    c16_misaligned_buffer: int = _PARAMETER
    c17_zero_outputs_on_error: bool = False
    c18_compare_sev_features: bool = True
    c19_nonce_any_length: bool = False


DEFAULT: Final = BridgeProfile()

COCONUT: Final = replace(
    DEFAULT,
    name="coconut",
    c3_unknown_attestation_call=int(SvsmResult.UNSUPPORTED_PROTOCOL),
    c4_remap_to_itself=_ADDRESS,
    c7_delete_waits=True,
    c8_operation_anywhere=True,
    c10_certificates_full_size=True,
    c12_touched_bytes_only=True,
)

LINUX_SVSM: Final = replace(
    DEFAULT,
    name="linux-svsm",
    c1_pending_only_one=True,
    c2_remap_bad_address=_PARAMETER,
    c5_list_not_accessible=_PARAMETER,
    c6_not_zeroed_from=0xC0000,
    c9_unknown_service_is_empty=True,
    c11_report_failed=0x80001000,
    c14_create_misaligned=_PARAMETER,
    c15_bad_entry_size=_ADDRESS,
    c16_misaligned_buffer=_ADDRESS,
    c17_zero_outputs_on_error=True,
    c18_compare_sev_features=False,
    c19_nonce_any_length=True,
)

PROFILES: Final = {profile.name: profile for profile in (DEFAULT, COCONUT, LINUX_SVSM)}
