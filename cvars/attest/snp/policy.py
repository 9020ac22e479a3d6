"""Are the claims of an authentic SNP report acceptable? `attestation` 2.4 from SNP-VMPL on.

The policy's part of the earlier rules comes first: versions, key kinds, products, CSP ids, revocation list.
"""

from dataclasses import dataclass
from typing import Final

from cvars.attest.policy import any_of_lists, in_measurements, matches_init_data
from cvars.attest.requirements import References, SnpRequirements
from cvars.attest.result import Refused, Rule, Skipped, Stage
from cvars.attest.snp.leaf import Leaf
from cvars.attest.snp.products import Line
from cvars.attest.snp.report import HOST_VMPL, KEY_KINDS, PLATFORM_BITS, POLICY_BITS, SnpReport

_FF: Final = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class Claimed:
    """An authentic report, what its leaf says, and what is required of them."""

    report: SnpReport
    line: Line
    leaf: Leaf
    crl_seen: bool
    want: SnpRequirements
    init_data: bytes | None  # expected host_data, 32 bytes
    references: References


def _version(claimed: Claimed) -> str:
    version = claimed.report.version
    if version not in claimed.want.report_versions:
        raise Refused(f"version {version}, the policy allows {_listed(claimed.want.report_versions)}")
    return f"version {version} is allowed"


def _kind(claimed: Claimed) -> str:
    kind = KEY_KINDS[claimed.report.signing_key]
    if kind not in claimed.want.signing_key:
        raise Refused(f"signed with a {kind}, the policy allows {_listed(claimed.want.signing_key)}")
    return f"{kind} is allowed"


def _product(claimed: Claimed) -> str:
    if claimed.line not in claimed.want.product:
        raise Refused(f"product line {claimed.line}, the policy allows {_listed(claimed.want.product)}")
    return f"{claimed.line} is allowed"


def _csp(claimed: Claimed) -> str:
    if claimed.leaf.csp_id is None:
        raise Skipped("not a VLEK")
    allowed = claimed.want.csp_id_in
    if allowed != "any" and claimed.leaf.csp_id not in (allowed or ()):
        raise Refused(f"CSP id {claimed.leaf.csp_id!r} is not in the allow list")
    return "CSP id is allowed"


def _crl(claimed: Claimed) -> str:
    if claimed.want.crl != "require":
        raise Skipped("no revocation list is required")
    if not claimed.crl_seen:
        raise Refused("the policy requires a revocation list, and none was checked")
    return "a current revocation list was checked"


def _vmpl(claimed: Claimed) -> str:
    vmpl = claimed.report.vmpl
    if vmpl == HOST_VMPL:
        raise Refused("the host requested the report (VMPL FFFFFFFF)")
    if vmpl not in claimed.want.vmpl:
        raise Refused(f"report is VMPL{vmpl}, the policy wants {_listed(claimed.want.vmpl)}")
    return f"VMPL{vmpl}"


def _debug(claimed: Claimed) -> str:
    if claimed.report.policy_bit("debug") and not claimed.want.guest_policy.debug:
        raise Refused("POLICY.DEBUG is 1, policy wants 0")
    return f"POLICY.DEBUG is {int(claimed.report.policy_bit('debug'))}"


def _migration(claimed: Claimed) -> str:
    allowed = claimed.want.guest_policy.migrate_ma
    bit = claimed.report.policy_bit("migrate_ma")
    if allowed is False and claimed.report.report_id_ma != _FF:
        raise Refused("REPORT_ID_MA names a migration agent")
    if allowed not in ("any", bit):
        raise Refused(f"POLICY.MIGRATE_MA is {int(bit)}, policy wants {int(allowed)}")
    return f"POLICY.MIGRATE_MA is {int(bit)}"


def _guest_policy(claimed: Claimed) -> str:
    want, report = claimed.want.guest_policy, claimed.report
    for name in POLICY_BITS:
        if name in ("debug", "migrate_ma"):  # SNP-DEBUG, SNP-MA
            continue
        wanted = getattr(want, name)
        if wanted != "any" and report.policy_bit(name) != wanted:
            raise Refused(f"POLICY.{name.upper()} is {int(report.policy_bit(name))}, policy wants {int(wanted)}")
    if want.abi_min is not None:
        major, minor = map(int, want.abi_min.split("."))
        if report.abi < (major, minor):
            raise Refused(f"POLICY.ABI is {report.abi[0]}.{report.abi[1]}, policy wants {want.abi_min}")
    return f"guest policy {report.policy:#x}"


def _platform(claimed: Claimed) -> str:
    want, report = claimed.want.platform, claimed.report
    for name in PLATFORM_BITS:
        wanted = getattr(want, name)
        if wanted != "any" and report.platform_bit(name) != wanted:
            raise Refused(
                f"PLATFORM_INFO.{name.upper()} is {int(report.platform_bit(name))}, policy wants {int(wanted)}"
            )
    return f"platform info {report.platform_info:#x}"


def _measurement(claimed: Claimed) -> str:
    return in_measurements(
        claimed.report.measurement, claimed.want.measurement_in, claimed.references, "MEASUREMENT"
    )


def _host_data(claimed: Claimed) -> str:
    allowed, found = claimed.want.host_data_in, claimed.report.host_data
    if allowed == "init-data":
        return matches_init_data(found, claimed.init_data, "HOST_DATA")
    return any_of_lists(found, allowed, "HOST_DATA")


def _id_key(claimed: Claimed) -> str:
    return any_of_lists(claimed.report.id_key_digest, claimed.want.id_key_digest_in, "ID_KEY_DIGEST")


def _author_key(claimed: Claimed) -> str:
    report, allowed = claimed.report, claimed.want.author_key_digest_in
    if any(report.author_key_digest) and not report.author_key_en:
        raise Refused("AUTHOR_KEY_DIGEST is set, AUTHOR_KEY_EN is not")
    if allowed not in (None, "any") and not report.author_key_en:
        raise Refused("an author key is required, AUTHOR_KEY_EN is not set")
    if allowed is None and report.author_key_en:
        raise Refused("AUTHOR_KEY_EN is set, and the policy names no author key")
    return any_of_lists(report.author_key_digest, allowed, "AUTHOR_KEY_DIGEST")


def _svn(claimed: Claimed) -> str:
    report, want = claimed.report, claimed.want
    if report.guest_svn < want.guest_svn_min:
        raise Refused(f"GUEST_SVN is {report.guest_svn}, policy wants {want.guest_svn_min}")
    for name, found, wanted in (
        ("FAMILY_ID", report.family_id, want.family_id),
        ("IMAGE_ID", report.image_id, want.image_id),
    ):
        if wanted is not None and found.hex() != wanted:
            raise Refused(f"{name} is not the policy's")
    return f"GUEST_SVN {report.guest_svn}"


def _min_tcb(claimed: Claimed) -> str:
    floor = claimed.want.min_tcb.get(claimed.line)
    if floor is None:
        raise Refused(f"the policy has no TCB floor for {claimed.line}")
    tcbs = claimed.report.tcbs(claimed.line)
    lowest = floor.tcb
    for name in ("reported", "committed", "launch"):
        if not tcbs[name].at_least(lowest):
            raise Refused(f"{name.upper()}_TCB {tcbs[name]} is below the floor {lowest} of {claimed.line}")
    return f"at least {lowest}"


def _mitigations(claimed: Claimed) -> str:
    want, report = claimed.want.mitigations, claimed.report
    if not want.launch and not want.current:
        raise Skipped("no mitigation is required")
    if report.version < 5:
        raise Refused(f"mitigations are required, and report version {report.version} has no vectors")
    for name, found, bits in (
        ("LAUNCH", report.launch_mit_vector, want.launch),
        ("CURRENT", report.current_mit_vector, want.current),
    ):
        if bits & ~found:
            raise Refused(f"{name}_MIT_VECTOR {found:#x} lacks {bits & ~found:#x}")
    return "required mitigations are on"


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))


RULES: Final[tuple[Rule[Claimed], ...]] = (
    Rule("SNP-FMT", Stage.POLICY, _version),
    Rule("SNP-KEYKIND", Stage.POLICY, _kind),
    Rule("SNP-PROD", Stage.POLICY, _product),
    Rule("SNP-CRL", Stage.POLICY, _crl),
    Rule("SNP-HWID", Stage.POLICY, _csp),
    Rule("SNP-VMPL", Stage.POLICY, _vmpl),
    Rule("SNP-DEBUG", Stage.POLICY, _debug),
    Rule("SNP-MA", Stage.POLICY, _migration),
    Rule("SNP-POLICY", Stage.POLICY, _guest_policy),
    Rule("SNP-PLAT", Stage.POLICY, _platform),
    Rule("SNP-MEAS", Stage.POLICY, _measurement),
    Rule("SNP-HOSTDATA", Stage.POLICY, _host_data),
    Rule("SNP-IDKEY", Stage.POLICY, _id_key),
    Rule("SNP-AUTHKEY", Stage.POLICY, _author_key),
    Rule("SNP-SVN", Stage.POLICY, _svn),
    Rule("SNP-MINTCB", Stage.POLICY, _min_tcb),
    Rule("SNP-MITVEC", Stage.POLICY, _mitigations),
)
