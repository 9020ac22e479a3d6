"""`cvars attest measure|simulate|serve|fetch`: what makes or gets things, beside `cvars.cli.attest`."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cvars.cli.attest_inputs import AtOption, EvidenceArgument, parse_hex, read_evidence
from cvars.cli.output import SIMULATED_NOTE, JsonOption, QuietOption, VerboseOption, emit, say
from cvars.errors import BadInput, OutsideFailure, UsageMistake

if TYPE_CHECKING:
    from cvars.attest.measure.snp import Machine
    from cvars.attest.remote import Fetched
    from cvars.attest.simulated.service import CertificateService

_SIMULATED_FOLDER: Final = "simulated-hardware"


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
    wanted_data, measured = (
        parse_hex(report_data, 64, "--report-data"),
        parse_hex(measurement, 48, "--measurement"),
    )
    assert wanted_data is not None
    assert measured is not None
    moment = parse_time(at)
    wanted = Wanted(
        report_data=wanted_data,
        measurement=measured,
        host_data=parse_hex(host_data, None, "--host-data") or b"",
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


def serve(
    listen: Annotated[str, typer.Option("--listen", help="Loopback address and port.")] = "127.0.0.1:8199",
    hardware: Annotated[
        Path | None, typer.Option("--hardware", file_okay=False, help="Where the simulated roots are kept.")
    ] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Serve certificates and collateral of simulated hardware under the paths of AMD's KDS and Intel's PCS.

    Example: cvars attest serve --listen 127.0.0.1:8199
    """
    from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx  # noqa: PLC0415
    from cvars.attest.simulated.service import CertificateService  # noqa: PLC0415
    from cvars.attest.snp.products import LINES  # noqa: PLC0415

    host, _, port = listen.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdigit():
        raise UsageMistake("--listen is a loopback address and a port", hint="--listen 127.0.0.1:8199")
    folder = hardware or _state_folder() / _SIMULATED_FOLDER
    service = CertificateService(
        {line: SimulatedAmdSp.load_or_create(folder, product=line, random=os.urandom) for line in LINES},
        SimulatedTdx.load_or_create(folder, random=os.urandom, clock=time.time),
    )
    _serve(service, host.strip("[]"), int(port))


def _serve(service: "CertificateService", host: str, port: int) -> None:
    """One thread for each request, until SIGTERM or SIGINT; then 0."""
    import signal  # noqa: PLC0415
    import threading  # noqa: PLC0415
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            found = service.answer(self.path[:2048])
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as wrong:
        raise OutsideFailure(f"{host}:{port}: {wrong.strerror or wrong}") from None
    with server:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: threading.Thread(target=server.shutdown).start())
        url = f"http://{host}:{server.server_address[1]}"
        say(f"{url}/vcek/v1/…  and  /tdx/certification/v4/…")
        say(SIMULATED_NOTE)
        emit("cvars.attest.serve/1", {"url": url}, simulated=True)
        server.serve_forever()


def fetch(
    evidence: EvidenceArgument,
    to: Annotated[Path, typer.Option("--to", file_okay=False, help="Folder to keep what was fetched in.")],
    kds: Annotated[str, typer.Option("--kds", help="AMD key distribution service.")] = "",
    pcs: Annotated[str, typer.Option("--pcs", help="Intel provisioning certification service.")] = "",
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds for each answer.", min=0.1)] = 10.0,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Fetch the certificates or collateral that evidence needs. The only command here that uses the network.

    Example: cvars attest fetch report.bin --to ~/.cache/cvars/certificates
    """
    from cvars.attest.fetching import collect  # noqa: PLC0415
    from cvars.attest.inputs import Certificates  # noqa: PLC0415
    from cvars.attest.remote import KDS, PCS, FetchFailed, RemoteLibrary  # noqa: PLC0415

    library = RemoteLibrary(_http_get, time.monotonic, kds or KDS, pcs or PCS, deadline)
    files = collect(read_evidence(evidence, Certificates(), None), library)
    if not files:
        raise FetchFailed(
            "nothing usable was answered", where=kds or pcs or "AMD and Intel", hint="try again later"
        )
    _write(to, files)
    for name in files:
        say(f"{to / name}")
    emit("cvars.attest.fetch/1", {"files": [str(to / name) for name in files]}, simulated=None)


def _http_get(url: str, seconds: float) -> "Fetched":
    """One GET; no redirects, TLS verified by the system's roots."""
    import httpx2  # noqa: PLC0415

    from cvars.attest.remote import MAX_ANSWER, Fetched, FetchFailed  # noqa: PLC0415

    try:
        with httpx2.stream("GET", url, timeout=seconds, follow_redirects=False) as answer:
            body = b""
            for part in answer.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER:
                    raise FetchFailed(f"{url}: answer larger than {MAX_ANSWER} bytes")
            return Fetched(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, body)
    except httpx2.HTTPError as wrong:
        raise FetchFailed(f"{url}: {type(wrong).__name__}") from None
