"""`cvars broker`: run and administer the key broker."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvars.cli.output import SIMULATED_NOTE, JsonOption, QuietOption, VerboseOption, emit, say, table
from cvars.errors import UsageMistake

if TYPE_CHECKING:
    from cvars.broker.config import BrokerConfig
    from cvars.broker.service import Broker

app = typer.Typer(no_args_is_help=True, help="The key broker: release, policy, freshness anchor.")
vm_app = typer.Typer(no_args_is_help=True, help="VMs and their anchors.")
app.add_typer(vm_app, name="vm")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="broker.toml, or its folder.", envvar="CVARS_BROKER_CONFIG")
]
_HERE = Path("broker.toml")


def load(config: Path, *, simulation: bool = False, listen: str | None = None) -> "BrokerConfig":
    """The configuration at ``config`` (a file or its folder)."""
    from cvars.broker.config import load_config  # noqa: PLC0415

    file = config / "broker.toml" if config.is_dir() else config
    return load_config(file, simulation=simulation, listen=listen)


def offline(config: Path, *, simulation: bool = False) -> "Broker":
    """The broker's parts, opened by the operator beside the running service (policies are not loaded)."""
    import secrets  # noqa: PLC0415
    import time  # noqa: PLC0415

    from cvars.broker.app import open_broker  # noqa: PLC0415

    return open_broker(
        load(config, simulation=simulation), clock=time.time, random=secrets.token_bytes, offline=True
    )


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder of the broker.")],
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Write a commented broker.toml, fresh keys (mode 0600) and an example policy.

    Example: cvars broker init ./broker
    """
    from cvars.broker.setup import init as make  # noqa: PLC0415

    pin = make(folder)
    say(f"{folder}: broker ready to serve")
    say(f"  guests pin the signing key {pin}")
    say(f"  next: cvars broker serve --config {folder}")
    emit("cvars.broker.init/1", {"folder": str(folder), "pin": pin})


@app.command()
def serve(
    config: ConfigOption = _HERE,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Accept simulated roots, loopback only.")
    ] = False,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT instead of the configured one.")] = None,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Run the service until SIGTERM.

    Example: cvars broker serve --config ./broker
    """
    import logging  # noqa: PLC0415
    import sys  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    from cvars.broker.serve import serve as run  # noqa: PLC0415

    def ready(url: str, pin: str) -> None:
        say(f"broker ready on {url}  pin {pin}")
        if simulation:
            say(SIMULATED_NOTE)
        emit("cvars.broker.serve/1", {"url": url, "pin": pin}, simulated=simulation)

    run(load(config, simulation=simulation, listen=listen), ready=ready)


@vm_app.command("add")
def vm_add(
    vm_id: Annotated[str, typer.Argument(help="As in the guest's measured init-data.")],
    config: ConfigOption = _HERE,
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


@vm_app.command("list")
def vm_list(
    config: ConfigOption = _HERE,
    simulation: Annotated[bool, typer.Option("--simulation", help="The broker runs with --simulation.")] = False,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """List all anchor records."""
    from cvars.broker.views import describe  # noqa: PLC0415

    records = offline(config, simulation=simulation).anchors.all()
    table(
        ("VM", "STATE", "EPOCH", "COUNTER", "MODE", "KEY"),
        [(r.vm_id, r.state, r.epoch, r.point.counter, r.mode, r.key_version) for r in records],
    )
    emit("cvars.broker.vm.list/1", {"vms": [describe(r) for r in records]})
