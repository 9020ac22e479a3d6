"""`cvars broker …` in this process: what it prints, how it ends, and that the service would agree."""

import json
import random as random_module
import shutil
import time

import pytest
from typer.testing import CliRunner

from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx
from cvars.broker.database import METADATA, Database
from cvars.broker.migrate import HEAD, SchemaMismatch, migrate
from cvars.cli import main
from cvars.cli.output import SPEECH
from cvars.errors import CvarsError
from cvars.release import initdata
from tests.broker.support import World


@pytest.fixture
def run():
    """Run a command: (exit code, JSON object or text)."""

    def command(*arguments, text=False, stdin=None):
        SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False
        flags = [] if text else ["--json"]
        try:
            done = CliRunner().invoke(
                main.app, ["broker", *map(str, arguments), *flags], input=stdin, catch_exceptions=False
            )
        except CvarsError as error:
            return int(error.exit_code), error
        finally:
            SPEECH.as_json = False
        return done.exit_code, done.output if text else json.loads(done.output)

    return command


@pytest.fixture
def folder(world):
    world.close()
    return world.folder


def test_a_vm_lives_from_add_to_reset(run, folder):
    code, made = run("vm", "add", "vm-1", "-c", folder)
    assert (code, made["state"], made["mode"]) == (0, "new", "critical")
    assert run("vm", "add", "vm-1", "-c", folder)[0] == 2
    assert run("vm", "add", "a/b", "-c", folder)[0] == 2
    assert run("vm", "add", "vm-2", "-c", folder, "--mode", "fast")[0] == 2
    assert [v["vm_id"] for v in run("vm", "list", "-c", folder)[1]["vms"]] == ["vm-1"]
    assert run("vm", "freeze", "vm-1", "-c", folder)[1]["state"] == "frozen"
    assert run("vm", "freeze", "vm-1", "-c", folder)[0] == 1
    assert run("vm", "thaw", "vm-1", "-c", folder)[1]["state"] == "new"
    assert run("vm", "rotate", "vm-1", "-c", folder)[0] == 1  # nothing to rotate yet
    root = "ab" * 32
    assert run("vm", "rebase", "vm-1", "--counter", "5", "--root", root, "-c", folder)[0] == 2
    code, rebased = run("vm", "rebase", "vm-1", "--counter", "5", "--root", root, "--force", "-c", folder)
    assert (rebased["counter"], rebased["root"], rebased["state"]) == (5, root, "released")
    assert run("vm", "rotate", "vm-1", "-c", folder)[1]["key_version"] == 2
    assert run("vm", "finalise", "vm-1", "-c", folder)[0] == 1  # no advance under the new version yet
    assert run("vm", "retire", "vm-1", "-c", folder)[0] == 2
    assert run("vm", "retire", "vm-1", "--force", "-c", folder)[1]["state"] == "retired"
    assert run("vm", "reset", "vm-1", "--force", "-c", folder)[1]["state"] == "new"
    code, shown = run("vm", "show", "vm-1", "-c", folder)
    assert (code, shown["sound"]) == (0, True)
    assert [e["kind"] for e in shown["log"]] == ["enrol", "freeze", "thaw", "reset", "rotate", "retire", "reset"]
    assert run("vm", "show", "vm-9", "-c", folder)[0] == 1


def test_an_edited_history_is_seen(run, folder):
    run("vm", "add", "vm-1", "-c", folder)
    run("vm", "freeze", "vm-1", "-c", folder)
    database = Database(f"sqlite:///{folder / 'broker.db'}")
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE history SET entry = replace(entry, 'freeze', 'thaw')")
    database.close()
    assert run("vm", "show", "vm-1", "-c", folder)[0] == 1


def test_secrets_and_the_rotation_of_the_master_key(run, folder, tmp_path):
    secret = tmp_path / "tls.key"
    secret.write_bytes(b"very secret")
    assert run("secret", "put", "tls/vm-1/key", secret, "-c", folder)[1]["version"] == 1
    assert run("secret", "put", "tls/vm-1/key", "-", "-c", folder, stdin="changed")[1]["version"] == 2
    assert run("secret", "put", "vms/vm-1/store-kek", secret, "-c", folder)[0] == 2
    assert run("secret", "put", "../x/y", secret, "-c", folder)[0] == 2
    run("vm", "add", "vm-1", "-c", folder)
    keys = folder / "keys"
    shutil.move(keys / "master.key", keys / "old.key")
    (keys / "master.key").write_bytes(bytes(range(32)))
    (keys / "master.key").chmod(0o600)
    toml = folder / "broker.toml"
    toml.write_text(toml.read_text().replace("# old_keys = []", 'old_keys = ["keys/old.key"]'))
    assert run("secret", "rotate", "-c", folder)[1]["rewrapped"] == 2
    assert run("secret", "rotate", "-c", folder)[1]["rewrapped"] == 0
    toml.write_text(toml.read_text().replace('old_keys = ["keys/old.key"]', "# old_keys = []"))
    from cvars.broker.app import open_broker
    from cvars.broker.config import load_config

    broker = open_broker(load_config(toml), clock=time.time, random=bytes, offline=True)
    assert broker.resources.get("tls/vm-1/key") == b"changed"
    assert broker.anchors.store_keys("vm-1", [1]) is not None
    broker.db.close()
    assert run("secret", "delete", "tls/vm-1/key", "-c", folder)[0] == 2
    assert run("secret", "delete", "tls/vm-1/key", "--force", "-c", folder)[0] == 0
    assert run("secret", "list", "-c", folder)[1]["secrets"] == []


def test_K55_checkpoint_verify_names_the_gap(run, folder, tmp_path):
    run("vm", "add", "vm-1", "-c", folder)
    database = folder / "broker.db"
    shutil.copy(database, tmp_path / "old.db")
    run("vm", "freeze", "vm-1", "-c", folder)
    checkpoint = tmp_path / "later.jws"
    assert run("checkpoint", "create", "--out", checkpoint, "-c", folder)[0] == 0
    assert run("checkpoint", "verify", checkpoint, "-c", folder)[0] == 0
    for name in ("broker.db-wal", "broker.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "old.db", database)
    code, found = run("checkpoint", "verify", checkpoint, "-c", folder)
    assert code == 1
    assert found["gaps"] == [{"vm_id": "vm-1", "wanted": 2, "found": 1, "why": "shorter"}]
    checkpoint.write_text(checkpoint.read_text()[:-9])
    assert run("checkpoint", "verify", checkpoint, "-c", folder)[0] == 3


def test_the_audit_log_shows_edits(run, world):
    world.broker.add_vm("vm-1", mode="none")
    world.guest().boot()
    log = world.folder / "audit.jsonl"
    code, found = run("audit", "verify", log)
    assert (code, found["lines"]) == (0, 3)
    lines = log.read_text().splitlines()
    for bad in ([lines[0], lines[2]], [lines[0].replace("allow", "deny"), *lines[1:]], ["{}"], ["x"]):
        log.write_text("\n".join(bad) + "\n")
        assert run("audit", "verify", log)[0] == 1


def test_the_database_migrates_by_one_command(run, folder, tmp_path):
    database = Database(f"sqlite:///{folder / 'broker.db'}")
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    database.close()
    assert isinstance(run("vm", "list", "-c", folder)[1], SchemaMismatch)
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    assert migrate(fresh) == (None, HEAD)
    assert migrate(fresh) == (HEAD, HEAD)
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database(fresh)
    with database.write() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


@pytest.fixture
def evidence(simulated_hardware, tmp_path):
    random = random_module.Random(3).randbytes
    amd = SimulatedAmdSp.load_or_create(simulated_hardware, product="Genoa", random=random)
    tdx = SimulatedTdx.load_or_create(simulated_hardware, random=random, clock=time.time)
    out = tmp_path / "evidence"
    out.mkdir()
    (out / "snp.json").write_text(json.dumps(amd.launch(measurement=b"\1" * 48).collect(bytes(64))))
    (out / "tdx.json").write_text(json.dumps(tdx.launch(measurement=b"\1" * 48).collect(bytes(64))))
    (out / "vmpl.json").write_text(json.dumps(_at_vmpl(amd)))
    return out


def _at_vmpl(amd):
    from cvars.attest.snp.trustee import write_structured

    guest = amd.launch(measurement=b"\1" * 48)
    return write_structured(guest.report(bytes(64), 1), guest.supplied())


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_a_suggested_policy_accepts_its_evidence_and_explain_says_why_not(
    run, evidence, simulated_hardware, tmp_path, tee
):
    roots = ["--simulated-roots", simulated_hardware / "public"]
    code, made = run("policy", "suggest", "--evidence", evidence / f"{tee}.json", *roots)
    assert code == 0
    policy = tmp_path / "policy.yaml"
    policy.write_text(made["policy"])
    assert run("policy", "check", policy, "--simulation")[0] == 0
    assert run("policy", "check", policy)[0] == 3  # ROOT-3
    code, said = run("policy", "explain", policy, "--evidence", evidence / f"{tee}.json", *roots)
    assert (code, said["allowed"], said["simulated"]) == (0, True, True)
    stricter = tmp_path / "stricter.yaml"
    stricter.write_text(made["policy"].replace("01" * 48, "02" * 48))
    code, said = run("policy", "explain", stricter, "--evidence", evidence / f"{tee}.json", *roots)
    assert (code, said["rule"]) == (1, "SNP-MEAS" if tee == "snp" else "TDX-MR")
    code, changed = run("policy", "diff", policy, stricter, "--evidence", evidence, *roots)
    assert code == 1
    assert changed["changes"][0]["before"] == "allow"
    if tee == "snp":
        code, text = run("policy", "explain", policy, "--evidence", evidence / "vmpl.json", *roots, text=True)
        assert code == 1
        assert "denied, SNP-VMPL" in text


def test_policy_check_names_line_and_key(run, tmp_path):
    policy = tmp_path / "p.yaml"
    policy.write_text("policy: x\nversion: 1\napplies_to: []\n")
    code, error = run("policy", "check", policy)
    assert code == 3
    assert error.where == f"{policy}:3"
    assert "applies_to" in error.message


def test_azure_policies_are_imported_or_refused(run, tmp_path):
    file = tmp_path / "azure.json"
    claims = [
        {"claim": "x-ms-isolation-tee.x-ms-attestation-type", "equals": "sevsnpvm"},
        {"claim": "x-ms-isolation-tee.x-ms-compliance-status", "equals": "azure-compliant-cvm"},
        {"claim": "x-ms-isolation-tee.x-ms-sevsnpvm-launchmeasurement", "equals": "ab" * 48},
        {"claim": "x-ms-isolation-tee.x-ms-sevsnpvm-is-debuggable", "equals": "false"},
        {"claim": "x-ms-isolation-tee.x-ms-sevsnpvm-guestsvn", "greater": 3},
    ]
    document = {"version": "1.0.0", "anyOf": [{"authority": "https://a.example", "allOf": claims}]}
    file.write_text(json.dumps(document))
    code, made = run("policy", "import", file)
    assert code == 0
    policy = tmp_path / "imported.yaml"
    policy.write_text(made["policy"])
    assert run("policy", "check", policy)[0] == 0
    assert "guest_svn_min: 4" in made["policy"]
    for bad in (
        {"claim": "x-unknown", "equals": 1},
        {"claim": "x-ms-isolation-tee.x-ms-sevsnpvm-launchmeasurement", "greater": 1},
        {"claim": "x-ms-isolation-tee.x-ms-sevsnpvm-launchmeasurement", "equals": "cd" * 48},
        {"noneOf": []},
        {"allOf": []},
    ):
        file.write_text(json.dumps({"version": "1", "anyOf": [{"authority": "a", "allOf": [*claims, bad]}]}))
        assert run("policy", "import", file)[0] == 3, bad
    file.write_text("[" * 100)
    assert run("policy", "import", file)[0] == 3


@pytest.mark.parametrize(
    ("file", "folder"), [("audit.jsonl", "."), ("/var/log/cvars/audit.jsonl", "/var/log/cvars")]
)
def test_evidence_is_kept_beside_the_audit_log(world, file, folder):
    from cvars.broker.config import AuditTable

    config = world.config.model_copy(update={"audit": AuditTable(file=file, keep_evidence=True)})
    assert config.evidence == world.folder / folder / "evidence"


def test_K48_audit_replay_verifies_kept_evidence_again(run, tmp_path, simulated_hardware):
    from cvars.broker.app import make_verifier
    from cvars.broker.config import AuditTable, SimulationTable
    from tests.broker.test_serve import POLICY as REAL_POLICY

    amd = SimulatedAmdSp.load_or_create(
        simulated_hardware, product="Genoa", random=random_module.Random(3).randbytes
    )
    world = World(
        tmp_path / "b", policy=None, simulation=True, audit=AuditTable(keep_evidence=True),
        simulated=SimulationTable(roots=simulated_hardware / "public"),
    )  # fmt: skip
    assert "ref:" in REAL_POLICY
    world.close()
    world.verifier = make_verifier(world.config)
    world.open()
    guest = world.guest()
    parsed_host_data = initdata.parse(guest.init_data).host_data
    guest.client._evidence = amd.launch(measurement=b"\1" * 48, host_data=parsed_host_data)
    guest.client.attest(guest.init_data)
    from cvars.broker.replay import replay

    log, kept = world.folder / "audit.jsonl", world.folder / "evidence"
    assert [(r.recorded, r.now) for r in replay(log, kept, world.verifier)] == [("allow", "allow")]
    from cvars.attest.roots import TrustRoots
    from cvars.broker.attestation import AttestVerifier

    again = replay(log, kept, AttestVerifier(TrustRoots.production()))  # the root is gone: no longer accepted
    assert again[0].now not in ("allow", "not kept")
    world.close()
