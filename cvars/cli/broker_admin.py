"""`cvars broker secret|checkpoint|audit`: the operator's other commands."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cvars.cli.broker_common import HERE, ConfigOption, load, offline
from cvars.cli.output import JsonOption, QuietOption, VerboseOption, answer, emit, say, table
from cvars.errors import BadInput, UsageMistake

secret_app = typer.Typer(no_args_is_help=True, help="Stored secrets.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Signed checkpoints of the anchor history.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log.")

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="repository/type/tag")]


@secret_app.command("put")
def secret_put(
    path: PathArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The secret's bytes; - reads standard input.")],
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Store or replace a secret, wrapped.

    Example: cvars broker secret put fleet/web-1/tls tls.key
    """
    from cvars.broker.resources import MAX_RESOURCE  # noqa: PLC0415

    _checked(path)
    try:
        data = sys.stdin.buffer.read(MAX_RESOURCE + 1) if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageMistake(f"{file} cannot be read: {error.strerror}") from None
    if not 0 < len(data) <= MAX_RESOURCE:
        raise BadInput(f"a secret has 1 to {MAX_RESOURCE} bytes, this has {len(data)}")
    version = offline(config).resources.put(path, data)
    say(f"{path}: version {version}")
    emit("cvars.broker.secret.put/1", {"path": path, "version": version})


@secret_app.command("list")
def secret_list(
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Paths and versions; never what is in them.

    Example: cvars broker secret list --config ./broker
    """
    found = offline(config).resources.list()
    table(("PATH", "VERSION"), found)
    emit("cvars.broker.secret.list/1", {"secrets": [{"path": p, "version": v} for p, v in found]})


@secret_app.command("delete")
def secret_delete(
    path: PathArgument,
    config: ConfigOption = HERE,
    force: Annotated[bool, typer.Option("--force", help="It cannot be brought back.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Remove a secret. Needs --force.

    Example: cvars broker secret delete fleet/web-1/tls --force
    """
    _checked(path)
    if not force:
        raise UsageMistake("delete destroys the secret", hint="add --force to do it")
    gone = offline(config).resources.delete(path)
    say(f"{path}: deleted" if gone else f"{path}: not there")
    emit("cvars.broker.secret.delete/1", {"path": path, "deleted": gone})
    answer(yes=gone)


@secret_app.command("rotate")
def secret_rotate(
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Wrap everything under the present master key; afterwards `secrets.old_keys` may go.

    First put the old file into secrets.old_keys and a new one into secrets.master_key.

    Example: cvars broker secret rotate --config ./broker
    """
    from cvars.broker.rewrap import rewrap  # noqa: PLC0415

    broker = offline(config)
    done = rewrap(broker.db, broker.keyring)
    say(f"{done} secrets wrapped anew; all are under the present master key")
    emit("cvars.broker.secret.rotate/1", {"rewrapped": done})


def _checked(path: str) -> None:
    from cvars.broker.policy.model import is_part  # noqa: PLC0415

    parts = path.split("/")
    if len(parts) != 3 or not all(is_part(p) for p in parts):
        raise UsageMistake(f"not repository/type/tag: {path!r}")
    if parts[0] == "vms" and parts[2] == "store-kek":
        raise UsageMistake("store keys are derived, never stored")


@checkpoint_app.command("create")
def checkpoint_create(
    config: ConfigOption = HERE,
    out: Annotated[Path | None, typer.Option(help="File instead of the configured folder.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Sign how long every anchor history is, now. Keep copies where the broker's disk is not.

    Example: cvars broker checkpoint create --out checkpoint.jws
    """
    from cvars.broker import checkpoints  # noqa: PLC0415

    broker = offline(config)
    now = broker.clock()
    text = checkpoints.make(broker.db, broker.signer, now=now, broker_id=broker.broker_id)
    if out is not None:
        out.write_text(text + "\n")
        where = out
    else:
        folder = load(config).checkpoint.folder
        if folder is None:
            raise UsageMistake("no checkpoint.folder is configured", hint="use --out FILE")
        where = checkpoints.CheckpointFolder(load(config).path(folder)).write(text, now)
    say(f"{where}: written")
    emit("cvars.broker.checkpoint.create/1", {"file": str(where)})


@checkpoint_app.command("verify")
def checkpoint_verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A checkpoint of this broker.")],
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Does the database contain everything this checkpoint names? Exit code 1: it was rolled back, and where.

    Example: cvars broker checkpoint verify checkpoint.jws
    """
    from cvars.broker import checkpoints  # noqa: PLC0415

    broker = offline(config)
    payload = checkpoints.read(file.read_text(), [broker.signer.private.public_key()], {broker.signer.kid})
    gaps = checkpoints.compare(broker.db, payload["chains"])
    for gap in gaps:
        say(f"{gap.vm_id}: has {gap.found} of {gap.wanted} entries ({gap.why})")
    say(f"{file}: {len(payload['chains'])} histories, {len(gaps)} fall short")
    rows = [{"vm_id": g.vm_id, "wanted": g.wanted, "found": g.found, "why": g.why} for g in gaps]
    emit("cvars.broker.checkpoint.verify/1", {"histories": len(payload["chains"]), "gaps": rows})
    answer(yes=not gaps)


@audit_app.command("verify")
def audit_verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An audit log.")],
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Is the hash chain whole? Exit code 1: the first line that is not.

    Example: cvars broker audit verify audit.jsonl
    """
    from cvars.broker.audit import verify  # noqa: PLC0415

    with file.open(errors="replace") as lines:
        good, wrong = verify(lines)
    say(f"{file}: {good} lines, whole" if wrong is None else f"{file}: line {good + 1}: {wrong}")
    emit("cvars.broker.audit.verify/1", {"lines": good, "wrong": wrong})
    answer(yes=wrong is None)


@audit_app.command("replay")
def audit_replay(
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Verify kept evidence again, at its own time, and compare with what was decided.

    Needs audit.keep_evidence. Exit code 1: a decision that would be another one now.

    Example: cvars broker audit replay --config ./broker
    """
    from cvars.broker.app import make_verifier  # noqa: PLC0415
    from cvars.broker.replay import replay  # noqa: PLC0415

    found = load(config)
    if found.audit.file is None:
        raise UsageMistake("no audit.file is configured")
    results = replay(found.path(found.audit.file), found.evidence, make_verifier(found))
    changed = [r for r in results if r.recorded != r.now]
    for one in changed:
        say(f"line {one.line}: was {one.recorded}, is {one.now}")
    kept = sum(r.now != "not kept" for r in results)
    say(f"{len(results)} attestations, {kept} with kept evidence, {len(changed)} decided differently now")
    emit(
        "cvars.broker.audit.replay/1",
        {"attestations": len(results), "kept": kept, "changed": [r.as_json() for r in changed]},
    )
    answer(yes=not changed)
