"""`cvars broker policy`: try a release policy before it meets a real guest."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvars.cli.broker_common import HERE, ConfigOption, offline
from cvars.cli.output import JsonOption, QuietOption, VerboseOption, answer, emit, say
from cvars.cli.places import present, read_bytes, read_text
from cvars.errors import BadInput, UsageMistake

if TYPE_CHECKING:
    from cvars.broker.attestation import AttestVerifier
    from cvars.broker.policy.evaluate import Decision
    from cvars.broker.policy.load import Policy
    from cvars.broker.policy.offline import Sample

app = typer.Typer(no_args_is_help=True, help="Release policies: check, explain, diff, suggest, import.")

FileArgument = Annotated[
    Path,
    typer.Argument(callback=present, help="A policy, YAML (- for standard input)."),
]
EvidenceOption = Annotated[
    Path,
    typer.Option("--evidence", callback=present, help="Report, quote, or the JSON a client sends."),
]
CertsOption = Annotated[
    Path | None, typer.Option("--certs", exists=True, file_okay=False, help="Certificates and collateral at hand.")
]
RootsOption = Annotated[
    Path | None, typer.Option("--simulated-roots", exists=True, help="Public roots of simulated hardware.")
]
ReferencesOption = Annotated[
    Path | None, typer.Option("--references", exists=True, dir_okay=False, help="Reference values, YAML.")
]
AtOption = Annotated[str | None, typer.Option("--at", help="Judge at this instant, ISO 8601; default now.")]
ResourceOption = Annotated[str | None, typer.Option("--resource", help="repository/type/tag that is asked for.")]
VmOption = Annotated[str | None, typer.Option("--vm", help="The VM that was measured, for per_vm.")]


def _verifier(certs: Path | None, roots: Path | None) -> "AttestVerifier":
    from cvars.attest.library import EmptyLibrary, FileLibrary  # noqa: PLC0415
    from cvars.attest.roots import TrustRoots, load_simulated  # noqa: PLC0415
    from cvars.broker.attestation import AttestVerifier  # noqa: PLC0415

    found = TrustRoots.production()
    library = FileLibrary(certs) if certs else None
    if certs is not None and library is not None:
        found = found.with_certificates(library.authorities())
        found = found.with_certificates(f.read_bytes() for f in sorted(certs.glob("*.pem")))
    if roots is not None:
        found = load_simulated(roots, simulation=True, base=found)
    return AttestVerifier(found, library or EmptyLibrary())


def _load(file: Path, verifier: "AttestVerifier", references: Path | None) -> "Policy":
    from cvars.broker.policy.load import load_policy, read_yaml  # noqa: PLC0415

    values: dict[str, Any] = {}
    if references is not None:
        document = read_yaml(references.read_text(), where=str(references))
        values = {str(k): verifier.reference(v) for k, v in dict(document or {}).items()}
    return load_policy(read_text(file), verifier=verifier, references=values, where=str(file))


def _at(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageMistake(f"--at is not ISO 8601: {text}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@app.command()
def check(
    file: FileArgument,
    references: ReferencesOption = None,
    simulation: Annotated[bool, typer.Option("--simulation", help="Simulated trust domain allowed.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Would the broker load this policy? Names the line and the key that is wrong.

    Example: cvars broker policy check policies/web.yaml
    """
    from dataclasses import replace  # noqa: PLC0415

    verifier = _verifier(None, None)
    if simulation:
        verifier = replace(verifier, roots=replace(verifier.roots, simulation=True))
    policy = _load(file, verifier, references)
    say(f"{file}: {policy.name} version {policy.document.version}, digest {policy.digest}")
    emit("cvars.broker.policy.check/1", {"policy": policy.name, "digest": policy.digest})


@app.command()
def put(
    file: FileArgument,
    config: ConfigOption = HERE,
    simulation: Annotated[bool, typer.Option("--simulation", help="The broker runs with --simulation.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Put a policy into the broker's database; all its processes use it within a second.

    Example: cvars broker policy put web.yaml --config ./broker
    """
    broker = offline(config, simulation=simulation)
    name = broker.policy_store.put(read_text(file), broker.policies)
    say(f"{name}: active")
    emit("cvars.broker.policy.put/1", {"policy": name})


@app.command()
def explain(
    file: FileArgument,
    evidence: EvidenceOption,
    certs: CertsOption = None,
    simulated_roots: RootsOption = None,
    references: ReferencesOption = None,
    at: AtOption = None,
    resource: ResourceOption = None,
    vm: VmOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """What would the policy answer, which leaf decided, and what was seen? Exit code 1: it denies.

    Example: cvars broker policy explain web.yaml --evidence report.bin --certs ./certs
    """
    from cvars.broker.policy.offline import judge, read_sample  # noqa: PLC0415

    verifier = _verifier(certs, simulated_roots)
    policy = _load(file, verifier, references)
    sample = read_sample(read_bytes(evidence), str(evidence), verifier, at=_at(at))
    decision = judge(policy, sample, verifier, resource=resource, vm_id=vm)
    _say_decision(evidence, sample, decision)
    emit(
        "cvars.broker.policy.explain/1",
        {
            "allowed": decision.allowed,
            "rule": decision.rule,
            "detail": decision.detail,
            "leaves": [{"leaf": v.leaf, "rule": v.rule, "detail": v.detail} for v in decision.verdicts],
            "claims": sample.claims,
        },
        simulated=sample.simulated,
    )
    answer(yes=decision.allowed)


def _say_decision(evidence: Path, sample: "Sample", decision: "Decision") -> None:
    say(f"{evidence}: " + ("released" if decision.allowed else f"denied, {decision.rule}"))
    if not sample.result.verified:
        say(f"  no    {sample.result.rule or '':16} {sample.result.detail}")
    for verdict in decision.verdicts:
        mark = "ok" if verdict.rule is None else "no"
        say(f"  {mark:5} {verdict.leaf:24} {verdict.rule or ''} {verdict.detail}".rstrip())
    for verdict in decision.verdicts:
        if verdict.rule is not None:
            say(f"To pass, {verdict.leaf} would have to accept: {verdict.detail or 'other evidence'}")
            break


@app.command()
def diff(
    before: FileArgument,
    after: Annotated[Path, typer.Argument(callback=present, help="The other policy.")],
    evidence: Annotated[Path, typer.Option("--evidence", exists=True, help="A file or a folder of evidence.")],
    certs: CertsOption = None,
    simulated_roots: RootsOption = None,
    references: ReferencesOption = None,
    at: AtOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Which decisions change between two policies? Exit code 1: some do.

    Example: cvars broker policy diff old.yaml new.yaml --evidence ./evidence
    """
    from cvars.broker.policy.offline import judge, read_sample  # noqa: PLC0415

    verifier = _verifier(certs, simulated_roots)
    left, right = _load(before, verifier, references), _load(after, verifier, references)
    files = sorted(f for f in evidence.rglob("*") if f.is_file()) if evidence.is_dir() else [evidence]
    changes = []
    simulated = False
    for one in files:
        try:
            sample = read_sample(read_bytes(one), str(one), verifier, at=_at(at))
        except BadInput as error:
            say(f"{one}: skipped, {error.message}", err=True)
            continue
        simulated |= sample.simulated
        was, now = judge(left, sample, verifier), judge(right, sample, verifier)
        if (was.allowed, was.rule) != (now.allowed, now.rule):
            changes.append({"evidence": str(one), "before": was.rule or "allow", "after": now.rule or "allow"})
            say(f"{one}: {was.rule or 'allow'} -> {now.rule or 'allow'}")
    say(f"{len(files)} pieces of evidence, {len(changes)} decided differently")
    emit("cvars.broker.policy.diff/1", {"compared": len(files), "changes": changes}, simulated=simulated)
    answer(yes=not changes)


@app.command()
def suggest(
    evidence: EvidenceOption,
    name: Annotated[str, typer.Option(help="Name of the policy.")] = "suggested",
    certs: CertsOption = None,
    simulated_roots: RootsOption = None,
    at: AtOption = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Write a strict policy from known-good evidence, every "any" with its reason.

    Example: cvars broker policy suggest --evidence report.bin --certs ./certs > web.yaml
    """
    from cvars.broker.policy.offline import read_sample  # noqa: PLC0415
    from cvars.broker.policy.suggest import suggestion  # noqa: PLC0415

    verifier = _verifier(certs, simulated_roots)
    sample = read_sample(read_bytes(evidence), str(evidence), verifier, at=_at(at))
    if not sample.result.verified:
        raise BadInput(f"not known-good: {sample.result.rule}, {sample.result.detail}", where=str(evidence))
    text = suggestion(sample, name=name)
    say(text.rstrip())
    emit("cvars.broker.policy.suggest/1", {"policy": text}, simulated=sample.simulated)


@app.command("import")
def import_azure(
    file: Annotated[
        Path,
        typer.Argument(callback=present, help="Azure Key Vault release policy, JSON."),
    ],
    name: Annotated[str, typer.Option(help="Name of the policy.")] = "imported",
    applies_to: Annotated[list[str] | None, typer.Option(help="repository/type/tag; may be repeated.")] = None,
    product: Annotated[list[str] | None, typer.Option(help="SNP product line; may be repeated.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Import the Azure Key Vault release-policy grammar. A claim that cannot be mapped is an error.

    Example: cvars broker policy import release-policy.json > web.yaml
    """
    from cvars.broker.azure import convert  # noqa: PLC0415

    text = convert(
        read_bytes(file).decode(errors="replace"),
        name=name,
        applies_to=applies_to or ["vms/*/store-kek"],
        products=product or ["Milan", "Genoa"],
    )
    say(text.rstrip())
    emit("cvars.broker.policy.import/1", {"policy": text})
