"""Properties over many values: TCB floors against an oracle, random edits of recorded evidence (6.4)."""

import json
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvars.attest import Supplied, read_snp, read_tdx, verify
from cvars.attest.requirements import SnpRequirements, TdxRequirements
from cvars.attest.result import Outcome, evaluate
from cvars.attest.snp.leaf import Leaf
from cvars.attest.snp.policy import RULES as SNP_POLICY
from cvars.attest.snp.policy import Claimed
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import SnpReport, build_report
from cvars.attest.tdx.tcb import STATUSES, Level, Status, match_level, worst
from tests.attest.conftest import NOW
from tests.attest.test_bit_flips import case_of

svn = st.integers(0, 255) | st.sampled_from([9, 10, 11])


@pytest.mark.rule("SNP-MINTCB")
@settings(max_examples=300)
@given(
    line=st.sampled_from(["Milan", "Genoa", "Turin"]),
    raw=st.lists(st.lists(svn, min_size=8, max_size=8), min_size=4, max_size=4),
)
def test_a_floor_holds_iff_every_component_of_every_tcb_meets_it(line, raw):
    """The oracle reads the bytes itself, from the table in 2.1."""
    positions = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
    if line != "Turin":
        positions = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
    reported, committed, launch, floor = raw
    wanted = all(tcb[at] >= floor[at] for tcb in (reported, committed, launch) for at in positions.values())
    model = SnpRequirements.model_validate(
        {
            "product": [line],
            "measurement_in": "any",
            "min_tcb": {line: {name: floor[at] for name, at in positions.items()}},
        }
    )
    names = ("reported_tcb", "committed_tcb", "launch_tcb")
    report = build_report(**{name: bytes(tcb) for name, tcb in zip(names, raw, strict=False)})
    claimed = Claimed(
        report=SnpReport.parse(report),
        line=line,
        leaf=Leaf(None, None, None, None, ""),
        crl_seen=False,
        want=model,
        init_data=None,
        references={},
    )
    checks = {check.rule: check for check in evaluate(SNP_POLICY, claimed, stop=False)}
    assert (checks["SNP-MINTCB"].outcome is Outcome.OK) == wanted


@given(raw=st.binary(min_size=8, max_size=8))
def test_a_tcb_round_trips_in_both_layouts(raw):
    for line, reserved in (("Genoa", (2, 3, 4, 5)), ("Turin", (4, 5, 6))):
        clean = bytes(0 if at in reserved else byte for at, byte in enumerate(raw))
        assert Tcb.parse(raw, line).to_bytes() == clean


components = st.lists(st.integers(0, 6), min_size=16, max_size=16).map(tuple)


@pytest.mark.rule("TDX-TCB")
@settings(max_examples=300)
@given(
    have=components,
    pce=st.integers(0, 6),
    tdx=st.lists(st.integers(0, 3), min_size=16, max_size=16).map(bytes),
    levels=st.lists(st.tuples(components, components, st.integers(0, 6)), max_size=5),
)
def test_TDX_TCB_takes_the_first_level_that_is_reached(have, pce, tdx, levels):
    made = [Level(sgx, td, svn, Status("UpToDate", NOW)) for sgx, td, svn in levels]
    first = 0 if tdx[1] == 0 else 2
    wanted = None
    for number, (sgx, td, svn) in enumerate(levels):
        sgx_ok = sum(have[i] < sgx[i] for i in range(16)) == 0
        tdx_ok = sum(tdx[i] < td[i] for i in range(first, 16)) == 0
        if sgx_ok and tdx_ok and pce >= svn:
            wanted = made[number]
            break
    assert match_level(made, sgx=have, pce_svn=pce, tdx=tdx) is wanted


@given(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=3))
def test_TDX_MERGE_is_the_last_in_the_list(statuses):
    merged = worst([Status(one, NOW, (one,)) for one in statuses])
    assert merged.status == STATUSES[max(STATUSES.index(one) for one in statuses)]
    assert set(merged.advisories) == set(statuses)


def random_edits(rng, data):
    """Bytes, a cut, an insertion: at least one difference."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0 | 1:
                out[at] = (out[at] + rng.randrange(1, 256)) % 256
            case 2:
                del out[at : at + rng.randrange(1, 9)]
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(out)


def edit_everything(vectors, real_roots, rng, count):
    folder, made = vectors / "attestation", 0
    for name in (
        "genoa-v3-idkey",
        "turin-v5-idkey",
        "milan-v3-vlek-vmpl1",
        "v4-b0c06f-uptodate",
        "v5-90c06f-no-tcb-level",
    ):
        case = case_of(folder, name)
        files = {kind: (folder / path).read_bytes() for kind, path in case["files"].items()}
        at = datetime.fromtimestamp(case["evaluate_at"], UTC)
        for _ in range(count):
            data = random_edits(rng, files.get("report") or files["quote"])
            if "report" in files:
                evidence = read_snp(data, (Supplied("unknown", files["vek"]),))
            else:
                evidence = read_tdx(data, files["collateral"])
            result = verify(evidence, roots=real_roots, at=at, report_data=None)
            json.dumps(result.as_json())
            if result.authentic:  # an edit that undid itself, another number of line ends, or more zero padding
                original = files.get("report") or files["quote"]
                assert data == original or meaningless(data, original)
            made += 1
    return made


def meaningless(data, original):
    """The same certificates and signed bytes: only line ends of the PEM text, or zero padding, differ."""
    from cvars.attest.certificates import read_pem
    from cvars.attest.tdx.quote import parse_quote

    mine, theirs = parse_quote(data), parse_quote(original)
    same = [getattr(mine, name) == getattr(theirs, name) for name in ("signed", "signature", "auth_data")]
    return all(same) and read_pem(mine.pck_chain) == read_pem(theirs.pck_chain)


def test_random_edits_of_recorded_evidence_are_never_accepted(vectors, real_roots, rng):
    assert edit_everything(vectors, real_roots, rng, 60) == 300


@pytest.mark.exhaustive
def test_a_hundred_thousand_random_edits_of_each(vectors, real_roots):
    print(edit_everything(vectors, real_roots, random.Random(1), 100_000), "edits")


def test_policy_models_of_the_specification_load():
    """The two leaves as key-release 3.1 writes them."""
    import yaml

    snp = """
      product: [Genoa, Turin]
      report_versions: [3, 5]
      signing_key: [vcek]
      vmpl: [0]
      measurement_in: {ref: firmware/web-1.4}
      id_key_digest_in: ["%s"]
      guest_svn_min: 2
      guest_policy: {debug: false, migrate_ma: false, smt: any, single_socket: any, aes256xts: any}
      platform: {alias_check: true, tsme: any, smt: any, ecc: true, ciphertext_hiding: any}
      min_tcb:
        Genoa: {bootloader: 10, tee: 0, snp: 23, microcode: 84}
        Turin: {fmc: 1, bootloader: 1, tee: 1, snp: 4, microcode: 81}
      mitigations: {launch: 0x0, current: 0x0}
      crl: if-present
    """ % ("ab" * 48)
    tdx = """
      mr_td_in: {ref: firmware/web-1.4-td}
      rtmr: {0: any, 1: {in: ["%s"]}, 2: any, 3: any}
      tcb_status: [UpToDate]
      tolerate_advisories: []
      min_eval_number: 17
      attributes: {debug: false, sept_ve_disable: true, migratable: false}
    """ % ("ab" * 48)
    good = {SnpRequirements: yaml.safe_load(snp), TdxRequirements: yaml.safe_load(tdx)}
    for model, value in good.items():
        model.model_validate(value)
        for wrong in (
            value | {"unknown": 1},
            {k: v for k, v in value.items() if not k.endswith("_in") or k == "id_key_digest_in"},
            value | {"vmpl": []},
            value | {"tcb_status": []},
        ):
            if wrong == value:
                continue
            with pytest.raises(ValueError):
                model.model_validate(wrong)
    for name, bad in (
        ("product", []),
        ("product", ["Rome"]),
        ("vmpl", [4]),
        ("measurement_in", []),
        ("measurement_in", ["00"]),
        ("measurement_in", "all"),
        ("signing_key", ["vlek"]),
        ("report_versions", [1]),
        ("guest_svn_min", -1),
        ("guest_policy", {"debug": "any"}),
        ("crl", "sometimes"),
        ("min_tcb", {}),
    ):
        with pytest.raises(ValueError):
            SnpRequirements.model_validate(good[SnpRequirements] | {name: bad})
    for name, bad in (
        ("rtmr", {0: "any", 1: "any", 2: "any"}),
        ("rtmr", {0: "any", 1: "any", 2: "any", 3: {"in": []}}),
        ("tcb_status", ["Revoked"]),
        ("tcb_status", ["Fine"]),
        ("xfam", {}),
        ("xfam", {"exact": "00" * 8, "mask": "00" * 8}),
        ("attributes", {"debug": "any"}),
        ("grace_days", -1),
    ):
        with pytest.raises(ValueError):
            TdxRequirements.model_validate(good[TdxRequirements] | {name: bad})
