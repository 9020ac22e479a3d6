"""The HTTP application: parts in, ASGI out. What touches the world is handed in, or opened in `open_broker`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from cvars import __version__
from cvars.broker import console, messages, routes_admin, routes_kbs, routes_kbs_admin, routes_native, routes_ops
from cvars.broker.admin import Admin
from cvars.broker.anchors import AnchorStore
from cvars.broker.audit import AuditLog
from cvars.broker.checkpoints import CheckpointFolder
from cvars.broker.config import BrokerConfig, ConfigMistake, read_private_file
from cvars.broker.database import Database
from cvars.broker.http import Edge, answer_exceptions
from cvars.broker.masters import open_keyring
from cvars.broker.metrics import Metrics
from cvars.broker.migrate import prepare
from cvars.broker.openapi import components
from cvars.broker.policies import PolicySet
from cvars.broker.policy.load import PolicyError, read_yaml
from cvars.broker.policy_store import PolicyStore
from cvars.broker.replay import EvidenceFolder
from cvars.broker.resources import Resources
from cvars.broker.service import Broker
from cvars.broker.sessions import MemorySessions, Sessions
from cvars.broker.sessions_db import DatabaseSessions
from cvars.broker.tokens import TokenIssuer
from cvars.broker.verifier import Verifier
from cvars.release.statements import SigningKey, load_private

_MODELS = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, messages.Body) and value is not messages.Body
]


def open_broker(
    config: BrokerConfig,
    *,
    clock: Callable[[], float],
    random: Callable[[int], bytes],
    verifier: Verifier | None = None,
    offline: bool = False,
) -> Broker:
    """Open database, keys, policies and log as ``config`` says.

    ``verifier`` replaces the one with compiled-in (and, under simulation, configured) roots. ``offline``: for the
    operator's commands, beside a running service: no policies, no audit file, no check of checkpoints.

    Raises:
        ConfigMistake, PolicyError, OutsideFailure: nothing is served.
    """
    config.check()
    keyring = open_keyring(config, random)
    signer = _signing_key(config, config.identity.signing_key, "the signing key")
    tokens = TokenIssuer(
        _p256(config, config.identity.token_key, "the token key"),
        config.identity.broker_id,
        _p256(config, config.identity.simulated_token_key, "the simulated token key")
        if config.simulation
        else None,
    )
    verifier = verifier or make_verifier(config)
    database = Database(config.database_url, pooled=not offline)
    prepare(database)
    policies = PolicySet(verifier)
    store = PolicyStore(database, verifier, files=lambda: policy_files(config), clock=clock)
    if not offline:
        store.reload(policies)
        policies.refresh = store.poll
    if not offline and config.checkpoint.folder is not None:
        CheckpointFolder(config.path(config.checkpoint.folder)).check_start(database, signer, now=clock())
    limits = config.sessions
    sessions: Sessions = MemorySessions(random, limit=limits.limit, per_source=limits.per_source)
    if limits.shared:
        sessions = DatabaseSessions(
            database, keyring, verifier, random, limit=limits.limit, per_source=limits.per_source
        )
    audit = AuditLog(None if offline or config.audit.file is None else config.path(config.audit.file), clock=clock)
    return Broker(
        broker_id=config.identity.broker_id,
        db=database,
        anchors=AnchorStore(database, keyring),
        resources=Resources(database, keyring),
        keyring=keyring,
        sessions=sessions,
        tokens=tokens,
        signer=signer,
        policies=policies,
        policy_store=store,
        verifier=verifier,
        audit=audit,
        clock=clock,
        random=random,
        versions=frozenset(config.attestation.versions),
        profile_c=config.attestation.profile_c,
        skip_checks=frozenset(config.simulated.skip_checks),
        keep_evidence=EvidenceFolder(config.evidence).keep if config.audit.keep_evidence else None,
    )


def create_app(
    broker: Broker,
    *,
    admin: Admin | None = None,
    metrics: Metrics | None = None,
    body_timeout_s: float = 10.0,
    inline: bool = False,
) -> Edge:
    """The ASGI application around ``broker``. ``inline``: no threads, for the lab's process.

    Without ``admin`` nobody administers over HTTP; without ``metrics`` there is no /metrics.
    """
    app = FastAPI(
        title="cvars key broker",
        version=__version__,
        summary="Attestation-gated key release with a freshness anchor; speaks Trustee's KBS 0.4.0.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.broker = broker
    app.state.inline = inline
    app.state.admin = admin or Admin()
    app.state.metrics = metrics
    app.state.draining = False
    broker.observe = metrics.decision if metrics is not None else None
    app.state.body_timeout_s = body_timeout_s
    app.include_router(routes_kbs.router)
    app.include_router(routes_native.router)
    app.include_router(routes_kbs_admin.router)
    app.include_router(routes_admin.router)
    app.include_router(routes_ops.router)
    app.include_router(console.router)
    answer_exceptions(app)
    _with_schemas(app)
    app.router.redirect_slashes = False
    return Edge(
        app,
        random=broker.random,
        observe=metrics.request if metrics is not None else _ignore,
        direct=routes_kbs.HOT,
    )


def _ignore(*_: object) -> None:
    """Nothing to observe."""


def _with_schemas(app: FastAPI) -> None:
    """Add the schemas that handlers name but FastAPI does not see."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components(_MODELS))
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)  # a bad parameter is 400 here, 401 under /kbs
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def make_verifier(config: BrokerConfig) -> Verifier:
    """`cvars.attest` with production roots; simulated ones only under --simulation (ROOT-3)."""
    from cvars.attest.library import EmptyLibrary, FileLibrary  # noqa: PLC0415
    from cvars.attest.roots import TrustRoots, load_simulated  # noqa: PLC0415
    from cvars.broker.attestation import AttestVerifier  # noqa: PLC0415

    folder = config.attestation.collateral
    library = None if folder is None else FileLibrary(config.path(folder))
    roots = TrustRoots.production()
    if library is not None:
        roots = roots.with_certificates(library.authorities())
    if config.simulation and config.simulated.roots is not None:
        simulated = config.path(config.simulated.roots)
        if simulated.exists():
            return AttestVerifier(
                load_simulated(simulated, simulation=True, base=roots), library or EmptyLibrary()
            )
        roots = replace(roots, simulation=True)  # none at hand yet: policies may name the domain, nothing passes
    return AttestVerifier(roots, library or EmptyLibrary())


def policy_files(config: BrokerConfig) -> tuple[dict[str, str], dict[str, Any]]:
    """Texts of all policy files and values of all reference files. Raises ``PolicyError``."""
    references: dict[str, Any] = {}
    for file in _files(config, config.policy.references):
        document = read_yaml(_text(file), where=str(file))
        if not isinstance(document, Mapping):
            raise PolicyError("a file of reference values maps names to values", where=str(file))
        references |= {str(name): value for name, value in document.items()}
    return {str(file): _text(file) for file in _files(config, config.policy.files)}, references


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot be read: {error}", where=str(file)) from None


def _files(config: BrokerConfig, patterns: list[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in config.folder.glob(pattern)})


def _signing_key(config: BrokerConfig, source: str, what: str) -> SigningKey:
    try:
        return load_private(read_private_file(config.path(source), what))
    except (ValueError, TypeError) as error:
        raise ConfigMistake(f"{what}: {error}", where=source) from None


def _p256(config: BrokerConfig, source: str, what: str) -> SigningKey:
    key = _signing_key(config, source, what)
    if not isinstance(key.private, ec.EllipticCurvePrivateKey):
        raise ConfigMistake(f"{what} must be P-256 (ES256)", where=source)
    return key
