"""The processor under the component: simulated, bit-exact, and marked in every certificate (D12).

A launch measures the component's image and binds init-data: HOST_DATA on SEV-SNP, MRCONFIGID on TDX.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cvars.attest.measure.digest import flash_digest
from cvars.attest.measure.mrtd import flash_mrtd
from cvars.attest.simulated.amd_sp import SimulatedAmdSp, SnpGuest
from cvars.attest.simulated.tdx_module import SimulatedTd, SimulatedTdx
from cvars.component.image import component_image
from cvars.release.initdata import InitData

TEES: Final = ("snp", "tdx")


class SimulatedHardware:
    """One launched guest on a simulated platform: what `release.client` asks for evidence."""

    simulated: Final = True

    def __init__(self, tee: str, launched: SnpGuest | SimulatedTd) -> None:
        self.tee = tee
        self._launched = launched

    def collect(self, report_data: bytes) -> Mapping[str, Any]:
        """Primary evidence (JSON) over 64 bytes of report data: a report or quote with its certificates."""
        return self._launched.collect(report_data)

    @property
    def reports(self) -> SnpGuest | None:
        """The source of bare reports for the guest's attestation calls; None on TDX (S34)."""
        return self._launched if isinstance(self._launched, SnpGuest) else None


def simulated_hardware(
    tee: str,
    folder: Path,
    init_data: InitData,
    *,
    random: Callable[[int], bytes] = secrets.token_bytes,
    clock: Callable[[], float] = time.time,
) -> SimulatedHardware:
    """Launch the component on the platform kept in ``folder`` (made on first use, mode 0700)."""
    image = component_image()
    if tee == "snp":
        processor = SimulatedAmdSp.load_or_create(folder, random=random, clock=clock)
        return SimulatedHardware(tee, processor.launch(image, host_data=init_data.host_data))
    module = SimulatedTdx.load_or_create(folder, random=random, clock=clock)
    return SimulatedHardware(tee, module.launch(image, mr_config_id=init_data.mr_config_id))


def launch_measurement(tee: str) -> bytes:
    """MEASUREMENT (SNP) or MRTD (TDX) of this component, 48 bytes."""
    image = component_image()
    return flash_digest(image).value if tee == "snp" else flash_mrtd(image)


def publish_roots(
    folder: Path,
    broker: Path,
    tees: Sequence[str] = TEES,
    *,
    random: Callable[[int], bytes] = secrets.token_bytes,
    clock: Callable[[], float] = time.time,
) -> None:
    """Make the platform in ``folder`` and give its public roots to the broker in ``broker``: certificates only."""
    if "snp" in tees:
        SimulatedAmdSp.load_or_create(folder, random=random, clock=clock)
    if "tdx" in tees:
        SimulatedTdx.load_or_create(folder, random=random, clock=clock)
    shutil.copytree(folder / "public", broker / "simulated-roots", dirs_exist_ok=True)
