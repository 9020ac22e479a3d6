"""`broker.toml`: every mistake is found at start, with file, line and key.

The folder of the file is where relative paths start. Key files that others can read are refused.
"""

import re
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cvars.errors import ExitCode, UsageMistake

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class ConfigMistake(UsageMistake):
    """The configuration is wrong; nothing was started."""

    reason = "broker.config"
    exit_code = ExitCode.USAGE


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerTable(_Table):
    """``listen`` is HOST:PORT; anything but loopback needs a certificate."""

    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$")] = "127.0.0.1:8080"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    body_timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    metrics: Literal["anyone", "off"] = "anyone"

    @property
    def host(self) -> str:
        """The address to bind."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to bind; 0 lets the system choose."""
        return int(self.listen.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.host in LOOPBACK

    @model_validator(mode="after")
    def _pairs(self) -> "ServerTable":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key come together")
        if self.client_ca is not None and self.tls_certificate is None:
            raise ValueError("client_ca needs tls_certificate")
        if self.port > 65535:
            raise ValueError("no such port")
        return self


class IdentityTable(_Table):
    """``signing_key`` signs statements (what guests pin); the token keys are P-256."""

    broker_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,64}$")] = "cvars-broker"
    signing_key: str = "keys/signing.pem"
    token_key: str = "keys/token.pem"  # noqa: S105 - a file name
    simulated_token_key: str = "keys/token-simulated.pem"  # noqa: S105


class Pkcs11Table(_Table):
    """The token of ``pkcs11:`` keys. ``module``: a shared library; ``pin``: private file, env: or credential:."""

    module: Path
    token: Annotated[str, Field(min_length=1, max_length=32)]
    pin: str


class SecretsTable(_Table):
    """Master keys: a file of 32 bytes, ``env:NAME`` (hex), ``credential:NAME`` or ``pkcs11:LABEL``."""

    master_key: str = "keys/master.key"
    old_keys: list[str] = []
    pkcs11: Pkcs11Table | None = None


class PolicyTable(_Table):
    """``files``: patterns of YAML policies, read at start and on SIGHUP; ``references``: of reference values."""

    files: list[str] = ["policies/*.yaml"]
    references: list[str] = ["references/*.yaml"]


class AuditTable(_Table):
    """``keep_evidence`` stores accepted and refused evidence beside ``file``, for `cvars broker audit replay`."""

    file: Path | None = Path("audit.jsonl")
    keep_evidence: bool = False


class SessionsTable(_Table):
    """``shared``: sessions in the database, for replicas and restarts."""

    shared: bool = False
    limit: Annotated[int, Field(ge=10, le=1_000_000)] = 20_000
    per_source: Annotated[int, Field(ge=1, le=1_000_000)] = 5_000


class AttestationTable(_Table):
    """``profile_c`` accepts COCONUT-SVSM's binding. ``collateral``: local store of certificates and collateral."""

    profile_c: bool = False
    collateral: Path | None = Path("collateral")
    versions: Annotated[list[str], Field(min_length=1)] = ["0.4.0"]


class SimulationTable(_Table):
    """``roots``: folder of public simulated roots, used only with --simulation."""

    roots: Path | None = Path("simulated-roots")
    skip_checks: list[Literal["lease"]] = []


class AdminKey(_Table):
    """A public key (PEM) that signs admin tokens."""

    file: Path
    issuer: str | None = None
    audience: str | None = None


class AdminRule(_Table):
    """``role`` may call ``methods`` on paths that ``path`` matches in full (* is one part, ** is any rest)."""

    role: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    methods: Annotated[list[Literal["GET", "POST", "PUT", "DELETE"]], Field(min_length=1)]
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/*-]*$")]


class AdminTable(_Table):
    """Who administers. ``allow_all`` exists with --simulation on loopback only."""

    keys: list[AdminKey] = []
    rules: list[AdminRule] = []
    allow_all: bool = False


class CheckpointTable(_Table):
    """Signed checkpoints of the anchor history, every ``interval_s``."""

    folder: Path | None = Path("checkpoints")
    interval_s: Annotated[float, Field(ge=1)] = 300.0


class BrokerConfig(_Table):
    """All of it. ``folder``: where relative paths start; ``file``: what it was read from."""

    folder: Path = Path()
    file: Path | None = None
    simulation: bool = False
    server: ServerTable = ServerTable()
    identity: IdentityTable = IdentityTable()
    database: Annotated[str, Field(pattern=r"^(sqlite|postgresql\+psycopg)://.*$")] = "sqlite:///broker.db"
    secrets: SecretsTable = SecretsTable()
    policy: PolicyTable = PolicyTable()
    audit: AuditTable = AuditTable()
    sessions: SessionsTable = SessionsTable()
    attestation: AttestationTable = AttestationTable()
    simulated: SimulationTable = SimulationTable()
    admin: AdminTable = AdminTable()
    checkpoint: CheckpointTable = CheckpointTable()

    @property
    def evidence(self) -> Path:
        """Folder of kept evidence: beside the audit log, where the broker may write."""
        return self.path(self.audit.file or "audit.jsonl").with_name("evidence")

    def path(self, given: Path | str) -> Path:
        """``given`` relative to the folder of the configuration."""
        return self.folder / given

    def where(self, *key: str) -> str:
        """FILE:LINE of a key; the file alone when the key is not written there."""
        file = self.file or self.folder / "broker.toml"
        try:
            line = _line(file.read_text(), key)
        except (OSError, UnicodeDecodeError):
            line = None
        return f"{file}:{line}" if line else str(file)

    @property
    def database_url(self) -> str:
        """The URL, with a relative SQLite file in the folder."""
        prefix = "sqlite:///"
        if self.database.startswith(prefix) and not self.database.startswith("sqlite:////"):
            return prefix + str(self.path(self.database[len(prefix) :]).resolve())
        return self.database

    def check(self) -> None:
        """What one table alone cannot see. Raises ``ConfigMistake``."""
        where = str(self.folder / "broker.toml")
        if not self.server.loopback and self.server.tls_certificate is None:
            raise ConfigMistake(
                f"server.listen: {self.server.listen} is not loopback and there is no certificate",
                where=where,
                hint="set server.tls_certificate and server.tls_key, or listen on 127.0.0.1",
            )
        if self.simulation and not self.server.loopback:
            raise ConfigMistake("--simulation listens on loopback only", where=where)
        if self.simulated.skip_checks and not self.simulation:
            raise ConfigMistake("simulated.skip_checks exists for tests and needs --simulation", where=where)
        if self.admin.allow_all and not self.simulation:
            raise ConfigMistake("admin.allow_all needs --simulation and loopback", where=where)


def load_config(file: Path, *, simulation: bool = False, listen: str | None = None) -> BrokerConfig:
    """Read ``broker.toml``. Raises ``ConfigMistake``."""
    try:
        text = file.read_text()
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigMistake(f"no {file}", hint="make one with: cvars broker init DIR") from None
    except OSError as error:
        raise ConfigMistake(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigMistake(f"not TOML: {error}", where=str(file)) from None
    for reserved in ("folder", "file", "simulation"):
        if reserved in document:
            raise ConfigMistake(f"{reserved}: not a key of broker.toml", where=str(file))
    if listen is not None:
        document["server"] = dict(document.get("server", {})) | {"listen": listen}
    try:
        config = BrokerConfig.model_validate(
            document | {"folder": file.parent, "file": file, "simulation": simulation}
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        line = _line(text, first["loc"])
        raise ConfigMistake(f"{key}: {first['msg']}", where=f"{file}:{line}" if line else str(file)) from None
    config.check()
    return config


def _line(text: str, loc: tuple[Any, ...]) -> int | None:
    """The line of a key in a TOML text, good enough to point at."""
    words = [str(p) for p in loc if isinstance(p, str)]
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]+)\]+", line):
            table = header.group(1).strip()
            if words == table.split("."):
                return number
        elif words and re.match(rf'\s*"?{re.escape(words[-1])}"?\s*=', line) and table == ".".join(words[:-1]):
            return number
    return None


def read_private_file(path: Path, what: str) -> bytes:
    """The bytes of a key file that only its owner can read. Raises ``ConfigMistake``."""
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigMistake(
                f"{what} is readable by others (mode {stat.S_IMODE(mode):04o})",
                where=str(path),
                hint=f"chmod 600 {path}",
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigMistake(f"{what} cannot be read: {error.strerror}", where=str(path)) from None
