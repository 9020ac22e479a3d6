"""`cvars broker init`: a folder with a commented configuration, fresh keys and an example policy."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cvars.errors import UsageMistake
from cvars.release.statements import PrivateKey, SigningKey, private_pem

TEMPLATE: Final = """\
# cvars key broker. Relative paths start at this file's folder. Unknown keys are errors.

# SQLite (WAL) for one broker process; PostgreSQL for several:
# database = "postgresql+psycopg://broker@/cvars?host=/run/postgresql"
database = "sqlite:///broker.db"

[server]
# HOST:PORT; port 0 lets the system choose. Anything but loopback needs a certificate.
listen = "127.0.0.1:8080"
# tls_certificate = "tls/broker.crt"
# tls_key = "tls/broker.key"
# client_ca = "tls/clients.crt"         # mutual TLS: only clients with a certificate of this CA
# body_timeout_s = 10.0

[identity]
broker_id = "cvars-broker"
signing_key = "keys/signing.pem"        # signs statements; its SPKI digest is what guests pin
token_key = "keys/token.pem"            # signs attestation tokens (P-256)
simulated_token_key = "keys/token-simulated.pem"

[secrets]
# a file of 32 bytes (mode 0600), env:NAME (hex, removed from the environment), credential:NAME (systemd),
# pkcs11:LABEL (an AES-256 key on a token, sensitive and not extractable; the token must offer CKM_AES_GCM)
master_key = "keys/master.key"
# old_keys = []                         # still unwrap, until `cvars broker secret rotate` has run

# for pkcs11: keys; needs pip install 'cvars[pkcs11]'
# [secrets.pkcs11]
# module = "/usr/lib/softhsm/libsofthsm2.so"
# token = "cvars"                       # its label
# pin = "keys/pin"                      # a file (mode 0600), env:NAME or credential:NAME

[policy]
files = ["policies/*.yaml"]             # read at start and on SIGHUP
references = ["references/*.yaml"]      # NAME: [measurement, ...], used as {ref: NAME}

[audit]
file = "audit.jsonl"                    # hash-chained; check it with: cvars broker audit verify
# keep_evidence = true                  # for: cvars broker audit replay

[sessions]
# shared = true                         # in the database: for several brokers, and to survive a restart
# limit = 20000
# per_source = 5000

[attestation]
# profile_c = true                      # accept COCONUT-SVSM's report-data binding
collateral = "collateral"               # certificates, revocation lists and TDX collateral at hand

[simulated]
# used only with `serve --simulation`, on loopback
roots = "simulated-roots"
# skip_checks = ["lease"]               # a broken broker on purpose, for tests of the demo

[checkpoint]
folder = "checkpoints"                  # signed checkpoints of the anchor history; keep copies elsewhere
interval_s = 300

[admin]
# keys = [{ file = "keys/admin.pub.pem" }]
# rules = [{ role = "operator", methods = ["GET", "POST"], path = "/cvars/v1/**" }]
"""

EXAMPLE_POLICY: Final = """\
# An example: rename to something.yaml, fill in, and check it with `cvars broker policy check FILE`.
policy: example
version: 1
applies_to: ["vms/*/store-kek"]
trust_domains: [amd]
require:
  anchor: {lease: required, max_epoch_gap: 0}
any_of:
  - snp:
      product: [Genoa]
      measurement_in: ["000000000000000000000000000000000000000000000000\
000000000000000000000000000000000000000000000000"]
      min_tcb:
        Genoa: {bootloader: 10, tee: 0, snp: 23, microcode: 84}
release:
  per_vm: true
"""


def init(folder: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Make ``folder``; returns the pin of the signing key. Raises ``UsageMistake`` when it is in use."""
    if (folder / "broker.toml").exists() or (folder / "keys").exists():
        raise UsageMistake(f"{folder} has a broker already", hint="choose another folder; nothing was changed")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "keys").mkdir(mode=0o700)
        for name in ("policies", "references", "checkpoints", "collateral"):
            (folder / name).mkdir(exist_ok=True)
        signing = ed25519.Ed25519PrivateKey.generate()
        _private(folder / "keys" / "signing.pem", private_pem(signing))
        for name in ("token.pem", "token-simulated.pem"):
            key: PrivateKey = ec.generate_private_key(ec.SECP256R1())
            _private(folder / "keys" / name, private_pem(key))
        _private(folder / "keys" / "master.key", random(32))
        (folder / "broker.toml").write_text(TEMPLATE)
        (folder / "policies" / "example.yaml.txt").write_text(EXAMPLE_POLICY)
    except OSError as error:
        raise UsageMistake(f"{folder} cannot be written: {error.strerror}") from None
    return SigningKey(signing).kid


def _private(path: Path, data: bytes) -> None:
    """A new file that only its owner can read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
