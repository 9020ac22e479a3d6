"""`cvars attest`: one JSON object, the exit codes, and no traceback for anything."""

import json
import subprocess

import pytest
from typer.testing import CliRunner

from cvars.cli.main import app
from cvars.cli.output import SPEECH
from cvars.errors import CvarsError
from tests.attest.conftest import NOW, REPORT_DATA


@pytest.fixture(autouse=True)
def fresh_speech():
    SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False
    yield
    SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False


def run(*arguments: object):
    """Exit code and output of one command."""
    SPEECH.as_json = False
    result = CliRunner().invoke(app, ["attest", *map(str, arguments)])
    if isinstance(result.exception, CvarsError):
        return int(result.exception.exit_code), result.exception.message
    return result.exit_code, result.output


def test_the_manifest_of_recorded_evidence_is_as_expected(vectors):
    code, out = run("verify", "--manifest", vectors / "attestation" / "vectors.json", "--json")
    answer = json.loads(out)
    assert [case for case in answer["cases"] if not case["as_expected"]] == []
    assert (code, answer["total"], answer["expected"]) == (0, 41, 41)
    assert {"id", "authentic", "verdict", "rule", "as_expected"} <= answer["cases"][0].keys()


def test_a_manifest_that_expects_something_else_ends_1(vectors, tmp_path):
    manifest = json.loads((vectors / "attestation" / "vectors.json").read_text())
    for name in ("snp", "tdx"):
        (tmp_path / name).symlink_to(vectors / "attestation" / name)
    wrong = {
        "genoa-v3-idkey": lambda c: c["fields"].update(vmpl=1),
        "turin-v5-idkey": lambda c: c["expected"].update(default_policy="reject"),
        "milan-v3-vlek-vmpl1": lambda c: c["expected"].update(reasons=["SNP-SIG"]),
        "v4-b0c06f-uptodate": lambda c: c["expected"].update(tcb_status="OutOfDate"),
        "milan-v2-cloud-a": lambda c: c["files"].update(report="absent.bin"),
        "v4-50806f-debug-td": lambda c: c["fields"].update(no_such_field=1),
        "milan-v2-azure-hcl": lambda c: c["primitive"].update(chain=False),
        "bad-vcek-raw-hwid": lambda c: c["expected"].update(authentic=True),
    }
    for case in manifest["cases"]:
        wrong.get(case["id"], lambda c: None)(case)
    manifest["mutations"][0]["patch"] = [{"rotate": 3}]
    (tmp_path / "vectors.json").write_text(json.dumps(manifest))
    code, out = run("verify", "--manifest", tmp_path / "vectors.json", "--json")
    differing = {case["id"] for case in json.loads(out)["cases"] if not case["as_expected"]}
    assert code == 1
    # the report of milan-v2-cloud-a is used by bad-vcek-* under their own names, so only the named cases differ
    assert differing == {*wrong, manifest["mutations"][0]["id"]}


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_simulated_evidence_round_trip(tmp_path, simulated_hardware, tee):
    hardware, out = simulated_hardware, tmp_path / "out"
    common = ["--measurement", "ab" * 48, "--report-data", REPORT_DATA.hex(), "--hardware", hardware]
    common += ["--at", NOW.isoformat(), "--out", out]
    code, text = run("simulate", "--tee", tee, *common)
    assert code == 0
    assert "Evidence is simulated" in text
    name = "report.bin" if tee == "snp" else "quote.bin"
    extra = ["--certs", out / "certs"] if tee == "snp" else ["--collateral", out / "collateral.json"]
    check = ["verify", out / name, *extra, "--at", NOW.isoformat(), "--json", "--report-data", REPORT_DATA.hex()]
    code, text = run(*check, "--simulation", "--roots", hardware)
    answer = json.loads(text)
    assert (code, answer["accepted"], answer["rule"], answer["simulated"]) == (0, True, None, True)
    code, text = run("verify", out / "evidence.json", "--at", NOW.isoformat(), "--simulation", "--roots", hardware)
    assert code == 0
    assert "Evidence is simulated" in text
    code, text = run("inspect", out / name)
    assert code == 0
    assert ("measurement" if tee == "snp" else "mr_td") in text
    policy = tmp_path / "policy.yaml"
    leaf = {
        "snp": "snp: {product: [Genoa], measurement_in: [%s], min_tcb: {Genoa: "
        "{bootloader: 10, tee: 0, snp: 23, microcode: 84}}}" % ("ab" * 48),
        "tdx": "tdx: {mr_td_in: [%s], rtmr: {0: any, 1: any, 2: any, 3: any}}" % ("ab" * 48),
    }[tee]
    policy.write_text(f"trust_domains: [simulated]\nany_of:\n  - {leaf}\n")
    judged = [*check, "--simulation", "--roots", hardware, "--policy", policy]
    code, text = run(*judged)
    assert (code, json.loads(text)["accepted"]) == (0, True)
    policy.write_text(policy.read_text().replace("abab", "cdcd"))
    code, text = run(*judged)
    assert (code, json.loads(text)["rule"]) == (1, "SNP-MEAS" if tee == "snp" else "TDX-MR")


def test_openssl_verifies_exported_simulated_evidence(tmp_path, simulated_hardware):
    """An independent check of chain and report signature (issue: "Must show")."""
    out = tmp_path / "out"
    code, _ = run(
        *("simulate", "--tee", "snp", "--measurement", "ab" * 48, "--report-data", REPORT_DATA.hex()),
        *("--hardware", simulated_hardware, "--out", out, "--product", "Milan", "--at", NOW.isoformat()),
    )
    assert code == 0

    def openssl(*arguments, **options):
        return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, **options)

    certs = out / "certs"
    chain = openssl("verify", "-CAfile", certs / "ark.pem", "-untrusted", certs / "ask.pem", certs / "vcek.pem")
    assert chain.returncode == 0, chain.stderr
    key = openssl("x509", "-in", certs / "vcek.pem", "-noout", "-pubkey").stdout
    (tmp_path / "key.pem").write_text(key)
    report = (out / "report.bin").read_bytes()
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    (tmp_path / "signature").write_bytes(encode_dss_signature(r, s))
    check = ["dgst", "-sha384", "-verify", tmp_path / "key.pem", "-signature", tmp_path / "signature"]
    assert openssl(*check, out / "signed.bin").returncode == 0
    (tmp_path / "other").write_bytes((out / "signed.bin").read_bytes()[:-1] + b"\1")
    assert openssl(*check, tmp_path / "other").returncode != 0
    text = openssl("x509", "-in", certs / "vcek.pem", "-noout", "-text").stdout
    assert "SIMULATED HARDWARE - NOT AMD" in text


def test_measure_prints_the_measurement(tmp_path, rng):
    from cvars.attest.measure.digest import flash_digest
    from cvars.attest.measure.snp import Machine, measure_firmware
    from cvars.attest.measure.vmsa import VCPU_TYPES

    image = rng.randbytes(8192)
    (tmp_path / "f.fd").write_bytes(image)
    code, out = run("measure", tmp_path / "f.fd", "--vcpu-type", "EPYC-Genoa")
    assert code == 0
    assert out.strip() == measure_firmware(image, Machine(1, VCPU_TYPES["EPYC-Genoa"])).hex()
    assert out.strip() != flash_digest(image).value.hex()
    assert run("measure", tmp_path / "f.fd")[0] == 2
    assert run("measure", tmp_path / "f.fd", "--vcpu-type", "i486")[0] == 2
    assert run("measure", tmp_path / "f.fd", "--tee", "tdx")[0] == 3


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"{" * 100_000, b"\xff" * 50, b"AAAA", bytes(1184), b"\4\0\2\0" * 400]
)
def test_bad_evidence_is_a_verdict_not_a_traceback(tmp_path, data):
    (tmp_path / "e").write_bytes(data)
    code, out = run("verify", tmp_path / "e", "--json")
    assert code == 1
    assert json.loads(out)["rule"] in ("SNP-FMT", "TDX-FMT", "TDX-HDR")


def test_wrong_command_lines_end_2_and_wrong_files_3(tmp_path):
    (tmp_path / "e").write_bytes(bytes(1184))
    (tmp_path / "m.json").write_text("[]")
    (tmp_path / "p.yaml").write_text("any_of: []")
    assert run("verify")[0] == 2
    assert run("verify", tmp_path / "absent")[0] == 2
    assert run("verify", tmp_path / "e", "--at", "yesterday")[0] == 2
    assert run("verify", tmp_path / "e", "--report-data", "00")[0] == 2
    assert run("verify", tmp_path / "e", "--crl", "maybe")[0] == 2
    assert run("verify", "--manifest", tmp_path / "m.json")[0] == 3
    assert run("verify", tmp_path / "e", "--policy", tmp_path / "p.yaml")[0] == 3
    assert run("inspect", tmp_path / "m.json")[0] == 3
    assert run("simulate", "--out", tmp_path / "o", "--report-data", "00", "--measurement", "00" * 48)[0] == 2


def test_what_the_local_service_serves_is_fetched_and_used(tmp_path, simulated_hardware, amd, sim_roots, tdx):
    """`serve`, `fetch`, then `verify --certs`, without any certificate in the evidence; then an outage."""
    import os
    import signal
    import socket
    import sys
    import time

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cvars", "attest", "serve", "--hardware", str(simulated_hardware)]
    top = str(__import__("pathlib").Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}"],
        env=os.environ | {"PYTHONPATH": top},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "vcek/v1" in process.stdout.readline()
        now = int(time.time())
        sp = amd("Turin")
        (tmp_path / "report").write_bytes(sp.launch(bytes(4096)).report(REPORT_DATA))
        tdx.clock = time.time
        (tmp_path / "quote").write_bytes(tdx.launch(bytes(4096)).quote(REPORT_DATA))
        base = f"http://127.0.0.1:{port}"
        for name in ("report", "quote"):
            kept = tmp_path / "kept"
            code, out = run("fetch", tmp_path / name, "--to", kept, "--kds", base, "--pcs", base)
            assert code == 0, out
            check = ["verify", tmp_path / name, "--certs", kept, "--simulation", "--roots", simulated_hardware]
            code, out = run(*check, "--at", now)
            assert code == 0, out
        assert sorted(p.name for p in kept.rglob("*") if p.is_file())[-1] == "vcek.crl"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert run("fetch", tmp_path / "report", "--to", tmp_path / "more", "--kds", base, "--deadline", "0.5")[0] == 4
    assert run("serve", "--listen", "0.0.0.0:1")[0] == 2
