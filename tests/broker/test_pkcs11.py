"""The master key on a PKCS#11 token: SoftHSM (Debian's package softhsm2), which needs no hardware."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cvars.broker.app import open_broker
from cvars.broker.config import ConfigMistake, load_config
from cvars.broker.database import RESOURCES, VM_KEYS
from cvars.broker.rewrap import rewrap
from cvars.broker.secrets import MasterKeyDown, WrongMasterKey
from cvars.errors import CvarsError
from tests.broker.support import World

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
PIN = "secret-pin-1"


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """The module of a token ``cvars`` with keys; its session is the process's own."""
    module = next((m for m in MODULES if Path(m).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs softhsm2")
        pytest.skip("no SoftHSM: apt-get install softhsm2")
    import pkcs11

    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    for label in ("cvars", "twin", "twin"):
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", PIN],
            check=True, capture_output=True,
        )  # fmt: skip
    kinds = pkcs11.KeyType
    with pkcs11.lib(module).get_token(token_label="cvars").open(rw=True, user_pin=PIN) as session:
        for label in ("first", "second", "double", "double"):
            session.generate_key(kinds.AES, 256, label=label, store=True)
        session.generate_key(kinds.AES, 128, label="short", store=True)
        session.generate_key(kinds.DES3, label="des", store=True)
        session.generate_key(
            kinds.AES, 256, label="loose", store=True,
            template={pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: True},
        )  # fmt: skip
        session.generate_key(kinds.AES, 256, label="mute", store=True, capabilities=pkcs11.MechanismFlag.SIGN)
        session.generate_keypair(kinds.RSA, 2048, label="rsa", store=True)
    yield module
    pkcs11.unload(module)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def configure(folder, module, *, master="pkcs11:first", old="[]", token="cvars", pin="keys/pin"):
    """`broker.toml` as an operator edits it."""
    text = (folder / "broker.toml").read_text()
    text = re.sub(r"(?m)^(# )?old_keys = .*$", f"old_keys = {old}", text)
    text = re.sub(r"(?m)^master_key = .*$", f'master_key = "{master}"', text)
    text = re.sub(r"(?ms)^(# )?\[secrets\.pkcs11\]\n.*?\n\n", "", text)
    table = f'[secrets.pkcs11]\nmodule = "{module}"\ntoken = "{token}"\npin = "{pin}"\n\n'
    (folder / "broker.toml").write_text(text.replace("[policy]", f"{table}[policy]"))
    secret = folder / "keys" / "pin"
    if not secret.exists():
        secret.write_text(f"{PIN}\n")
        secret.chmod(0o600)


@pytest.fixture
def folder(world):
    """A broker's folder, with its key in a file so far."""
    world.close()
    return world.folder


@contextlib.contextmanager
def opened(folder):
    broker = open_broker(load_config(folder / "broker.toml"), clock=lambda: 1.8e9, random=os.urandom, offline=True)
    try:
        yield broker
    finally:
        broker.keyring.close()
        broker.db.close()


def on_token(tmp_path, token):
    """A broker whose master key is on the token, with one VM."""
    world = World(tmp_path / "b")
    world.close()
    configure(world.folder, token)
    world.config = load_config(world.folder / "broker.toml")
    world.open()
    world.broker.add_vm("vm-1", mode="none")
    return world


def test_secrets_are_wrapped_on_the_token_and_guests_boot(token, tmp_path):
    world = on_token(tmp_path, token)
    world.broker.resources.put("a/b/c", b"x" * 65536)
    _, keys, _ = world.guest().boot(provision=True)
    world.restart()
    assert world.broker.resources.get("a/b/c") == b"x" * 65536
    assert world.broker.anchors.store_keys("vm-1", [1]) == [keys[1]]
    got = []
    threads = [threading.Thread(target=lambda: got.append(world.broker.resources.get("a/b/c"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [b"x" * 65536] * 16
    world.close()


def test_rotation_from_a_file_to_a_token_to_another_key_and_back(token, folder):
    with opened(folder) as broker:
        broker.add_vm("vm-1", mode="none")
        broker.resources.put("a/b/c", b"secret", policy_digest="d")
        before = broker.anchors.store_keys("vm-1", [1])
    for master, old in (
        ("pkcs11:first", '["keys/master.key"]'),
        ("pkcs11:second", '["pkcs11:first"]'),
        ("keys/master.key", '["pkcs11:second"]'),
    ):
        configure(folder, token, master=master)
        with opened(folder) as broker, pytest.raises(WrongMasterKey, match="not configured"):
            broker.resources.get("a/b/c")
        configure(folder, token, master=master, old=old)
        with opened(folder) as broker:
            assert broker.resources.get("a/b/c") == b"secret"
            assert rewrap(broker.db, broker.keyring) == 2
            assert rewrap(broker.db, broker.keyring) == 0
        configure(folder, token, master=master)
        with opened(folder) as broker:
            assert broker.resources.get("a/b/c") == b"secret"
            assert broker.anchors.store_keys("vm-1", [1]) == before


@pytest.mark.parametrize("master", ["pkcs11:first", "keys/master.key"])
def test_a_row_that_was_moved_or_changed_is_refused(token, folder, master):
    configure(folder, token, master=master)
    with opened(folder) as broker:
        for path in ("a/b/c", "d/e/f"):
            broker.resources.put(path, path.encode(), policy_digest="one")
        broker.add_vm("vm-1", mode="none")
        broker.add_vm("vm-2", mode="none")

        def row(path):
            with broker.db.read() as connection:
                return connection.execute(RESOURCES.select().where(RESOURCES.c.path == path)).one()

        def update(table, where, **values):
            with broker.db.write() as connection:
                connection.execute(table.update().where(where).values(**values))

        here, there = row("a/b/c"), row("d/e/f")
        mine = RESOURCES.c.path == "a/b/c"
        good = {"wrapped": here.wrapped, "version": 1, "policy_digest": "one"}
        flipped = here.wrapped[:-1] + bytes([here.wrapped[-1] ^ 1])
        for change in (
            {"wrapped": there.wrapped},
            {"version": 2},
            {"policy_digest": "two"},
            {"wrapped": flipped},
            {"wrapped": here.wrapped[:20]},
            {"wrapped": here.wrapped[:10]},
        ):
            update(RESOURCES, mine, **change)
            with pytest.raises(WrongMasterKey):
                broker.resources.get("a/b/c")
            update(RESOURCES, mine, **good)
            assert broker.resources.get("a/b/c") == b"a/b/c"
        with broker.db.read() as connection:
            other = connection.execute(VM_KEYS.select().where(VM_KEYS.c.vm_id == "vm-2")).one()
        update(VM_KEYS, VM_KEYS.c.vm_id == "vm-1", wrapped=other.wrapped)
        with pytest.raises(WrongMasterKey):
            broker.anchors.store_keys("vm-1", [1])


def mistake(folder):
    with pytest.raises(ConfigMistake) as error:
        open_broker(load_config(folder / "broker.toml"), clock=lambda: 1.8e9, random=os.urandom)
    return error.value


def line_of(folder, start):
    lines = (folder / "broker.toml").read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.startswith(start))


def test_each_mistake_is_one_sentence_with_file_line_and_key(token, folder, tmp_path, monkeypatch):
    text = tmp_path / "notes.so"
    text.write_text("not a library")
    cases = [
        ({"module": tmp_path / "none.so"}, "secrets.pkcs11.module", f"no PKCS#11 module at {tmp_path}/none.so"),
        ({"module": text}, "secrets.pkcs11.module", "not a usable PKCS#11 module"),
        ({"token": "other"}, "secrets.pkcs11.token", "no token with the label 'other'; there are"),
        ({"token": "twin"}, "secrets.pkcs11.token", "2 tokens with the label 'twin'"),
        ({"pin": "env:CVARS_NO_PIN"}, "secrets.pkcs11.pin", "env:CVARS_NO_PIN has no PIN"),
        ({"pin": "env:CVARS_PIN"}, "secrets.pkcs11.pin", "refuses the PIN (PinIncorrect)"),
        ({"master": "pkcs11:third"}, "secrets.master_key", "no secret key with the label 'third'"),
        ({"master": "pkcs11:rsa"}, "secrets.master_key", "no secret key with the label 'rsa'"),
        ({"master": "pkcs11:double"}, "secrets.master_key", "2 secret keys with the label 'double'"),
        ({"master": "pkcs11:short"}, "secrets.master_key", "is 128-bit AES, wanted AES-256"),
        ({"master": "pkcs11:des"}, "secrets.master_key", "is DES3, wanted AES-256"),
        ({"master": "pkcs11:loose"}, "secrets.master_key", "can leave the token"),
        ({"master": "pkcs11:mute"}, "secrets.master_key", "may not encrypt and decrypt"),
        ({"old": '["pkcs11:third"]'}, "secrets.old_keys", "no secret key with the label 'third'"),
    ]
    for change, key, wanted in cases:
        monkeypatch.setenv("CVARS_PIN", "wrong-pin-12")
        configure(folder, **({"module": token} | change))
        error = mistake(folder)
        assert error.message.startswith(f"{key}: "), (change, error.message)
        assert wanted in error.message, (change, error.message)
        assert error.where == f"{folder / 'broker.toml'}:{line_of(folder, key.rpartition('.')[2] + ' =')}"
        assert "\n" not in error.message
        assert PIN not in f"{error.message}{error.hint}"
    configure(folder, token)
    (folder / "keys" / "pin").chmod(0o640)
    assert "the PIN of the token is readable by others" in mistake(folder).message
    (folder / "keys" / "pin").chmod(0o600)
    without = (folder / "broker.toml").read_text().replace("[secrets.pkcs11]", "[secrets.pkcs12]")
    (folder / "broker.toml").write_text(without)
    assert mistake(folder).message.startswith("secrets.pkcs12: ")
    (folder / "broker.toml").write_text(re.sub(r"(?s)\[secrets.pkcs12\].*?\n\n", "", without))
    error = mistake(folder)
    assert error.message == "secrets.master_key: pkcs11:first needs the table [secrets.pkcs11]"
    assert error.where.endswith(f":{line_of(folder, 'master_key =')}")
    configure(folder, token)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    error = mistake(folder)
    assert error.message == "secrets.master_key: a key on a PKCS#11 token needs the pkcs11 extra"
    assert error.hint == "pip install 'cvars[pkcs11]'"


def test_a_lost_session_is_opened_again_once_and_with_the_same_key(token, folder, monkeypatch):
    monkeypatch.setenv("CVARS_PIN", PIN)
    configure(folder, token, pin="env:CVARS_PIN")
    with opened(folder) as broker:
        assert "CVARS_PIN" not in os.environ  # handed over once
        broker.resources.put("a/b/c", b"secret")
        key = broker.keyring._master

        def lost(**changes):
            key._session.close()
            for name, value in changes.items():
                monkeypatch.setattr(key, name, value)

        lost()
        assert broker.resources.get("a/b/c") == b"secret"
        lost(_label="second")  # as if another key had taken the label
        with pytest.raises(MasterKeyDown, match="not the one of the start"):
            broker.resources.put("a/b/c", b"changed")
        monkeypatch.setattr(key, "_label", "first")
        assert broker.resources.get("a/b/c") == b"secret"
        lost(_token="gone")
        for _ in range(2):
            with pytest.raises(MasterKeyDown, match="no token with the label 'gone'"):
                broker.resources.get("a/b/c")
        monkeypatch.setattr(key, "_token", "cvars")
        assert broker.resources.get("a/b/c") == b"secret"
        lost(_pin="wrong-pin-12")
        for said in ("PinIncorrect", "refused before"):
            with pytest.raises(MasterKeyDown, match=said):
                broker.resources.get("a/b/c")


def test_a_guest_is_told_503_while_the_token_is_away_or_a_row_was_changed(token, tmp_path, capsys):
    world = on_token(tmp_path, token)
    answers = []

    def http(*request):
        answers.append(world.http(*request))
        return answers[-1]

    guest = world.guest(http=http)
    guest.client.attest(guest.init_data)
    guest.client.acquire("vm-1")
    key = world.broker.keyring._master
    key._session.close()
    key._token = "gone"
    with pytest.raises(CvarsError):
        guest.client.store_key("vm-1", provision=True)
    assert answers[-1].status == 503
    assert json.loads(answers[-1].body)["reason"] == "broker.master_key_down"
    key._token = "cvars"
    with world.broker.db.write() as connection:
        connection.execute(VM_KEYS.update().values(wrapped=world.broker.keyring.wrap(bytes(32), b"elsewhere")))
    with pytest.raises(CvarsError):
        guest.client.store_key("vm-1", provision=True)
    assert answers[-1].status == 503
    assert json.loads(answers[-1].body)["reason"] == "broker.wrong_master_key"
    assert "Traceback" not in capsys.readouterr().out
    world.close()


def test_the_command_line_uses_the_token(token, folder, tmp_path):
    configure(folder, token, pin="env:CVARS_PIN")

    def cvars(*arguments, pin=PIN, **environment):
        return subprocess.run(
            [sys.executable, "-m", "cvars", "broker", *arguments, "-c", str(folder)],
            capture_output=True, text=True, check=False, input="hello",
            env=os.environ | {"CVARS_PIN": pin} | environment,
        )  # fmt: skip

    done = cvars("secret", "put", "a/b/c", "-")
    assert done.returncode == 0, done.stderr
    refused = cvars("serve", "--listen", "127.0.0.1:0", pin="wrong-pin-12")
    assert refused.returncode == 2
    assert "refuses the PIN" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "wrong-pin-12" not in refused.stderr
    other = tmp_path / "softhsm2.conf"
    usual = Path(os.environ["SOFTHSM2_CONF"]).read_text()
    other.write_text(f"{usual}slots.mechanisms = CKM_AES_CBC,CKM_AES_ECB\n")
    refused = cvars("secret", "list", SOFTHSM2_CONF=str(other))
    assert refused.returncode == 2
    assert "secrets.pkcs11.token: the token 'cvars' does not offer CKM_AES_GCM" in refused.stderr
    configure(folder, token)
    with opened(folder) as broker:
        assert broker.resources.get("a/b/c") == b"hello"
