"""ROOT-1..5: a production process never accepts a simulated root, whichever way it comes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvars.attest import RootRefused, TrustRoots, check_domains, load_simulated, with_simulated
from cvars.attest.roots import PINS
from tests.attest.conftest import NOW, REPORT_DATA

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.rule("ROOT-3")
@pytest.mark.parametrize("origin", ["a file", "the environment", "the database", "the evidence", "the policy"])
def test_ROOT_3_production_loads_no_simulated_root(simulated_hardware, sim_roots, origin):
    data = [certificate.der for certificate in sim_roots.authorities]
    with pytest.raises(RootRefused, match="ROOT-3") as refused:
        with_simulated(TrustRoots.production(), data, simulation=False, origin=origin)
    assert origin in refused.value.message
    with pytest.raises(RootRefused, match="ROOT-3"):
        load_simulated(simulated_hardware, simulation=False)
    with pytest.raises(RootRefused, match="ROOT-4"):
        TrustRoots.production().with_certificates(data)


def test_ROOT_3_an_unmarked_root_is_no_simulated_root(vectors):
    ark = (vectors / "attestation/snp/certs/milan-ark.pem").read_bytes()
    with pytest.raises(RootRefused, match="mark"):
        with_simulated(TrustRoots.production(), [ark], simulation=True)


def test_ROOT_2_a_policy_names_its_domains_and_production_knows_no_simulated_one():
    assert check_domains(["amd"], simulation=False) == {"amd"}
    assert check_domains(["simulated"], simulation=True) == {"simulated"}
    for named in ([], ["simulated"], ["amd", "simulated"], ["arm"]):
        with pytest.raises(RootRefused, match="ROOT-"):
            check_domains(named, simulation=False)


@pytest.mark.rule("ROOT-1")
def test_ROOT_1_the_pins_are_those_of_the_recorded_roots(vectors):
    from cvars.attest.certificates import load_any

    folder = vectors / "attestation"
    files = [*folder.glob("snp/certs/*-ark.pem"), folder / "tdx/certs/intel-sgx-root-ca.der"]
    found = {load_any(file.read_bytes())[0].spki_sha256 for file in files}
    assert found == set(PINS)


@pytest.fixture
def made(tmp_path, simulated_hardware):
    """Simulated evidence in files, with a policy that accepts it."""
    out = tmp_path / "out"
    options = ["--report-data", REPORT_DATA.hex(), "--measurement", "ab" * 48, "--at", NOW.isoformat()]
    assert cvars("attest", "simulate", *options, "--out", out, "--hardware", simulated_hardware).returncode == 0
    policy = tmp_path / "policy.yaml"
    leaf = (
        "{product: [Genoa], measurement_in: any, min_tcb: {Genoa: {bootloader: 0, tee: 0, snp: 0, microcode: 0}}}"
    )
    policy.write_text(f"trust_domains: [simulated]\nany_of: [{{snp: {leaf}}}]\n")
    return out, policy


def cvars(*arguments, **environment):
    """Run the command as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "cvars", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(TOP)} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=TOP,
    )


def test_a_production_process_with_a_simulated_root_serves_nothing(made, simulated_hardware):
    """As processes: by file, environment, supplied certificates, evidence, policy."""
    out, policy = made
    report = ["attest", "verify", out / "report.bin", "--at", NOW.isoformat(), "--json"]
    for process, words in (
        (cvars(*report, "--roots", simulated_hardware), "ROOT-3"),
        (cvars(*report, CVARS_ATTEST_ROOTS=str(simulated_hardware)), "ROOT-3"),
        (cvars(*report, "--certs", out / "certs"), "ROOT-4"),
        (cvars("attest", "verify", out / "evidence.json", "--at", NOW.isoformat(), "--json"), "ROOT-4"),
        (cvars(*report, "--policy", policy), "ROOT-3"),
    ):
        assert process.returncode == 1, process.stderr
        answer = json.loads(process.stdout)
        assert not answer.get("accepted", False)
        assert words in json.dumps(answer)
    accepted = cvars(
        *report, "--simulation", "--roots", simulated_hardware, "--policy", policy, "--certs", out / "certs"
    )
    assert accepted.returncode == 0, accepted.stdout


def test_the_folder_of_simulated_keys_is_private(simulated_hardware, sim_roots):
    assert simulated_hardware.stat().st_mode & 0o777 == 0o700
    for file in simulated_hardware.rglob("*"):
        if file.is_file() and "public" not in file.parts and file.name != ".lock":
            assert file.stat().st_mode & 0o777 == 0o600, file
    assert "protect nothing" in (simulated_hardware / "README").read_text()
    assert not [file for file in (simulated_hardware / "public").rglob("*") if file.suffix == ".key"]


def test_marks_of_simulated_hardware(amd, tdx, sim_roots):
    for line in ("Milan", "Genoa", "Turin"):
        assert amd(line).hwid.startswith(b"SIM-")
    assert amd("Turin").hwid[8:] == bytes(56)
    assert tdx.fmspc.startswith(b"\x51\xa0")
    assert tdx.ppid.startswith(b"SIM-")
    for certificate in sim_roots.authorities:
        assert certificate.simulated
        assert b".invalid" in certificate.der or b"NOT INTEL" in certificate.der
