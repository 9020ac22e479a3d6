"""`cvars broker`: run and administer the key broker."""

from pathlib import Path
from typing import Annotated

import typer

from cvars.cli import broker_admin, broker_policy, broker_vm
from cvars.cli.broker_common import HERE, ConfigOption, load
from cvars.cli.output import SIMULATED_NOTE, JsonOption, QuietOption, VerboseOption, emit, say
from cvars.cli.weakened import weakened_note

app = typer.Typer(no_args_is_help=True, help="The key broker: release, policy, freshness anchor.")

app.add_typer(broker_vm.app, name="vm")
app.add_typer(broker_policy.app, name="policy")
app.add_typer(broker_admin.secret_app, name="secret")
app.add_typer(broker_admin.checkpoint_app, name="checkpoint")
app.add_typer(broker_admin.audit_app, name="audit")


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
    config: ConfigOption = HERE,
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

    loaded = load(config, simulation=simulation, listen=listen)
    weakened = sorted(loaded.simulated.skip_checks)
    if weakened:
        say(weakened_note(weakened), err=True)

    def ready(url: str, pin: str) -> None:
        say(f"broker ready on {url}  pin {pin}")
        if simulation:
            say(SIMULATED_NOTE)
        if weakened:
            say(weakened_note(weakened))
        emit("cvars.broker.serve/1", {"url": url, "pin": pin, "weakened": weakened}, simulated=simulation)

    run(loaded, ready=ready)


@app.command()
def migrate(
    config: ConfigOption = HERE,
    _json: JsonOption = False,
    _quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Bring the database to the schema of this version; changes nothing when it is there already.

    Example: cvars broker migrate --config ./broker
    """
    from cvars.broker.migrate import migrate as run  # noqa: PLC0415

    before, after = run(load(config).database_url)
    say(
        f"database schema: {before or 'none'} -> {after}"
        if before != after
        else f"database schema: {after}, current"
    )
    emit("cvars.broker.migrate/1", {"before": before, "after": after})
