"""Where master keys come from: a private file, environment, systemd credential, PKCS#11 token (key-release 6).

Every mistake is found at start, and names the line of `broker.toml`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from cvars.broker.config import BrokerConfig, ConfigMistake, Pkcs11Table, read_private_file
from cvars.broker.secrets import KEY_SIZE, Keyring, LocalKey, MasterKey


def open_keyring(config: BrokerConfig, random: Callable[[int], bytes]) -> Keyring:
    """The master keys that ``config.secrets`` names. Raises ``ConfigMistake``."""
    wanted = [("old_keys", "an old master key", source) for source in config.secrets.old_keys]
    wanted.append(("master_key", "the master key", config.secrets.master_key))
    labels = [source.partition(":")[2] for _, _, source in wanted if source.startswith("pkcs11:")]
    pin = _pin(config, config.secrets.pkcs11) if labels and config.secrets.pkcs11 is not None else ""
    opened: list[MasterKey] = []
    try:
        for name, what, source in wanted:
            opened.append(_open(config, name, what, source, pin))
        return Keyring(opened[-1], random, opened[:-1])
    except BaseException:
        for key in opened:
            key.close()
        raise


def _open(config: BrokerConfig, name: str, what: str, source: str, pin: str) -> MasterKey:
    if not source.startswith("pkcs11:"):
        return LocalKey(_bytes(config, source, what))
    from cvars.broker.hsm import HsmMistake, TokenKey  # noqa: PLC0415 - only where a token is named

    table = config.secrets.pkcs11
    if table is None:
        raise ConfigMistake(
            f"secrets.{name}: {source} needs the table [secrets.pkcs11]",
            where=config.where("secrets", name),
            hint="with module, token and pin; see the comments that `cvars broker init` writes",
        )
    try:
        return TokenKey(config.path(table.module), table.token, source.partition(":")[2], pin)
    except HsmMistake as error:
        key = ("secrets", name) if error.key is None else ("secrets", "pkcs11", error.key)
        raise ConfigMistake(f"{'.'.join(key)}: {error}", where=config.where(*key), hint=error.hint) from None


def _pin(config: BrokerConfig, table: Pkcs11Table) -> str:
    """The PIN, read once: an environment variable is gone afterwards."""
    where = config.where("secrets", "pkcs11", "pin")
    try:
        pin = _read(config, table.pin, "the PIN of the token").decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigMistake(f"secrets.pkcs11.pin: {table.pin} is not UTF-8", where=where) from None
    if not pin:
        raise ConfigMistake(f"secrets.pkcs11.pin: {table.pin} has no PIN", where=where)
    return pin


def _bytes(config: BrokerConfig, source: str, what: str) -> bytes:
    """A 32-byte key from a private file, ``env:NAME`` (hex) or ``credential:NAME`` (systemd)."""
    key = _read(config, source, what)
    if source.startswith("env:"):
        try:
            key = bytes.fromhex(key.decode())
        except ValueError:
            raise ConfigMistake(f"{what}: {source} is not hex") from None
    if len(key) != KEY_SIZE:
        raise ConfigMistake(f"{what} has {len(key)} bytes, wanted {KEY_SIZE}", where=source)
    return key


def _read(config: BrokerConfig, source: str, what: str) -> bytes:
    kind, _, name = source.partition(":")
    if kind == "env":
        return os.environ.pop(name, "").encode()
    if kind == "credential":
        return read_private_file(Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / name, what)
    return read_private_file(config.path(source), what)
