"""Table 2.4 of `attestation`: correctly signed SNP evidence that violates one rule each."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cvars.attest.certificates import SIMULATION_OID, load_certificate
from cvars.attest.simulated import Identity, SimulatedAmdSp, issue
from cvars.attest.simulated.amd_sp import ORGANIZATION
from cvars.attest.simulated.issue import Issuer
from cvars.attest.snp import leaf as ext
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import VCEK, VLEK
from tests.attest.conftest import NOW, REPORT_DATA
from tests.attest.kit import (
    LINES,
    PAST,
    Attempt,
    Bench,
    Case,
    production,
    put,
    without,
)


def leaf_case(name: str, rule: str, line: str = "Genoa", **leaf: Callable[[SimulatedAmdSp], Any]) -> Case:
    def make(bench: Bench) -> Attempt:
        sp = bench.amd(line)
        return bench.snp(line, leaf={key: value(sp) for key, value in leaf.items()})

    return Case(name, rule, make)


def snp_cases() -> list[Case]:
    """Table 2.4."""
    out = [
        Case(
            "fmt-version-6", "SNP-FMT", lambda b: b.snp(changed={"version": 6}, want={"report_versions": [3, 6]})
        ),
        Case("fmt-version-not-allowed", "SNP-FMT", lambda b: b.snp(version=2, want={"report_versions": [3]})),
        Case("fmt-reserved-4c", "SNP-FMT", lambda b: b.snp(changed={"reserved_4c": b"\1\0\0\0"})),
        Case("fmt-reserved-tail", "SNP-FMT", lambda b: b.broken_snp(put(0x330, b"\1"))),
        Case("fmt-reserved-last-byte", "SNP-FMT", lambda b: b.broken_snp(put(1183, b"\x80"))),
        Case("alg-2", "SNP-ALG", lambda b: b.snp(changed={"signature_algo": 2})),
        Case("root-4-in-production", "ROOT-4", lambda b: b.snp(roots=production(b.roots))),
        Case("keykind-masked-chip-key", "SNP-KEYKIND", lambda b: b.snp(changed={"flags": 2})),
        Case("keykind-not-in-policy", "SNP-KEYKIND", lambda b: b.snp(vlek=True, want={"signing_key": ["vcek"]})),
        Case("root-2-domain", "ROOT-2", lambda b: b.snp(with_={"domains": ("amd", "intel")}), ("ROOT-2",)),
        Case("chain-signature", "SNP-CHAIN", chain_signature),
        Case("chain-ark-signature", "SNP-CHAIN", ark_signature),
        Case("chain-ask-no-ca", "SNP-CHAIN", ask_without_ca),
        Case("chain-ask-small-key", "SNP-CHAIN", ask_with_small_key),
        Case("root-5-other-line", "ROOT-5", ask_under_other_line),
        Case("root-5-unmarked", "ROOT-5", unmarked_leaf),
        leaf_case(
            "leaf-repeated-extension",
            "SNP-LEAF",
            extensions=lambda sp: 2 * list(sp.leaf_extensions(VCEK, sp.reported).values()),
        ),
        leaf_case(
            "leaf-unknown-critical",
            "SNP-LEAF",
            extensions=lambda sp: [
                *sp.leaf_extensions(VCEK, sp.reported).values(),
                issue.extension("1.2.3.4", b"\5\0", critical=True),
            ],
        ),
        leaf_case(
            "leaf-no-structure-version",
            "SNP-LEAF",
            extensions=lambda sp: without(sp.leaf_extensions(VCEK, sp.reported), ext.STRUCT_VERSION),
        ),
        leaf_case("leaf-name", "SNP-LEAF", subject=lambda _: issue.name("SEV-XXXX", ORGANIZATION, "x")),
        leaf_case("time-leaf-expired", "SNP-TIME", validity=lambda _: (PAST, NOW - timedelta(seconds=1))),
        leaf_case(
            "time-leaf-not-yet", "SNP-TIME", validity=lambda _: (NOW + timedelta(seconds=1), NOW + timedelta(9))
        ),
        Case("crl-required", "SNP-CRL", lambda b: b.snp(want={"crl": "require"})),
        Case("crl-ask-revoked", "SNP-CRL", lambda b: b.snp(crl=lambda sp: sp.revocation_list((0x10001,)))),
        Case("crl-leaf-revoked", "SNP-CRL", lambda b: b.snp(crl=lambda sp: sp.revocation_list((1,)))),
        Case("crl-expired", "SNP-CRL", lambda b: b.snp(crl=lambda sp: sp.revocation_list(next_update=NOW))),
        Case(
            "crl-not-yet",
            "SNP-CRL",
            lambda b: b.snp(crl=lambda sp: sp.revocation_list(this_update=NOW + timedelta(seconds=1))),
        ),
        Case(
            "crl-no-next-update", "SNP-CRL", lambda b: b.snp(crl=lambda sp: sp.revocation_list(next_update=None))
        ),
        Case(
            "crl-by-ask",
            "SNP-CRL",
            lambda b: b.snp(crl=lambda sp: sp.revocation_list(issuer=sp.authorities.ask_issuer)),
        ),
        Case("crl-of-other-line", "SNP-CRL", lambda b: b.snp(crl=lambda _: b.amd("Milan").revocation_list())),
        Case("crl-not-one", "SNP-CRL", lambda b: b.snp(crl=lambda _: b"\x30\0")),
        Case("sig-other-key", "SNP-SIG", lambda b: b.snp(key=b.amd("Genoa").key(VCEK, Tcb(1, 1, 1, 1)))),
        Case("sig-r-high-bytes", "SNP-SIG", lambda b: b.broken_snp(put(0x2A0 + 48, b"\1"))),
        Case("sig-zero", "SNP-SIG", lambda b: b.broken_snp(put(0x2A0, bytes(144)))),
        Case("bind-other-session", "SNP-BIND", lambda b: b.snp(with_={"report_data": bytes(64)})),
        Case("bind-padding", "SNP-BIND", lambda b: b.snp(with_={"report_data": REPORT_DATA[:48] + bytes(16)})),
        *[Case(f"vmpl-{n}", "SNP-VMPL", lambda b, n=n: b.snp(changed={"vmpl": n})) for n in (1, 2, 3, 0xFFFFFFFF)],
        Case("debug", "SNP-DEBUG", lambda b: b.snp(policy=0xB0000)),
        Case("ma-policy-bit", "SNP-MA", lambda b: b.snp(policy=0x70000)),
        Case("ma-report-id", "SNP-MA", lambda b: b.snp(changed={"report_id_ma": bytes(31) + b"\1"})),
        *[
            Case(f"policy-{name}", "SNP-POLICY", lambda b, name=name: b.snp(want={"guest_policy": {name: True}}))
            for name in (
                "single_socket",
                "aes256xts",
                "rapl_disabled",
                "ciphertext_hiding",
                "page_swap_disabled",
            )
        ],
        Case("policy-smt", "SNP-POLICY", lambda b: b.snp(want={"guest_policy": {"smt": False}})),
        Case("policy-cxl", "SNP-POLICY", lambda b: b.snp(policy=0x230000)),
        Case(
            "policy-abi", "SNP-POLICY", lambda b: b.snp(policy=0x30136, want={"guest_policy": {"abi_min": "1.55"}})
        ),
        *[
            Case(
                f"plat-{name}",
                "SNP-PLAT",
                lambda b, name=name, bit=bit: b.snp(
                    changed={"platform_info": 0x40}, want={"platform": {name: True}}
                ),
            )
            for name, bit in (
                ("smt", 0),
                ("tsme", 1),
                ("ecc", 2),
                ("rapl_disabled", 3),
                ("ciphertext_hiding", 4),
                ("alias_check", 5),
                ("tio", 7),
            )
        ],
        Case("plat-forbidden", "SNP-PLAT", lambda b: b.snp(want={"platform": {"smt": False}})),
        Case("meas", "SNP-MEAS", lambda b: b.snp(want={"measurement_in": ["00" * 48]})),
        Case(
            "meas-unknown-reference", "SNP-MEAS", lambda b: b.snp(want={"measurement_in": {"ref": "nobody/knows"}})
        ),
        Case("hostdata", "SNP-HOSTDATA", lambda b: b.snp(want={"host_data_in": ["00" * 32]})),
        Case("hostdata-no-init-data", "SNP-HOSTDATA", lambda b: b.snp(want={"host_data_in": "init-data"})),
        Case(
            "hostdata-other-init-data",
            "SNP-HOSTDATA",
            lambda b: b.snp(want={"host_data_in": "init-data"}, with_={"init_data": bytes(32)}),
        ),
        Case("idkey-unwanted", "SNP-IDKEY", lambda b: b.snp(identity=Identity(id_key_digest=b"k" * 48))),
        Case("idkey-other", "SNP-IDKEY", lambda b: b.snp(want={"id_key_digest_in": ["11" * 48]})),
        Case(
            "authkey-required",
            "SNP-AUTHKEY",
            lambda b: b.snp(want={"author_key_digest_in": ["11" * 48]}),
        ),
        Case(
            "authkey-without-enable",
            "SNP-AUTHKEY",
            lambda b: b.snp(changed={"author_key_digest": b"\x11" * 48}, want={"author_key_digest_in": "any"}),
        ),
        Case("authkey-unwanted", "SNP-AUTHKEY", lambda b: b.snp(identity=Identity(author_key_en=True))),
        Case("svn", "SNP-SVN", lambda b: b.snp(want={"guest_svn_min": 1})),
        Case("svn-family", "SNP-SVN", lambda b: b.snp(want={"family_id": "11" * 16})),
        Case("svn-image", "SNP-SVN", lambda b: b.snp(want={"image_id": "11" * 16})),
        *[
            Case(
                f"mitvec-version-{version}",
                "SNP-MITVEC",
                lambda b, version=version: b.snp(version=version, want={"mitigations": {"current": 1}}),
            )
            for version in (2, 3, 4)
        ],
        *[
            Case(
                f"mitvec-5-{name}",
                "SNP-MITVEC",
                lambda b, name=name: b.snp(
                    "Turin", changed={f"{name}_mit_vector": 1}, want={"mitigations": {name: 2}}
                ),
            )
            for name in ("launch", "current")
        ],
        Case("hwid-csp", "SNP-HWID", lambda b: b.snp(vlek=True, want={"csp_id_in": ["other.invalid"]})),
        Case("hwid-vlek-with-hwid", "SNP-HWID", vlek_with_hwid),
    ]
    for line in LINES:
        out += line_cases(line)
    return out


def line_cases(line: str) -> list[Case]:
    """Rules that depend on the product line."""
    turin = line == "Turin"
    other = "Genoa" if line != "Genoa" else "Milan"

    def of(name: str, rule: str, make: Callable[[Bench], Attempt]) -> Case:
        return Case(f"{name}-{line}", rule, make)

    def wrong_product(b: Bench) -> Attempt:
        sp = b.amd(line)
        extensions = sp.leaf_extensions(VCEK, sp.reported)
        name = issue.der.write(issue.der.IA5_STRING, other.encode())
        return b.snp(
            line, leaf={"extensions": [*without(extensions, ext.PRODUCT), issue.extension(ext.PRODUCT, name)]}
        )

    def lower(name: str, which: str) -> Callable[[Bench], Attempt]:
        """`which` TCB is one step below what the policy asks of component `name`, everything else in order."""

        def make(b: Bench) -> Attempt:
            sp = b.amd(line)
            floor = replace(sp.reported, **{name: getattr(sp.reported, name) + 1})
            high = floor.to_bytes()
            fields = {"current_tcb": high, "committed_tcb": high, "launch_tcb": high, "reported_tcb": high}
            fields[f"{which}_tcb"] = sp.reported.to_bytes()
            tcb = floor
            if which in ("reported", "committed"):  # reported <= committed (SNP-TCBORDER)
                fields["reported_tcb"] = sp.reported.to_bytes()
                tcb = sp.reported
            floors = {"product": [line], "min_tcb": {line: floor.as_json()}}
            return b.snp(line, tcb=tcb, changed=fields, want=floors)

        return make

    names = list(Tcb.parse(bytes(8), line).as_json())
    out = [
        of("prod-product-name", "SNP-PROD", wrong_product),
        of("hwid-other-chip", "SNP-HWID", lambda b: b.snp(line, changed={"chip_id": other_chip(b, line)})),
        of("hwid-masked", "SNP-HWID", lambda b: b.snp(line, changed={"chip_id": bytes(64)})),
    ]
    for name in names:
        out.append(
            of(
                f"tcbbind-{name}",
                "SNP-TCBBIND",
                lambda b, name=name: b.snp(
                    line, tcb=replace(b.amd(line).reported, **{name: getattr(b.amd(line).reported, name) + 1})
                ),
            )
        )
        for low, high in (("reported", "committed"), ("committed", "current"), ("launch", "current")):
            out.append(of(f"tcborder-{low}-{name}", "SNP-TCBORDER", order(line, name, low, high)))
        out += [of(f"mintcb-{which}-{name}", "SNP-MINTCB", lower(name, which)) for which in ("reported", "launch")]
    if turin:
        out.append(
            of(
                "hwid-9-bytes",
                "SNP-HWID",
                lambda b: b.snp(line, changed={"chip_id": b.amd(line).hwid[:8] + b"\1" * 56}),
            )
        )
        out.append(of("prod-version-2-masked", "SNP-PROD", lambda b: b.snp(line, version=2, vlek=True)))
    return out


def other_chip(b: Bench, line: str) -> bytes:
    hwid = b.amd(line).hwid
    return bytes((*hwid[:7], hwid[7] ^ 1, *hwid[8:]))


def order(line: str, name: str, low: str, high: str) -> Callable[[Bench], Attempt]:
    """`low` exceeds `high` in one component; the others are far apart: no integer comparison sees it."""

    def make(b: Bench) -> Attempt:
        sp = b.amd(line)
        base = sp.reported
        big = Tcb(**{part: (number + 5 if part != name else number) for part, number in base.as_json().items()})
        more = replace(base, **{name: getattr(base, name) + 1})
        fields = {f"{one}_tcb": base.to_bytes() for one in ("reported", "committed", "current", "launch")}
        wanted = {"product": [line], "min_tcb": {line: Tcb(0, 0, 0, 0, 0 if line == "Turin" else None).as_json()}}
        if low == "reported":  # the key is then of the higher TCB
            fields |= {"reported_tcb": more.to_bytes(), "committed_tcb": big.to_bytes()}
            top = replace(big, **{name: getattr(base, name) + 9})
            fields["current_tcb"] = top.to_bytes()
            return b.snp(line, tcb=more, changed=fields, want=wanted)
        fields |= {f"{low}_tcb": more.to_bytes(), f"{high}_tcb": big.to_bytes()}
        if low == "launch":
            fields["committed_tcb"] = base.to_bytes()
        return b.snp(line, changed=fields, want=wanted)

    return make


def chain_signature(b: Bench) -> Attempt:
    """A leaf with the ASK's name, signed by the ASVK's key."""
    sp = b.amd("Genoa")
    impostor = Issuer(sp.authorities.ask_issuer.name, sp.authorities.asvk_issuer.key)
    return b.snp("Genoa", leaf={"issuer": impostor})


def ark_signature(b: Bench) -> Attempt:
    """A reissued ARK with the pinned key, whose own signature is another key's."""
    known = b.amd("Genoa").authorities
    impostor = Issuer(known.ark_issuer.name, known.ask_issuer.key)
    ark = issue.certificate(
        impostor, known.ark_issuer.name, issue.spki(known.ark_issuer.key), issue.ca_extensions()
    )
    return b.snp("Genoa", ark=ark)


def _ask(b: Bench, line: str = "Genoa", **changed: Any) -> bytes:
    known = b.amd(line).authorities
    arguments = {
        "issuer": known.ark_issuer,
        "subject": known.ask_issuer.name,
        "public": issue.spki(known.ask_issuer.key),
        "extensions": issue.ca_extensions(),
    } | changed
    return issue.certificate(**arguments)


def ask_without_ca(b: Bench) -> Attempt:
    return b.snp("Genoa", ask=_ask(b, extensions=[]))


def ask_with_small_key(b: Bench) -> Attempt:
    """An ASK with a P-256 key, properly issued: the key kind is wrong."""
    key = b.tdx().root.key
    known = b.amd("Genoa").authorities
    small = Issuer(known.ask_issuer.name, key)
    return b.snp("Genoa", ask=_ask(b, public=issue.spki(key)), leaf={"issuer": small})


def ask_under_other_line(b: Bench) -> Attempt:
    """SEV-Genoa, issued by ARK-Milan: every signature is right."""
    milan = b.amd("Milan").authorities
    return b.snp("Genoa", ask=_ask(b, issuer=milan.ark_issuer), ark=milan.ark)


def unmarked_leaf(b: Bench) -> Attempt:
    """A leaf that looks like AMD's own under a simulated root (the domain would be crossed)."""
    sp = b.amd("Genoa")
    issuer = sp.authorities.ask_issuer
    plain = Issuer(issue.name("SEV-Genoa", "Advanced Micro Devices", "x"), issuer.key)
    ask = _ask(b, subject=plain.name)
    subject = issue.name("SEV-VCEK", "Advanced Micro Devices", "x")
    attempt = b.snp("Genoa", ask=ask, leaf={"issuer": plain, "subject": subject, "marked": False})
    assert SIMULATION_OID not in load_certificate(attempt.evidence.certificates[0].data).extensions
    return attempt


def vlek_with_hwid(b: Bench) -> Attempt:
    """A VLEK that also carries a hardware id."""
    sp = b.amd("Genoa")
    sp.load_vlek("csp.invalid")
    extensions = sp.leaf_extensions(VLEK, sp.reported)
    more = [*extensions.values(), issue.extension(ext.HWID, sp.hwid)]
    return b.snp("Genoa", vlek=True, leaf={"extensions": more})
