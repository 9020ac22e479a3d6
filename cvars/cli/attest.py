"""`cvars attest`: look at evidence, verify it, measure images, make simulated evidence."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvars.cli import attest_tools
from cvars.cli.attest_inputs import AtOption, EvidenceArgument, parse_hex, read_evidence
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
from cvars.errors import BadInput, UsageMistake

if TYPE_CHECKING:
    from cvars.attest import AttestationResult, Evidence, TrustRoots

app = typer.Typer(no_args_is_help=True, help="Attestation evidence: inspect, verify, measure, simulate.")

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
SimulationOption = Annotated[bool, typer.Option("--simulation", help="Also accept roots of simulated hardware.")]
RootsOption = Annotated[
    Path | None,
    typer.Option(
        "--roots", help="Public files of simulated hardware; needs --simulation.", envvar="CVARS_ATTEST_ROOTS"
    ),
]


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

    found = read_evidence(evidence, read_certificates(certs or []), collateral)
    fields = describe(found)
    if fields is None:
        raise BadInput(f"{evidence}: {getattr(found, 'detail', 'not evidence')}")
    for name, value in fields.items():
        say(f"{name:24} {value}")
    say("Nothing was verified: see cvars attest verify.")
    emit("cvars.attest.inspect/1", {"tee": found.tee, "fields": fields}, simulated=None)


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
        result = _verified(
            read_evidence(evidence, found, collateral),
            trusted,
            at=at,
            report_data=report_data,
            crl=crl,
            folders=certs or [],
        )
        result = _appraised(result, policy, references, init_data, simulation=simulation)
        _report(str(evidence), result, appraised=policy is not None)


def _roots(*, simulation: bool, folder: Path | None) -> "TrustRoots":
    """Production pins; simulated roots only when --simulation asked for them (ROOT-3)."""
    from cvars.attest import TrustRoots, load_simulated, with_simulated  # noqa: PLC0415

    if folder is not None:
        return load_simulated(folder, simulation=simulation, origin=f"{folder}")
    if simulation:
        return with_simulated(TrustRoots.production(), (), simulation=True)
    return TrustRoots.production()


def _verified(
    evidence: "Evidence",
    trusted: "TrustRoots",
    *,
    at: str | None,
    report_data: str | None,
    crl: str,
    folders: list[Path],
) -> "AttestationResult":
    from cvars.attest import EmptyLibrary, FileLibrary  # noqa: PLC0415
    from cvars.attest import verify as verify_evidence  # noqa: PLC0415
    from cvars.attest.inputs import parse_time  # noqa: PLC0415

    if crl not in ("require", "if-present", "ignore"):
        raise UsageMistake("--crl is require, if-present or ignore")
    moment = parse_time(at) or datetime.fromtimestamp(time.time(), UTC)
    wanted = parse_hex(report_data, 64, "--report-data")
    library = next((FileLibrary(one) for one in folders if one.is_dir()), EmptyLibrary())
    return verify_evidence(
        evidence,
        roots=trusted,
        at=moment,
        report_data=wanted,
        crl=crl,  # type: ignore[arg-type]
        library=library,
    )


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
            init_data=parse_hex(init_data, None, "--init-data"),
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


for tool in (attest_tools.measure, attest_tools.simulate, attest_tools.fetch, attest_tools.serve):
    app.command()(tool)
