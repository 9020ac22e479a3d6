"""SVSM protocols: core, attestation, UEFI MM. vTPM and APIC are absent (svsm-calls 3.3, 3.4)."""

from typing import Final

from svsm_bridge.abi import ATTESTATION, CORE, UEFI_MM
from svsm_bridge.dispatcher import Handler
from svsm_bridge.protocols import attestation, core, uefi_mm

PROTOCOLS: Final[dict[int, dict[int, Handler]]] = {
    CORE: core.CALLS,
    ATTESTATION: attestation.CALLS,
    UEFI_MM: uefi_mm.CALLS,
}
