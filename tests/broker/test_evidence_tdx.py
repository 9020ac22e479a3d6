"""TDX evidence that must not open anything, through the HTTP API (K25..K32)."""

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from cvars.attest.simulated.tdx_module import Platform
from tests.broker.real import policy_text

SIGNATURE_AT = 48 + 584 + 4


def evidence(td, *, edit=lambda quote: quote, collateral=None, log=None, **quote):
    """Evidence of ``td``; ``edit`` changes the signed quote, ``collateral`` is a document of nine members."""

    def collect(report_data):
        document = json.loads(td.collateral()) if collateral is None else collateral
        return {
            "quote": base64.b64encode(edit(td.quote(report_data, **quote))).decode(),
            "cc_eventlog": None if log is None else base64.b64encode(log).decode(),
            "collateral": document,
        }

    return collect


def collateral(td, **changes):
    return json.loads(td.processor.collateral(**changes).to_json())


def patch(offset, data):
    return lambda quote: quote[:offset] + data + quote[offset + len(data) :]


@pytest.fixture
def tdx(sample):
    """Outcome of TDX evidence."""
    return lambda collect: sample.outcome(collect, tee="tdx")


def test_the_evidence_of_these_tests_is_good(sample, tdx):
    td = sample.tdx()
    assert tdx(evidence(td)) == (200, "")
    assert tdx(evidence(td, version=5)) == (200, "")


def test_K25_the_quoting_enclave_vouches_for_another_key(sample, tdx):
    td = sample.tdx()
    key_at = SIGNATURE_AT + 64
    other = td.processor.pck_key.public_key().public_numbers()
    replaced = other.x.to_bytes(32) + other.y.to_bytes(32)
    status, rule = tdx(evidence(td, edit=patch(key_at, replaced)))
    assert (status, rule) in ((401, "TDX-QEHASH"), (401, "TDX-QESIG"), (401, "TDX-SIG"))
    assert tdx(evidence(td, qe={"report_data": bytes(64)}))[1] == "TDX-QEHASH"
    qe_at = key_at + 64 + 6
    assert tdx(evidence(td, edit=patch(qe_at + 320, b"\xff")))[1] == "TDX-QESIG"
    auth_at = qe_at + 384 + 64 + 2
    assert tdx(evidence(td, edit=patch(auth_at, b"\xff\xff")))[1] == "TDX-QEHASH"


def test_K26_another_quoting_enclave(sample, tdx):
    td = sample.tdx()
    assert tdx(evidence(td, qe={"mr_signer": bytes(32)}))[1] == "TDX-QEID"
    debug = bytes.fromhex("13000000000000000000000000000000")
    assert tdx(evidence(td, qe={"attributes": debug}))[1] == "TDX-QEID"
    assert tdx(evidence(td, qe={"isv_svn": 0}))[0] in (401, 403)
    levels = {"tcbLevels": [{"tcb": {"isvsvn": 9}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"}]}
    assert tdx(evidence(td, collateral=collateral(td, qe_identity=levels)))[1] == "TDX-QEID"


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"status": "OutOfDate"}, "OutOfDate"),
        ({"module_status": "OutOfDate"}, "OutOfDate"),
        ({"status": "OutOfDate", "module_status": "OutOfDate"}, "OutOfDate"),
        ({"status": "SWHardeningNeeded"}, "SWHardeningNeeded"),
        ({"qe_status": "OutOfDate"}, "OutOfDate"),
        ({"status": "Revoked"}, None),
    ],
)
def test_K27_the_worst_status_counts(sample, tdx, changes, status):
    td = sample.tdx()
    made = evidence(td, collateral=collateral(td, **changes))
    assert tdx(made) == (403, "TDX-STATUS") or tdx(made)[1] == "TDX-STATUS"
    if status is not None:
        sample.put(policy_text(tdx=f"      tcb_status: [UpToDate, {status}]"))
        assert tdx(made) == (200, "")
        sample.put(policy_text(tdx="      tcb_status: [UpToDate, ConfigurationNeeded]"))
        assert tdx(made)[1] == "TDX-STATUS"


def test_K28_no_matching_level(sample, tdx, vectors, monkeypatch):
    td = sample.tdx()
    above = {
        "tcb": {"sgxtcbcomponents": [{"svn": 200}] * 16, "pcesvn": 99, "tdxtcbcomponents": [{"svn": 200}] * 16}
    }
    level = above | {"tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
    assert tdx(evidence(td, collateral=collateral(td, tcb_info={"tcbLevels": [level]})))[1] == "TDX-TCB"
    assert _recorded(sample, vectors, monkeypatch, "v5-90c06f-no-tcb-level")[1] == "TDX-TCB"


def _recorded(sample, vectors, monkeypatch, case):
    """Recorded real evidence with nonce and clock injected: the outcome."""
    from cvars.release import reportdata

    index = json.loads((vectors / "attestation" / "vectors.json").read_text())
    found = next(c for c in index["cases"] if c["id"] == case)
    folder = vectors / "attestation" / "tdx" / case
    quote = (folder / "quote.bin").read_bytes()
    body_at = 48 if quote[0] == 4 else 54
    data_at = body_at + 0x208
    monkeypatch.setattr(reportdata, "profile_t", lambda *_: quote[data_at : data_at + 64])
    sample.clock.now = float(found["evaluate_at"])
    mr_td = quote[body_at + 0x88 : body_at + 0x88 + 48].hex()
    config = quote[body_at + 0xB8 : body_at + 0xB8 + 48].hex()
    sample.put(
        policy_text(
            domains="intel",
            any_of=f"""  - tdx:
      mr_td_in: ["{mr_td}"]
      mr_config_id_in: ["{config}"]
      rtmr: {{0: any, 1: any, 2: any, 3: any}}
      tcb_status: [UpToDate, OutOfDate]
""",
        )
    )
    primary = {
        "quote": base64.b64encode(quote).decode(),
        "cc_eventlog": None,
        "collateral": json.loads((folder / "collateral.json").read_text()),
    }
    return sample.outcome(lambda _: primary, tee="tdx")


def test_K60_a_recorded_real_td_obtains_its_secret(sample, vectors, monkeypatch):
    assert _recorded(sample, vectors, monkeypatch, "v4-b0c06f-uptodate") == (200, "")


def test_K29_collateral(sample, tdx):
    td = sample.tdx()
    now = datetime.fromtimestamp(sample.clock(), UTC).replace(microsecond=0)
    serial = 1
    from cvars.attest.simulated.tdx_module import serial_of

    serial = serial_of(td.processor.pck())
    signer = serial_of(td.processor.signer_certificate)
    good = collateral(td)
    reserialised = good | {"tcb_info": json.dumps(json.loads(good["tcb_info"]))}
    short = json.loads(good["tcb_info"])
    short["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop()
    for document in (
        collateral(td, issued=now - timedelta(days=40)),
        collateral(td, issued=now + timedelta(days=2)),
        reserialised,
        collateral(td, tcb_info={"fmspc": "00906ED50000"}),
        collateral(td, tcb_info={"id": "SGX"}),
        collateral(td, revoked_pck=(serial,)),
        collateral(td, revoked_root=(signer,)),
        collateral(td, tcb_info={"tcbLevels": short["tcbLevels"]}),
        {k: v for k, v in good.items() if k != "pck_crl"},
        good | {"root_ca_crl": good["pck_crl"]},
        {},
    ):
        status, rule = tdx(evidence(td, collateral=document))
        assert status in (401, 403)
        assert rule.startswith("TDX-"), rule
    sample.put(policy_text(tdx="      min_eval_number: 18"))
    assert tdx(evidence(td))[1] == "TDX-EVAL"


def test_K30_debug(sample, tdx, vectors, monkeypatch):
    td = sample.tdx(attributes=0x10000001)
    sample.put(policy_text(tdx="      tcb_status: [UpToDate, OutOfDate]"))
    assert tdx(evidence(td))[1] == "TDX-ATTR"
    assert _recorded(sample, vectors, monkeypatch, "v4-50806f-debug-td")[1] == "TDX-ATTR"


def test_K31_lengths(sample, tdx, vectors):
    td = sample.tdx()
    data_at = SIGNATURE_AT
    outer = data_at + 128
    auth_at = outer + 6 + 384 + 64
    for edit in (
        patch(data_at - 4, b"\xff\xff\xff\x7f"),
        patch(outer + 2, b"\xff\xff\xff\xff"),
        patch(auth_at, b"\xff\xff"),
        patch(auth_at + 2 + 32, b"\x06\x00"),
        lambda quote: quote + b"\1",
        lambda quote: quote[:100],
        lambda quote: quote.ljust(17000, b"\0"),
        patch(0, b"\x09\x00"),
    ):
        status, rule = tdx(evidence(td, edit=edit))
        assert status == 401
        assert rule in ("TDX-FMT", "TDX-HDR", "TDX-QEHASH", "TDX-PCK"), rule
    assert tdx(evidence(td, edit=lambda quote: quote + bytes(64))) == (200, "")  # zero padding is normal
    sgx = (vectors / "attestation" / "tdx" / "sgx-v3-00a06711-confswhardening" / "quote.bin").read_bytes()
    status, rule = tdx(lambda _: {"quote": base64.b64encode(sgx).decode(), "cc_eventlog": None})
    assert status == 401
    assert rule.startswith("TDX-")


def test_K32_event_logs(sample, tdx):
    td = sample.tdx()
    td.extend(0, b"firmware")
    td.extend(1, b"kernel")
    assert tdx(evidence(td, log=td.event_log())) == (200, "")
    other = sample.tdx()
    other.extend(0, b"something else")
    assert tdx(evidence(td, log=other.event_log()))[1] == "TDX-RTMR"
    status, _ = tdx(evidence(td, log=td.event_log() + bytes(300 * 1024)))
    assert status == 401


def test_relaunch_and_replaced_platforms_are_seen(sample, tdx):
    td = sample.tdx()
    td.processor.platform = dataclasses.replace(Platform(), components=(0,) * 16)
    assert tdx(evidence(td, collateral=collateral(sample.tdx())))[0] in (401, 403)
