"""`cvars broker vm`: VMs and their anchors."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvars.cli.broker_common import HERE, ConfigOption, offline
from cvars.cli.output import JsonOption, QuietOption, VerboseOption, emit, say, table
from cvars.errors import CvarsError, ExitCode, UsageMistake

if TYPE_CHECKING:
    from cvars.broker.record import Change, Record

app = typer.Typer(no_args_is_help=True, help="VMs and their anchors.")

VmArgument = Annotated[str, typer.Argument(help="As in the guest's measured init-data.")]
ReasonOption = Annotated[str, typer.Option(help="Goes into the hash-chained history.")]


@app.command("add")
def vm_add(
    vm_id: Annotated[str, typer.Argument(help="As in the guest's measured init-data.")],
    config: ConfigOption = HERE,
    mode: Annotated[str, typer.Option(help="none, per-boot, bounded, critical or strict.")] = "critical",
    simulation: Annotated[bool, typer.Option("--simulation", help="The broker runs with --simulation.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Make a new anchor record, so that this VM may create its store once.

    Example: cvars broker vm add web-1 --config ./broker
    """
    from cvars.broker.anchors import Exists  # noqa: PLC0415
    from cvars.broker.problems import Problem  # noqa: PLC0415
    from cvars.broker.views import describe  # noqa: PLC0415
    from cvars.release.initdata import MODES  # noqa: PLC0415

    if mode not in MODES:
        raise UsageMistake(f"no mode {mode}", hint=f"one of {', '.join(MODES)}")
    broker = offline(config, simulation=simulation)
    try:
        record = broker.add_vm(vm_id, mode=mode)
    except Exists:
        raise UsageMistake(f"{vm_id} exists already", hint="cvars broker vm reset starts it anew") from None
    except Problem:
        raise UsageMistake(f"not a VM id: {vm_id!r}", hint="1..128 of [A-Za-z0-9._-]") from None
    say(f"{vm_id}: new, mode {mode}, store id {record.store_id.hex()}")
    emit("cvars.broker.vm.add/1", describe(record))


@app.command("list")
def vm_list(
    config: ConfigOption = HERE,
    simulation: Annotated[bool, typer.Option("--simulation", help="The broker runs with --simulation.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """List all anchor records.

    Example: cvars broker vm list --config ./broker
    """
    from cvars.broker.views import describe  # noqa: PLC0415

    records = offline(config, simulation=simulation).anchors.all()
    table(
        ("VM", "STATE", "EPOCH", "COUNTER", "MODE", "KEY"),
        [(r.vm_id, r.state, r.epoch, r.point.counter, r.mode, r.key_version) for r in records],
    )
    emit("cvars.broker.vm.list/1", {"vms": [describe(r) for r in records]})


@app.command("show")
def vm_show(
    vm_id: VmArgument,
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Show one anchor record and its history, and check the hash chain. Exit code 1: it is broken.

    Example: cvars broker vm show web-1 --config ./broker
    """
    from cvars.broker.anchors import verify_history  # noqa: PLC0415
    from cvars.broker.views import describe  # noqa: PLC0415

    anchors = offline(config).anchors
    record = anchors.get(vm_id)
    if record is None:
        raise _unknown(vm_id)
    history = anchors.history(vm_id, limit=1_000_000)
    broken = verify_history(history)
    for name, value in describe(record).items():
        say(f"{name:14} {value}")
    table(("VERSION", "KIND", "DETAIL"), [(h["version"], h["kind"], h["detail"]) for h in history[-20:]])
    if broken is not None:
        say(f"the history is broken at version {broken}")
    emit("cvars.broker.vm.show/1", describe(record) | {"log": history, "sound": broken is None})
    if broken is not None:
        raise typer.Exit(int(ExitCode.NO))


@app.command("retire")
def vm_retire(
    vm_id: VmArgument,
    config: ConfigOption = HERE,
    reason: ReasonOption = "operator",
    force: Annotated[bool, typer.Option("--force", help="The store can never be opened again.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Crypto-erase: destroy the VM's keys and keep the record as a tombstone. Needs --force.

    Example: cvars broker vm retire web-1 --reason sold --force
    """
    from cvars.broker import record as rules  # noqa: PLC0415

    _needs(force, "retire destroys the key of this VM's store")
    _operate(config, vm_id, "retire", lambda r: rules.retire(r, reason=reason))


@app.command("reset")
def vm_reset(
    vm_id: VmArgument,
    config: ConfigOption = HERE,
    reason: ReasonOption = "operator",
    force: Annotated[
        bool, typer.Option("--force", help="The present store will never be accepted again.")
    ] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Start anew: new store id and key, so that no old image fits. Needs --force.

    Example: cvars broker vm reset web-1 --reason reinstalled --force
    """
    from cvars.broker import record as rules  # noqa: PLC0415

    _needs(force, "reset makes the present store worthless")
    broker = offline(config)
    store_id = broker.random(16)
    _operate(config, vm_id, "reset", lambda r: rules.reset(r, point=None, store_id=store_id, reason=reason))


@app.command("rebase")
def vm_rebase(
    vm_id: VmArgument,
    counter: Annotated[int, typer.Option(min=0, help="Sequence of the commit to anchor.")],
    root: Annotated[str, typer.Option(help="Its state digest, 64 hex digits (`cvars store fsck` prints both).")],
    config: ConfigOption = HERE,
    reason: ReasonOption = "operator",
    force: Annotated[bool, typer.Option("--force", help="Accept another image as the present state.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Anchor another image: after an offline rotate, resize or recover, or a wanted restore. Needs --force.

    Example: cvars broker vm rebase web-1 --counter 7 --root 5f0c… --force
    """
    from cvars.broker import record as rules  # noqa: PLC0415
    from cvars.release.encoding import Malformed, unhex  # noqa: PLC0415
    from cvars.store.anchor import AnchorPoint  # noqa: PLC0415

    _needs(force, "rebase accepts another image as the present state")
    try:
        point = AnchorPoint(counter, unhex(root, size=32))
    except Malformed as error:
        raise UsageMistake(f"--root: {error}") from None
    _operate(config, vm_id, "rebase", lambda r: rules.reset(r, point=point, store_id=r.store_id, reason=reason))


def _register(name: str, text: str) -> None:
    """A command that takes a VM and a reason."""

    def command(
        vm_id: VmArgument,
        config: ConfigOption = HERE,
        reason: ReasonOption = "operator",
        _json: JsonOption = False,
        _quiet: QuietOption = False,
        _verbose: VerboseOption = False,
    ) -> None:
        from cvars.broker import record as rules  # noqa: PLC0415

        rule: Any = getattr(rules, name)
        _operate(config, vm_id, name, lambda r: rule(r, reason=reason))

    command.__doc__ = f"{text}\n\n    Example: cvars broker vm {name} web-1 --reason incident-7"
    app.command(name)(command)


_register("freeze", "Incident response: refuse new sessions and fence the present one.")
_register("thaw", "End a freeze. The session before it stays fenced.")
_register("rotate", "Name a new key version for the next session; the guest re-keys its store online.")
_register("finalise", "Destroy the old key version after a rotation, now.")


def _operate(config: Path, vm_id: str, verb: str, change: "Callable[[Record], Change]") -> None:
    from cvars.broker.record import Refused  # noqa: PLC0415
    from cvars.broker.views import describe  # noqa: PLC0415

    try:
        record = offline(config).operate(vm_id, change)
    except Refused as error:
        if error.status == 404:
            raise _unknown(vm_id) from None
        raise CvarsError(
            f"{verb} {vm_id}: {error.detail}",
            hint=f"cvars broker vm show {vm_id}",
            reason=error.reason,
            exit_code=ExitCode.NO,
        ) from None
    say(f"{vm_id}: {record.state}, epoch {record.epoch}, counter {record.point.counter}, key {record.key_version}")
    emit(f"cvars.broker.vm.{verb}/1", describe(record))


def _needs(force: bool, why: str) -> None:  # noqa: FBT001
    if not force:
        raise UsageMistake(why, hint="add --force to do it")


def _unknown(vm_id: str) -> CvarsError:
    return CvarsError(
        f"no VM {vm_id}", hint="cvars broker vm list", reason="anchor.unknown", exit_code=ExitCode.NO
    )
