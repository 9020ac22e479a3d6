"""Table 3.2 of `attestation`: correctly signed TDX evidence that violates one rule each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cvars.attest.certificates import write_pem
from cvars.attest.simulated import Platform, SimulatedTdx, issue
from cvars.attest.simulated.issue import Issuer
from cvars.attest.tdx import eventlog
from tests.attest.conftest import NOW, REPORT_DATA
from tests.attest.kit import (
    MEASUREMENT,
    PAST,
    Attempt,
    Bench,
    Case,
    flip,
    production,
)

# --- TDX -------------------------------------------------------------------------------------------

BODY_10 = {"body_type": 2}  # without TEE_TCB_SVN2, for which TDX-RELAUNCH repeats TDX-TCB
QE_SIGNATURE_AT = 64 + 64 + 6 + 384  # in the signature data


def signature_data_at(quote: bytes) -> int:
    version = int.from_bytes(quote[:2], "little")
    body = 584 if version == 4 else int.from_bytes(quote[50:54], "little")
    return 48 + (6 if version == 5 else 0) + body + 4


def tdx_cases() -> list[Case]:
    """Table 3.2."""
    out: list[Case] = []
    for version in (4, 5):
        out += quote_cases(version)
    statuses = (
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    )
    old = {"tcb": {"isvsvn": 9}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
    zero = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    modules = [{"id": "TDX_01"} | zero | {"tcbLevels": [old]}]
    out += [
        *[
            Case(f"status-{one}", "TDX-STATUS", lambda b, one=one: b.td(collateral={"status": one}), ("TDX-TCB",))
            for one in statuses
        ],
        *[
            Case(
                f"merge-module-{one}",
                "TDX-STATUS",
                lambda b, one=one: b.td(collateral={"module_status": one}),
                ("TDX-MERGE", "TDX-MODULE"),
            )
            for one in ("OutOfDate", "SWHardeningNeeded", "Revoked")
        ],
        Case(
            "merge-qe-out-of-date",
            "TDX-STATUS",
            lambda b: b.td(collateral={"qe_status": "OutOfDate"}),
            ("TDX-MERGE", "TDX-QEID"),
        ),
        Case(
            "status-advisory",
            "TDX-STATUS",
            lambda b: b.td(
                collateral={"status": "SWHardeningNeeded", "advisories": ("INTEL-SA-00001",)},
                want={"tcb_status": ["UpToDate", "SWHardeningNeeded"], "tolerate_advisories": ["INTEL-SA-00002"]},
            ),
            ("TDX-TCB",),
        ),
        Case("crl-pck-revoked", "TDX-CRL", lambda b: b.td(collateral={"revoked_pck": (0x5102,)})),
        Case("crl-ca-revoked", "TDX-CRL", lambda b: b.td(collateral={"revoked_root": (0x5101,)})),
        Case("crl-tcb-signing-revoked", "TDX-CRL", lambda b: b.td(collateral={"revoked_root": (0x5103,)})),
        Case("crl-no-root-list", "TDX-CRL", lambda b: b.td(members=lambda *_: {"root_ca_crl": b""})),
        Case("crl-no-pck-list", "TDX-CRL", lambda b: b.td(members=lambda *_: {"pck_crl": b""})),
        Case("crl-root-list-for-pck", "TDX-CRL", lambda b: b.td(members=lambda _, c: {"pck_crl": c.root_ca_crl})),
        Case("crl-expired", "TDX-CRL", lambda b: b.td(members=old_list)),
        Case("crl-other-ca", "TDX-CRL", processor_list),
        Case("coll-tcb-info-signature", "TDX-COLL", lambda b: b.td(members=reserialised)),
        Case(
            "coll-qe-signature",
            "TDX-COLL",
            lambda b: b.td(members=lambda *_: {"qe_identity_signature": bytes(64)}),
        ),
        Case("coll-other-root", "TDX-COLL", signed_under_other_root),
        Case("coll-no-issuer-chain", "TDX-COLL", lambda b: b.td(members=lambda *_: {"pck_crl_issuer_chain": b""})),
        Case("coll-signed-by-pck-ca", "TDX-COLL", signed_by_the_pck_ca),
        *[
            Case(
                f"colltime-{name}-{what}",
                "TDX-COLLTIME",
                lambda b, name=name, dates=dates: b.td(collateral={name: dates}),
            )
            for name in ("tcb_info", "qe_identity")
            for what, dates in (
                ("expired", {"issueDate": "2026-01-01T00:00:00Z", "nextUpdate": "2026-06-01T00:00:00Z"}),
                ("future", {"issueDate": "2026-06-01T00:00:01Z", "nextUpdate": "2026-07-01T00:00:00Z"}),
            )
        ],
        Case("colltime-signer-expired", "TDX-COLLTIME", lambda b: b.td(members=expired_signer)),
        Case("fmspc-other", "TDX-FMSPC", lambda b: b.td(collateral={"tcb_info": {"fmspc": "51A000000000"}})),
        Case("fmspc-pceid", "TDX-FMSPC", lambda b: b.td(collateral={"tcb_info": {"pceId": "0001"}})),
        Case("fmspc-sgx-tcb-info", "TDX-FMSPC", lambda b: b.td(collateral={"tcb_info": {"id": "SGX"}})),
        Case("fmspc-version-2", "TDX-FMSPC", lambda b: b.td(collateral={"tcb_info": {"version": 2}})),
        Case("qeid-identity", "TDX-QEID", lambda b: b.td(collateral={"qe_identity": {"id": "QE"}})),
        Case("qeid-version", "TDX-QEID", lambda b: b.td(collateral={"qe_identity": {"version": 1}})),
        Case(
            "module-below-all",
            "TDX-MODULE",
            lambda b: b.td(collateral={"tcb_info": {"tdxModuleIdentities": modules}}),
        ),
        Case("eval", "TDX-EVAL", lambda b: b.td(collateral={"evaluation": 16}, want={"min_eval_number": 17})),
        Case(
            "eval-qe-only",
            "TDX-EVAL",
            lambda b: b.td(
                collateral={"qe_identity": {"tcbEvaluationDataNumber": 16}}, want={"min_eval_number": 17}
            ),
        ),
        Case("rtmr-other", "TDX-RTMR", lambda b: b.td(events=True, log=eventlog.write([]))),
        Case("rtmr-not-a-log", "TDX-RTMR", lambda b: b.td(events=True, log=b"log")),
        Case("rtmr-huge", "TDX-RTMR", lambda b: b.td(log=eventlog.write([]) + bytes(300 * 1024))),
        Case("root-2-domain", "ROOT-2", lambda b: b.td(with_={"domains": ("intel",)})),
    ]
    return out


def quote_cases(version: int) -> list[Case]:
    """Rules about the quote itself, in both versions."""

    def of(name: str, rule: str, make: Callable[[Bench], Attempt], *undone_by: str) -> Case:
        return Case(f"v{version}-{name}", rule, make, undone_by)

    def quote(name: str, rule: str, **options: Any) -> Case:
        return of(name, rule, lambda b: b.td(version, **options))

    def body(name: str, rule: str, **fields: Any) -> Case:
        return quote(name, rule, quote={"body": fields})

    out = [
        quote("fmt-trailing", "TDX-FMT", patch=lambda raw: raw + bytes(10) + b"\1"),
        quote("hdr-vendor", "TDX-HDR", quote={"header": {"qe_vendor_id": bytes(16)}}),
        quote("hdr-key-type", "TDX-HDR", quote={"header": {"attestation_key_type": 3}}),
        quote("hdr-tee-type", "TDX-HDR", quote={"header": {"tee_type": 0x82}}),
        of("root-4", "ROOT-4", lambda b: b.td(version, roots=production(b.roots))),
        of("pck-expired", "TDX-PCK", lambda b: b.td(version, quote={"pck": b.tdx().pck(validity=(PAST, PAST))})),
        of("pck-signature", "TDX-PCK", lambda b: b.td(version, quote={"pck": wrongly_issued_pck(b)})),
        of(
            "qesig",
            "TDX-QESIG",
            lambda b: b.td(version, patch=lambda raw: flip(signature_data_at(raw) + QE_SIGNATURE_AT)(raw)),
        ),
        quote("qehash", "TDX-QEHASH", quote={"qe": {"report_data": bytes(64)}}),
        of("qehash-tail", "TDX-QEHASH", lambda b: b.td(version, quote={"qe": qe_tail(b)})),
        of("sig", "TDX-SIG", lambda b: b.td(version, patch=lambda raw: flip(signature_data_at(raw))(raw))),
        quote("qeid-mrsigner", "TDX-QEID", quote={"qe": {"mr_signer": bytes(32)}}),
        quote("qeid-prodid", "TDX-QEID", quote={"qe": {"isv_prod_id": 1}}),
        quote("qeid-misc", "TDX-QEID", quote={"qe": {"misc_select": 1}}),
        quote("qeid-attributes", "TDX-QEID", quote={"qe": {"attributes": bytes((1, *bytes(15)))}}),
        quote(
            "qeid-debug",
            "TDX-QEID",
            quote={"qe": {"attributes": bytes((0x13, *bytes(15)))}},
            collateral={"qe_identity": {"attributes": "13" + "00" * 15}},
        ),
        quote("qeid-svn", "TDX-QEID", platform=Platform(qe_isv_svn=1)),
        body("seam-signer", "TDX-SEAM", mr_signer_seam=b"\1" * 48),
        body("seam-attributes", "TDX-SEAM", seam_attributes=1),
        quote("tcb-none", "TDX-TCB", quote=BODY_10, collateral={"tcb_info": {"tcbLevels": []}}),
        of("tcb-15-components", "TDX-TCB", fifteen_components(version)),
        of("bind", "TDX-BIND", lambda b: b.td(version, with_={"report_data": bytes(64)})),
        quote("attr-debug", "TDX-ATTR", attributes=1 << 28 | 1),
        quote("attr-debug-group", "TDX-ATTR", attributes=1 << 28 | 2),
        quote("attr-sept-ve", "TDX-ATTR", attributes=0),
        quote("attr-migratable", "TDX-ATTR", attributes=1 << 28 | 1 << 29),
        quote("attr-perfmon", "TDX-ATTR", attributes=1 << 28 | 1 << 63),
        *[
            quote(f"attr-{name}", "TDX-ATTR", want={"attributes": {name: True}})
            for name in ("lass", "pks", "key_locker")
        ],
        body("xfam-bits", "TDX-XFAM", xfam=0x602E6),
        quote("xfam-exact", "TDX-XFAM", want={"xfam": {"exact": "e702060000000001"}}),
        quote("xfam-mask", "TDX-XFAM", want={"xfam": {"mask": "0700000000000000"}}),
        quote("mr-td", "TDX-MR", want={"mr_td_in": ["00" * 48]}),
        *[
            quote(
                f"mr-rtmr{n}", "TDX-MR", want={"rtmr": dict.fromkeys(range(4), "any") | {n: {"in": ["11" * 48]}}}
            )
            for n in range(4)
        ],
        quote("mr-config", "TDX-MR", want={"mr_config_id_in": "init-data"}),
        body("mr-owner", "TDX-MR", mr_owner=b"\1" * 48),
        body("mr-owner-config", "TDX-MR", mr_owner_config=b"\1" * 48),
        quote("mrseam", "TDX-MRSEAM", want={"mr_seam_in": ["00" * 48]}),
    ]
    if version == 5:
        unmatched = Platform(tee_tcb_svn2=bytes((5, 2, 2)) + bytes(13))
        better = Platform(tee_tcb_svn=bytes((5, 1, 1)) + bytes(13), tee_tcb_svn2=bytes((5, 1, 2)) + bytes(13))
        out += [
            body("mr-service", "TDX-MR", mr_service_td=b"\1" * 48),
            of("relaunch-none", "TDX-RELAUNCH", lambda b: b.td(5, platform=unmatched)),
            of("relaunch-advised", "TDX-STATUS", lambda b: b.td(5, platform=better, members=levels_of_now)),
        ]
    return out


def qe_tail(b: Bench) -> dict[str, bytes]:
    """The right hash, and something behind it."""
    from cvars.attest.tdx.quote import parse_quote

    sim = b.tdx()
    quote = parse_quote(sim.launch(measurement=MEASUREMENT).quote(REPORT_DATA))
    return {"report_data": quote.qe_report.report_data[:63] + b"\1"}


def levels_of_now(sim: SimulatedTdx, _collateral: Any) -> dict[str, bytes]:
    """Collateral for a platform whose launch TCB is out of date and whose current TCB is not."""
    at_launch = sim.platform
    sim.platform = replace(at_launch, tee_tcb_svn=at_launch.tee_tcb_svn2 or b"")
    fresh = sim.collateral()
    sim.platform = at_launch
    return {"tcb_info": fresh.tcb_info, "tcb_info_signature": fresh.tcb_info_signature}


def wrongly_issued_pck(b: Bench) -> bytes:
    sim = b.tdx()
    return sim.pck(issuer=Issuer(sim.authority.name, sim.signer.key))


def fifteen_components(version: int) -> Callable[[Bench], Attempt]:
    def make(b: Bench) -> Attempt:
        import json

        info = json.loads(b.tdx().collateral().tcb_info)
        info["tcbLevels"][1]["tcb"]["sgxtcbcomponents"].pop()
        return b.td(version, quote=BODY_10, collateral={"tcb_info": {"tcbLevels": info["tcbLevels"]}})

    return make


def old_list(sim: SimulatedTdx, _collateral: Any) -> dict[str, bytes]:
    return {"pck_crl": issue.revocation_list(sim.authority, (), this_update=PAST, next_update=NOW)}


def processor_list(b: Bench) -> Attempt:
    """The list of the processor CA for a PCK of the platform CA."""

    def members(sim: SimulatedTdx, _collateral: Any) -> dict[str, bytes]:
        other = SimulatedTdx.load_or_create(sim.folder.path, random=sim.random, clock=sim.clock, platform_ca=False)
        return {"pck_crl": issue.revocation_list(other.authority, ())}

    return b.td(members=members)


def reserialised(_sim: SimulatedTdx, collateral: Any) -> dict[str, bytes]:
    """The same JSON value in other bytes: the signature is over the received bytes."""
    return {"tcb_info": collateral.tcb_info.replace(b'"version":3', b'"version": 3')}


def signed_under_other_root(b: Bench) -> Attempt:
    """TCB info signed by another installation's hardware, whose root is pinned as well (ROOT-5)."""
    other = b.other_tdx()

    def members(sim: SimulatedTdx, _collateral: Any) -> dict[str, bytes]:
        mine = other.collateral(tcb_info={"fmspc": sim.fmspc.hex()})
        return {
            "tcb_info": mine.tcb_info,
            "tcb_info_signature": mine.tcb_info_signature,
            "tcb_info_issuer_chain": mine.tcb_info_issuer_chain,
        }

    return b.td(members=members)


def signed_by_the_pck_ca(b: Bench) -> Attempt:
    """TCB info signed by the PCK's CA: a certificate of the right root, in the wrong role."""

    def members(sim: SimulatedTdx, collateral: Any) -> dict[str, bytes]:
        from cvars.attest.simulated.tdx_module import _sign

        chain = write_pem(sim.authority_certificate) + write_pem(sim.root_certificate)
        return {
            "tcb_info_issuer_chain": chain,
            "tcb_info_signature": _sign(sim.authority.key, collateral.tcb_info),
        }

    return b.td(members=members)


def expired_signer(sim: SimulatedTdx, _collateral: Any) -> dict[str, bytes]:
    usage = issue.extension("2.5.29.15", b"\x03\x02\x06\xc0", critical=True)
    old = issue.certificate(sim.root, sim.signer.name, issue.spki(sim.signer.key), [usage], validity=(PAST, PAST))
    chain = write_pem(old) + write_pem(sim.root_certificate)
    return {"tcb_info_issuer_chain": chain}
