"""What the commands of `cvars broker` share: the configuration, and the broker's parts beside the service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cvars.broker.config import BrokerConfig
    from cvars.broker.service import Broker

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="broker.toml, or its folder.", envvar="CVARS_BROKER_CONFIG")
]
HERE = Path("broker.toml")


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
