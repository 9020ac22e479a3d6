"""`cvars attest`: look at evidence, verify it, measure images, make simulated evidence."""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cvars.cli.output import (
    SIMULATED_NOTE,
    JsonOption,
    QuietOption,
    VerboseOption,
    answer,
    emit,
    say,
    table,
)
from cvars.errors import BadInput, OutsideFailure, UsageMistake

if TYPE_CHECKING:
    from cvars.attest import AttestationResult, Evidence, TrustRoots
    from cvars.attest.inputs import Certificates
    from cvars.attest.measure.snp import Machine

app = typer.Typer(no_args_is_help=True, help="Attestation evidence: inspect, verify, measure, simulate.")

EvidenceArgument = Annotated[
    Path, typer.Argument(help="Report, quote, HCL envelope or JSON evidence; - reads standard input.")
]
CertsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--certs", exists=True, help="Certificates and revocation lists (file or folder).", show_default=False
    ),
]
CollateralOption = Annotated[
    Path | None,
    typer.Option("--collateral", exists=True, dir_okay=False, help="TDX collateral (nine-member JSON)."),
]
AtOption = Annotated[str | None, typer.Option("--at", help="Time to verify at (default: now).", metavar="TIME")]
SimulationOption = Annotated[bool, typer.Option("--simulation", help="Also accept roots of simulated hardware.")]
RootsOption = Annotated[
    Path | None,
    typer.Option(
        "--roots", help="Public files of simulated hardware; needs --simulation.", envvar="CVARS_ATTEST_ROOTS"
    ),
]
_SIMULATED_FOLDER: Final = "simulated-hardware"


@app.command()
def inspect(
    evidence: EvidenceArgument,
    certs: CertsOption = None,
    collateral: CollateralOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Print every field by its specification name. Verifies nothing.

    Example: cvars attest inspect report.bin
    """
    from cvars.attest.describe import describe  # noqa: PLC0415
    from cvars.attest.inputs import read_certificates  # noqa: PLC0415

    found = _evidence(evidence, read_certificates(certs or []), collateral)
    fields = describe(found)
    if fields is None:
        raise BadInput(f"{evidence}: {getattr(found, 'detail', 'not evidence')}")
    for name, value in fields.items():
        say(f"{name:24} {value}")
    say("Nothing was verified: see cvars attest verify.")
    emit("cvars.attest.inspect/1", {"tee": found.tee, "fields": fields})


@app.command()
def verify(
    evidence: Annotated[
        Path | None, typer.Argument(help="Report, quote, HCL envelope or JSON evidence; - reads standard input.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", exists=True, dir_okay=False, help="Run a manifest of many cases.")
    ] = None,
    certs: CertsOption = None,
    collateral: CollateralOption = None,
    at: AtOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", exists=True, dir_okay=False, help="Policy to appraise with (YAML).")
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--references", exists=True, dir_okay=False, help="Reference values (YAML).")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", help="Expected report data, 64 bytes.", metavar="HEX")
    ] = None,
    init_data: Annotated[
        str | None, typer.Option("--init-data", help="Expected digest of the init-data.", metavar="HEX")
    ] = None,
    crl: Annotated[
        str, typer.Option("--crl", help="SNP revocation: require, if-present or ignore.")
    ] = "if-present",
    simulation: SimulationOption = False,
    roots: RootsOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Check signature, chain, TCB and policy, offline. Exit code 0: accepted, 1: refused.

    Example: cvars attest verify report.bin --certs ./certs --policy policy.yaml
    """
    from cvars.attest.inputs import read_certificates, with_authorities  # noqa: PLC0415

    if (evidence is None) == (manifest is None):
        raise UsageMistake("give evidence or --manifest, not both", hint="see: cvars attest verify --help")
    trusted = _roots(simulation=simulation, folder=roots)
    found = read_certificates(certs or [])
    trusted = with_authorities(trusted, found)
    if manifest is not None:
        _manifest(manifest, trusted)
    else:
        assert evidence is not None
        result = _verified(_evidence(evidence, found, collateral), trusted, at, report_data, crl)
        result = _appraised(result, policy, references, init_data, simulation=simulation)
        _report(str(evidence), result, appraised=policy is not None)


def _evidence(path: Path, found: "Certificates", collateral: Path | None) -> "Evidence":
    from cvars.attest.evidence import Supplied  # noqa: PLC0415
    from cvars.attest.inputs import MAX_FILE, detect, read_file  # noqa: PLC0415

    data = sys.stdin.buffer.read(MAX_FILE) if str(path) == "-" else read_file(path)
    supplied = (*found.leaves, *(Supplied("CRL", one) for one in found.crls))
    return detect(data, supplied, read_file(collateral) if collateral else None)


def _roots(*, simulation: bool, folder: Path | None) -> "TrustRoots":
    """Production pins; simulated roots only when --simulation asked for them (ROOT-3)."""
    from cvars.attest import TrustRoots, load_simulated, with_simulated  # noqa: PLC0415

    if folder is not None:
        return load_simulated(folder, simulation=simulation, origin=f"{folder}")
    if simulation:
        return with_simulated(TrustRoots.production(), (), simulation=True)
    return TrustRoots.production()


def _verified(
    evidence: "Evidence", trusted: "TrustRoots", at: str | None, report_data: str | None, crl: str
) -> "AttestationResult":
    from cvars.attest import verify as verify_evidence  # noqa: PLC0415
    from cvars.attest.inputs import parse_time  # noqa: PLC0415

    if crl not in ("require", "if-present", "ignore"):
        raise UsageMistake("--crl is require, if-present or ignore")
    moment = parse_time(at) or datetime.fromtimestamp(time.time(), UTC)
    wanted = _hex(report_data, 64, "--report-data")
    return verify_evidence(evidence, roots=trusted, at=moment, report_data=wanted, crl=crl)  # type: ignore[arg-type]


def _hex(text: str | None, size: int | None, name: str) -> bytes | None:
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise UsageMistake(f"{name} is not hex") from None
    if size is not None and len(value) != size:
        raise UsageMistake(f"{name} has {len(value)} bytes, not {size}")
    return value


def _appraised(
    result: "AttestationResult",
    policy: Path | None,
    references: Path | None,
    init_data: str | None,
    *,
    simulation: bool,
) -> "AttestationResult":
    """The best of the policy's alternatives for this kind of evidence."""
    from cvars.attest import SnpRequirements, appraise, check_domains  # noqa: PLC0415
    from cvars.attest.inputs import read_policy  # noqa: PLC0415

    if policy is None:
        return result
    wanted = read_policy(policy, references)
    domains = check_domains(wanted.domains, simulation=simulation)
    mine = [leaf for leaf in wanted.leaves if isinstance(leaf, SnpRequirements) == (result.tee == "snp")]
    outcomes = [
        appraise(
            result,
            leaf,
            trust_domains=domains,
            init_data=_hex(init_data, None, "--init-data"),
            references=wanted.references,
        )
        for leaf in mine or wanted.leaves
    ]
    return min(outcomes, key=lambda one: sum(check.outcome == "no" for check in one.checks))


def _report(name: str, result: "AttestationResult", *, appraised: bool) -> None:
    accepted = result.accepted if appraised else result.verified
    verdict = ("accepted" if appraised else "authentic") if accepted else f"refused, {result.rule}"
    say(f"{name}: {verdict}")
    for check in result.checks:
        word = {"ok": "ok", "no": "no", "skipped": "-"}[str(check.outcome)]
        say(f"  {word:4}  {check.rule:13}  {check.detail}"[:100])
    if accepted and not appraised:
        say("No policy was given: this says that the evidence is genuine, not that it is acceptable.")
    if result.simulated:
        say(SIMULATED_NOTE)
    members = result.as_json() | {"accepted": accepted, "appraised": appraised}
    emit("cvars.attest.verify/1", members, simulated=result.simulated)
    answer(yes=accepted)


def _manifest(path: Path, trusted: "TrustRoots") -> None:
    """Every case and mutation of a manifest, one line each."""
    from cvars.attest.inputs import (  # noqa: PLC0415
        manifest_certificates,
        read_certificates,
        read_file,
        with_authorities,
    )
    from cvars.attest.manifest import run  # noqa: PLC0415

    try:
        manifest = json.loads(read_file(path))
    except (ValueError, RecursionError) as wrong:
        raise BadInput(f"{path}: not JSON: {wrong}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("cases"), list):
        raise BadInput(f"{path}: not a manifest", hint="an object with cases and mutations")
    folder = path.parent
    trusted = with_authorities(trusted, read_certificates(manifest_certificates(manifest, folder)))
    verdicts = run(manifest, lambda name: read_file(folder / name), trusted)
    rows = [
        (
            one.id,
            "authentic" if one.authentic else "not authentic",
            one.verdict,
            one.rule or "-",
            "as expected" if one.as_expected else "NOT AS EXPECTED",
        )
        for one in verdicts
    ]
    table(("CASE", "AUTHENTIC", "VERDICT", "RULE", "EXPECTED"), rows)
    for one in verdicts:
        for difference in one.differences:
            say(f"{one.id}: {difference}")
    good = sum(one.as_expected for one in verdicts)
    say(f"{good} of {len(verdicts)} as expected")
    members: dict[str, Any] = {
        "accepted": good == len(verdicts),
        "cases": [one.as_json() for one in verdicts],
        "expected": good,
        "total": len(verdicts),
    }
    emit("cvars.attest.manifest/1", members, simulated=trusted.simulation)
    answer(yes=good == len(verdicts) and bool(verdicts))


@app.command()
def measure(
    image: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Firmware (.fd), IGVM or TDVF image.")
    ],
    tee: Annotated[str, typer.Option("--tee", help="snp or tdx.")] = "snp",
    svsm: Annotated[
        Path | None, typer.Option("--svsm", exists=True, dir_okay=False, help="SVSM image below the firmware.")
    ] = None,
    vars_size: Annotated[
        int, typer.Option("--vars-size", help="Bytes of flash variables below the firmware.")
    ] = 0,
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, max=4096)] = 1,
    vcpu_type: Annotated[str | None, typer.Option("--vcpu-type", help="EPYC-Milan, EPYC-Genoa-v1, …")] = None,
    vcpu_sig: Annotated[str | None, typer.Option("--vcpu-sig", help="CPUID signature, instead of a type.")] = None,
    vmm: Annotated[str, typer.Option("--vmm-type", help="qemu, ec2 or gce.")] = "qemu",
    guest_features: Annotated[str, typer.Option("--guest-features", help="SEV_FEATURES.")] = "0x1",
    kernel: Annotated[Path | None, typer.Option("--kernel", exists=True, dir_okay=False)] = None,
    initrd: Annotated[Path | None, typer.Option("--initrd", exists=True, dir_okay=False)] = None,
    append: Annotated[str, typer.Option("--append", help="Kernel command line.")] = "",
    native_zero: Annotated[
        bool, typer.Option("--native-zero", help="IGVM: the platform has zero pages (QEMU has none).")
    ] = False,
    native_vmsa: Annotated[
        bool, typer.Option("--native-vmsa", help="IGVM: contexts measured in place, not as KVM does.")
    ] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Compute a launch measurement: MEASUREMENT of SEV-SNP, MRTD of TDX.

    Example: cvars attest measure OVMF.fd --vcpus 4 --vcpu-type EPYC-Genoa
    """
    from cvars.attest.measure.ovmf import ImageError  # noqa: PLC0415

    data = image.read_bytes()
    members: dict[str, Any] = {"tee": tee, "image": str(image)}
    try:
        if tee == "tdx":
            from cvars.attest.measure.tdvf import measure_tdvf  # noqa: PLC0415

            value = measure_tdvf(data)
        elif tee != "snp":
            raise UsageMistake("--tee is snp or tdx")
        elif data[:4] == b"IGVM":
            from cvars.attest.measure.igvm import measure_igvm  # noqa: PLC0415

            value = measure_igvm(data, kvm=not native_vmsa, native_zero=native_zero)
        else:
            machine = _machine(vcpus, vcpu_type, vcpu_sig, vmm, guest_features)
            members |= {
                "vcpus": vcpus,
                "vcpu_sig": machine.signature,
                "vmm": vmm,
                "guest_features": machine.features,
            }
            value = _measured(data, machine, svsm, vars_size, (kernel, initrd, append))
    except ImageError as wrong:
        raise BadInput(f"{image}: {wrong}") from None
    say(value.hex())
    emit("cvars.attest.measure/1", members | {"measurement": value.hex()})


def _machine(vcpus: int, vcpu_type: str | None, vcpu_sig: str | None, vmm: str, features: str) -> "Machine":
    from cvars.attest.measure.snp import Machine  # noqa: PLC0415
    from cvars.attest.measure.vmsa import VCPU_TYPES, Vmm  # noqa: PLC0415

    kinds = {kind.value for kind in Vmm}
    if vmm.lower() not in kinds:
        raise UsageMistake(f"--vmm-type is one of {', '.join(sorted(kinds))}")
    try:
        signature = int(vcpu_sig, 0) if vcpu_sig else VCPU_TYPES[vcpu_type] if vcpu_type else 0
        number = int(features, 0)
    except KeyError:
        raise UsageMistake(f"unknown vCPU type {vcpu_type}", hint=", ".join(VCPU_TYPES)) from None
    except ValueError:
        raise UsageMistake("--vcpu-sig and --guest-features are numbers") from None
    if not (vcpu_sig or vcpu_type) and vmm.lower() == "qemu":
        raise UsageMistake("QEMU's measurement depends on the vCPU", hint="--vcpu-type EPYC-Genoa, or --vcpu-sig")
    if not 0 <= signature < 1 << 32 or not 0 <= number < 1 << 64:
        raise UsageMistake("--vcpu-sig has 32 bits, --guest-features 64")
    return Machine(vcpus, signature, Vmm(vmm.lower()), number)


def _measured(
    data: bytes, machine: "Machine", svsm: Path | None, vars_size: int, boot: tuple[Path | None, Path | None, str]
) -> bytes:
    from cvars.attest.measure.snp import Kernel, measure_firmware, measure_svsm  # noqa: PLC0415

    if svsm is not None:
        return measure_svsm(data, svsm.read_bytes(), machine, variables_bytes=vars_size)
    kernel, initrd, append = boot
    direct = None
    if kernel is not None:
        direct = Kernel(kernel.read_bytes(), initrd.read_bytes() if initrd else b"", append)
    return measure_firmware(data, machine, kernel=direct)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the evidence.")],
    report_data: Annotated[str, typer.Option("--report-data", help="64 bytes.", metavar="HEX")],
    measurement: Annotated[str, typer.Option("--measurement", help="48 bytes.", metavar="HEX")],
    tee: Annotated[str, typer.Option("--tee", help="snp or tdx.")] = "snp",
    policy: Annotated[str, typer.Option("--policy", help="Guest policy, or TD attributes.")] = "",
    tcb: Annotated[str, typer.Option("--tcb", help="SNP: [fmc.]bootloader.tee.snp.microcode.")] = "",
    product: Annotated[str, typer.Option("--product", help="SNP: Milan, Genoa or Turin.")] = "Genoa",
    version: Annotated[
        int, typer.Option("--version", help="SNP: 2, 3, 4 or 5; TDX: 4 or 5. 0: the usual one.")
    ] = 0,
    host_data: Annotated[str, typer.Option("--host-data", help="HOST_DATA or MRCONFIGID.", metavar="HEX")] = "",
    vmpl: Annotated[int, typer.Option("--vmpl", min=0, max=3)] = 0,
    vlek: Annotated[str | None, typer.Option("--vlek", help="SNP: sign with a VLEK of this CSP id.")] = None,
    tcb_status: Annotated[str, typer.Option("--tcb-status", help="TDX: status in the collateral.")] = "UpToDate",
    hardware: Annotated[
        Path | None, typer.Option("--hardware", file_okay=False, help="Where the simulated roots are kept.")
    ] = None,
    at: AtOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Make evidence of simulated hardware. Its roots are made on first use (seconds) and kept.

    Example: cvars attest simulate --tee snp --report-data $(printf 00%.0s {1..64}) --measurement … --out DIR
    """
    from cvars.attest.inputs import parse_time  # noqa: PLC0415
    from cvars.attest.simulated.export import Wanted, export_snp, export_tdx  # noqa: PLC0415

    if tee not in ("snp", "tdx") or product not in ("Milan", "Genoa", "Turin"):
        raise UsageMistake("--tee is snp or tdx, --product is Milan, Genoa or Turin")
    wanted_data, measured = _hex(report_data, 64, "--report-data"), _hex(measurement, 48, "--measurement")
    assert wanted_data is not None
    assert measured is not None
    moment = parse_time(at)
    wanted = Wanted(
        report_data=wanted_data,
        measurement=measured,
        host_data=_hex(host_data, None, "--host-data") or b"",
        policy=_number(policy, "--policy"),
        version=version,
    )
    folder = hardware or _state_folder() / _SIMULATED_FOLDER
    clock = time.time if moment is None else moment.timestamp
    try:
        if tee == "snp":
            files = export_snp(folder, wanted, product=product, tcb=tcb, vmpl=vmpl, vlek=vlek, clock=clock)  # type: ignore[arg-type]
        else:
            files = export_tdx(folder, wanted, status=tcb_status, clock=clock)
    except ValueError as wrong:
        raise UsageMistake(str(wrong)) from None
    _write(out, files)
    for name in files:
        say(f"{out / name}")
    say(SIMULATED_NOTE)
    emit("cvars.attest.simulate/1", {"files": [str(out / name) for name in files]}, simulated=True)


def _number(text: str, name: str) -> int | None:
    try:
        return int(text, 0) if text else None
    except ValueError:
        raise UsageMistake(f"{name} is a number") from None


def _state_folder() -> Path:
    """`$XDG_STATE_HOME/cvars`."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "cvars"


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    except OSError as wrong:
        raise OutsideFailure(f"{folder}: {wrong.strerror or wrong}") from None
