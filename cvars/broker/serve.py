"""`cvars broker serve`: one process, one listening socket, an orderly end on SIGTERM."""

import asyncio
import contextlib
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable

import structlog
import uvicorn

from cvars.broker.admin import load_admin
from cvars.broker.app import create_app, open_broker
from cvars.broker.checkpoints import CheckpointFolder, Exporter, make
from cvars.broker.config import BrokerConfig, read_private_file
from cvars.broker.metrics import Metrics
from cvars.broker.service import Broker
from cvars.errors import CvarsError, OutsideFailure

log = structlog.get_logger("cvars.broker")


def bind(config: BrokerConfig) -> socket.socket:
    """The listening socket. Raises ``OutsideFailure`` in one sentence."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise OutsideFailure(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another process has it? port 0 lets the system choose",
        ) from None
    return listener


def serve(config: BrokerConfig, *, ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready(url, pin)`` is called when connections are accepted."""
    listener = bind(config)
    try:
        broker = open_broker(config, clock=time.time, random=secrets.token_bytes)
    except BaseException:
        listener.close()
        raise
    try:
        admin = load_admin(config)
    except BaseException:
        listener.close()
        raise
    metrics = None if config.server.metrics == "off" else Metrics()
    app = create_app(broker, admin=admin, metrics=metrics, body_timeout_s=config.server.body_timeout_s)
    exporter = _exporter(config, broker)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=20,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    _tls(config, settings)
    server = uvicorn.Server(settings)
    scheme = "https" if settings.is_ssl else "http"
    host, port = listener.getsockname()[:2]
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            server.should_exit = True

        def reload() -> None:
            try:
                broker.policy_store.reload(broker.policies)
                log.info("policies.reloaded", policies=[p.name for p in broker.policies.current().policies])
            except CvarsError as error:  # the old ones stay active (K42)
                log.error("policies.refused", error=error.message, where=error.where)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready(url, broker.signer.kid)
        timer = asyncio.create_task(_tick(exporter))
        await task
        timer.cancel()

    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    try:
        asyncio.run(run())
        if exporter is not None:
            exporter.tick(force=True)
    finally:
        broker.audit.close()
        broker.keyring.close()
        broker.db.close()


def _exporter(config: BrokerConfig, broker: Broker) -> Exporter | None:
    """Signed checkpoints on a timer, when a folder is configured."""
    if config.checkpoint.folder is None:
        return None

    def make_one(now: float) -> str:
        return make(broker.db, broker.signer, now=now, broker_id=broker.broker_id)

    folder = CheckpointFolder(config.path(config.checkpoint.folder))
    return Exporter(folder, make_one, interval_s=config.checkpoint.interval_s, clock=time.time)


async def _tick(exporter: Exporter | None) -> None:
    """Once a second; an outside failure is logged and tried again."""
    while exporter is not None:
        try:
            await asyncio.to_thread(exporter.tick)
        except CvarsError as error:
            log.error("checkpoint.failed", error=error.message, where=error.where)
        await asyncio.sleep(1)


def _tls(config: BrokerConfig, settings: uvicorn.Config) -> None:
    if config.server.tls_certificate is None or config.server.tls_key is None:
        return
    key = config.path(config.server.tls_key)
    read_private_file(key, "the TLS key")
    settings.ssl_certfile = str(config.path(config.server.tls_certificate))
    settings.ssl_keyfile = str(key)
    if config.server.client_ca is not None:
        settings.ssl_ca_certs = str(config.path(config.server.client_ca))
        settings.ssl_cert_reqs = ssl.CERT_REQUIRED
